"""What a forward and backward pass hold, counted and measured: `python benchmarks/activations.py`.

Two layers each of language model and vision tower in the geometry of a published model, random weights, one
prompt with an image of 256 patches and one answer, on the CPU. *Kept* are the bytes that autograd saves for
the backward pass, *peak* is the growth of the process over forward and backward, accumulated gradients aside.
The count is `alphadrive.sizing.activations`'s; the plan of a run rests on it. In bfloat16 a CPU has buffers
of its own, which no GPU has: there the measured peak says little.
"""

import argparse
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import torch
from transformers import AutoModelForImageTextToText, Qwen2_5_VLConfig, Qwen2VLConfig

sys.path.pop(0)  # this file's own name would hide the package

from alphadrive.sizing.activations import Pack, embedding_gradient_bytes, kept_bytes, working_bytes
from alphadrive.sizing.architecture import architecture_from
from alphadrive.sizing.published import PUBLISHED
from learner.batch import TokenRow, build_token_batch
from learner.policy import Policy

IMAGE, GRID, NUM_TEXT, NUM_ANSWER, LAYERS = 151655, (1, 32, 64), 190, 80, 2
KINDS = {"qwen2_vl": Qwen2VLConfig, "qwen2_5_vl": Qwen2_5_VLConfig}


def main() -> None:
    """Measure every case in a process of its own and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs=3, help="model, dtype and whether to checkpoint: this one, here")
    parser.add_argument("--models", nargs="+", default=list(PUBLISHED), help="default: all (16 GB of memory)")
    args = parser.parse_args()
    if args.case:
        name, dtype_name, checkpointing = args.case
        print(" | ".join(measure(name, getattr(torch, dtype_name), checkpointing == "True")))
        return
    print(
        "| model | dtype | checkpointing | kept, counted | kept | peak, counted | peak |\n|---"
        + "|---" * 6
        + "|"
    )
    for model in args.models:
        for dtype in ("bfloat16", "float32"):
            for is_checkpointed in (False, True):
                command = [sys.executable, __file__, "--case", model, dtype, str(is_checkpointed)]
                row = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
                print(f"| {model.split('/')[1]} | {dtype} | {is_checkpointed} | {row} |", flush=True)


def measure(model_name: str, dtype: torch.dtype, is_checkpointed: bool) -> list[str]:
    """Kept and peak bytes in MiB, each counted and measured."""
    published = PUBLISHED[model_name]
    vision = published["vision_config"] | {"depth": LAYERS}
    if "fullatt_block_indexes" in vision:
        vision["fullatt_block_indexes"] = [1]
    sizes = published | {"num_hidden_layers": LAYERS, "vision_config": vision}
    torch.set_default_dtype(dtype)
    model = AutoModelForImageTextToText.from_config(KINDS[sizes["model_type"]](image_token_id=IMAGE, **sizes))
    torch.set_default_dtype(torch.float32)
    policy = Policy(model, (IMAGE,))
    if is_checkpointed:
        policy.checkpoint_activations()
    policy.train()
    random = np.random.default_rng(0)
    row = TokenRow(
        prompt_ids=[*random.integers(0, 1000, NUM_TEXT).tolist(), *[IMAGE] * (GRID[1] * GRID[2] // 4)],
        completions=[random.integers(0, 1000, NUM_ANSWER).tolist()],
        pixel_values=random.standard_normal((GRID[1] * GRID[2], 1176)).astype(np.float32),
        grid=GRID,
    )
    batch = build_token_batch([row], policy.prompt_positions)
    small = replace(row, prompt_ids=[IMAGE] * 4, completions=[[1, 2]], grid=(1, 4, 4))
    small = replace(small, pixel_values=np.zeros((16, 1176), dtype=np.float32))
    policy(build_token_batch([small], policy.prompt_positions))[0].sum().backward()
    # Now libraries are loaded, and gradients have their memory.
    kept: dict[int, int] = {}
    weights = {weight.untyped_storage().data_ptr() for weight in policy.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    before = psutil.Process().memory_info().rss
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logprobs_T, _ = policy(batch)
    logprobs_T.sum().backward()
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    architecture = architecture_from(sizes, model_name)
    pack = Pack(tokens=len(batch.input_ids_N), patches=GRID[1] * GRID[2])
    shape = {"is_checkpointed": is_checkpointed, "trains_vision": True}
    counted = kept_bytes(architecture, pack, dtype.itemsize, **shape)
    working = working_bytes(architecture, pack, dtype.itemsize, **shape)
    working += embedding_gradient_bytes(architecture, dtype.itemsize)
    logits = NUM_ANSWER * architecture.text.vocabulary * dtype.itemsize
    figures = (counted, sum(kept.values()) - logits, counted + working, int(peak) * 1024 - before)
    return [f"{figure / (1 << 20):.0f}" for figure in figures]


if __name__ == "__main__":
    main()
