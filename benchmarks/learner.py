"""The learner against repeated prefixes, arithmetic and wall clock: `python benchmarks/learner.py`.

    tiny       the shipped model, a prompt of 180 tokens, completions of 48; G = 2, 8, 16
    slice-2b   two language and two vision layers of Qwen2-VL-2B's geometry, random weights; 512 vision +
               190 text tokens, completions of 80; G = 2, 8
    full-2b    all of that geometry, on a machine with a GPU; G = 2, 8

The baseline is a fair one: every completion behind its own copy of prompt and image, in the same packs
without padding, logits at completion positions only. Both sides compute log-probabilities and gradients of
the same groups; repeats are interleaved, medians are reported. The bound is the ratio of their arithmetic
(multiply-adds of matrices and attention, each counted once), its share what of it the clock shows. The error
is that of the gradient, relative to its norm. Peak memory is measured in processes of their own.
"""

import argparse
import gc
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

sys.path.pop(0)  # this file's own name would hide the package

from alphadrive.processing import PromptProcessor, resolve_model
from learner.batch import TokenBatch, TokenRow, build_token_batch
from learner.flops import training_flops
from learner.policy import Policy

VISION_IDS_2B = (151652, 151653, 151654, 151655, 151656)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One model and one shape of group. `grid` is the image in patches; a vision token is 2 x 2 of them."""

    name: str
    group_sizes: tuple[int, ...]
    num_text: int
    num_completion: int
    grid: tuple[int, int, int]
    groups: int
    layers: int | None = None

    @property
    def num_vision(self) -> int:
        """Vision tokens of the image."""
        return self.grid[1] * self.grid[2] // 4


SETTINGS = {
    each.name: each
    for each in (
        Setting(
            name="tiny", group_sizes=(2, 8, 16), num_text=148, num_completion=48, grid=(1, 8, 16), groups=4
        ),
        Setting(
            name="slice-2b",
            group_sizes=(2, 8),
            num_text=190,
            num_completion=80,
            grid=(1, 32, 64),
            groups=1,
            layers=2,
        ),
        Setting(
            name="full-2b", group_sizes=(2, 8), num_text=190, num_completion=80, grid=(1, 32, 64), groups=4
        ),
    )
}


def make_policy(setting: Setting, device: torch.device) -> Policy:
    """The shipped model, or random weights of Qwen2-VL-2B's geometry; float32 on CPU, bfloat16 on a GPU."""
    torch.manual_seed(0)
    if setting.name == "tiny":
        processor = PromptProcessor(resolve_model("tiny"), 25088)
        policy = Policy.from_folder(resolve_model("tiny"), "float32", processor.vision_token_ids)
    else:
        model = Qwen2VLForConditionalGeneration(config_2b(setting.layers))
        policy = Policy(model, VISION_IDS_2B)
    return policy.to(device, torch.bfloat16 if device.type == "cuda" else torch.float32).train()


def config_2b(num_layers: int | None) -> Qwen2VLConfig:
    """Qwen2-VL-2B-Instruct's geometry, with as many layers of each kind as asked for (None: all)."""
    return Qwen2VLConfig(
        text_config=dict(
            hidden_size=1536,
            intermediate_size=8960,
            num_hidden_layers=num_layers or 28,
            num_attention_heads=12,
            num_key_value_heads=2,
            vocab_size=151936,
            max_position_embeddings=32768,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 1000000.0,
                "mrope_section": [16, 24, 24],
            },
            tie_word_embeddings=True,
        ),
        vision_config=dict(
            depth=num_layers or 32, embed_dim=1280, num_heads=16, hidden_size=1536, mlp_ratio=4
        ),
        image_token_id=151655,
        video_token_id=151656,
        vision_start_token_id=151652,
        vision_end_token_id=151653,
        tie_word_embeddings=True,
    )


def make_rows(setting: Setting, policy: Policy, group_size: int) -> list[TokenRow]:
    """Groups of random text and noise, the same on every call."""
    random = np.random.default_rng(0)
    image_id, largest = policy.model.config.image_token_id, min(policy.vision_token_ids)
    rows = []
    for _ in range(setting.groups):
        text = random.integers(0, largest, setting.num_text).tolist()
        num_patches = setting.grid[0] * setting.grid[1] * setting.grid[2]
        completions = random.integers(0, largest, (group_size, setting.num_completion)).tolist()
        rows.append(
            TokenRow(
                prompt_ids=[*text[:20], *[image_id] * setting.num_vision, *text[20:]],
                completions=completions,
                pixel_values=random.standard_normal((num_patches, 1176)).astype(np.float32),
                grid=setting.grid,
            )
        )
    return rows


def repeated(rows: list[TokenRow]) -> list[TokenRow]:
    """Every completion with a prompt and an image of its own."""
    return [
        TokenRow(
            prompt_ids=row.prompt_ids,
            completions=[completion],
            pixel_values=row.pixel_values,
            grid=row.grid,
        )
        for row in rows
        for completion in row.completions
    ]


def packs(policy: Policy, rows: list[TokenRow], device: torch.device, per_pack: int) -> list[TokenBatch]:
    """Packs of `per_pack` rows, on the device."""
    return [
        build_token_batch(rows[first : first + per_pack], policy.prompt_positions).to(device)
        for first in range(0, len(rows), per_pack)
    ]


def update(policy: Policy, batches: list[TokenBatch]) -> None:
    """Forward, a weighted sum of the log-probabilities as the loss, backward."""
    policy.zero_grad(set_to_none=True)
    for batch in batches:
        logprobs_T, _ = policy(batch)
        weights_T = 1 + torch.cos(batch.target_ids_T.float())
        (-(logprobs_T * weights_T).mean() / len(batches)).backward()


def seconds_of(run: Callable[[], None], device: torch.device) -> float:
    """Wall-clock time of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def gradient_error(policy: Policy, ours: list[TokenBatch], theirs: list[TokenBatch]) -> float:
    """Norm of the difference of the two gradients, relative to the norm of the second."""
    update(policy, ours)
    kept = [None if p.grad is None else p.grad.clone() for p in policy.parameters()]
    update(policy, theirs)
    difference = total = 0.0
    for gradient, parameter in zip(kept, policy.parameters(), strict=True):
        if parameter.grad is not None and gradient is not None:
            difference += float((gradient.double() - parameter.grad.double()).square().sum())
            total += float(parameter.grad.double().square().sum())
    return (difference / total) ** 0.5


def measure(setting: Setting, group_size: int, repeats: int, device: torch.device) -> dict[str, Any]:
    """Both sides on one shape; the error's two updates come first and warm up."""
    policy = make_policy(setting, device)
    rows = make_rows(setting, policy, group_size)
    ours = packs(policy, rows, device, len(rows))
    theirs = packs(policy, repeated(rows), device, group_size)
    error = gradient_error(policy, ours, theirs)
    times: dict[str, list[float]] = {"shared": [], "repeated": []}
    for _ in range(repeats):
        times["shared"].append(seconds_of(lambda: update(policy, ours), device))
        times["repeated"].append(seconds_of(lambda: update(policy, theirs), device))
    shared_s, repeated_s = (statistics.median(times[side]) for side in ("shared", "repeated"))
    config = policy.model.config
    ours_flops = training_flops(config, setting.num_text, setting.num_completion, setting.grid, group_size)
    their_flops = group_size * training_flops(
        config, setting.num_text, setting.num_completion, setting.grid, 1
    )
    num_samples = group_size * setting.groups
    speedup, bound = repeated_s / shared_s, their_flops / ours_flops
    return {
        "setting": setting.name,
        "group_size": group_size,
        "shared_prefix_speedup": speedup,
        "flop_bound": bound,
        "share_of_bound": speedup / bound,
        "relative_gradient_error": error,
        "shared_s": shared_s,
        "repeated_s": repeated_s,
        "samples_per_s": num_samples / shared_s,
        "tflops_per_s": ours_flops * setting.groups / shared_s / 1e12,
        "repeats": repeats,
    }


def peak_bytes(setting: str, group_size: int, side: str) -> int:
    """Memory beside model and gradients that one group takes, in a process of its own."""
    command = [sys.executable, __file__, "--peak", setting, str(group_size), side]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def print_peak(name: str, group_size: int, side: str) -> None:
    """Run forward and backward of one group; print the peak memory above model and gradients."""
    setting, device = SETTINGS[name], torch.device("cuda" if torch.cuda.is_available() else "cpu")
    policy = make_policy(setting, device)
    for parameter in policy.parameters():
        parameter.grad = torch.zeros_like(parameter)
    rows = make_rows(setting, policy, group_size)[:1]
    batches = packs(policy, repeated(rows) if side == "repeated" else rows, device, group_size)
    gc.collect()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = psutil.Process().memory_info().rss
    for batch in batches:
        policy(batch)[0].sum().backward()
    if device.type == "cuda":
        print(torch.cuda.max_memory_allocated() - before)
        return
    # Not getrusage: a new process takes its parent's peak over.
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    print((int(peak) << 10) - before)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--settings", nargs="*", choices=SETTINGS, default=["tiny", "slice-2b"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False) or 1)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak:
        print_peak(args.peak[0], int(args.peak[1]), args.peak[2])
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    results = []
    for setting in (SETTINGS[name] for name in args.settings):
        for group_size in setting.group_sizes:
            result = measure(setting, group_size, args.repeats, device)
            for side in ("shared", "repeated"):
                result[f"{side}_peak_bytes"] = peak_bytes(setting.name, group_size, side)
            results.append(result)
            if not args.json:
                print_row(result)
    if args.json:
        print(json.dumps({"device": str(device), "threads": args.threads, "results": results}, indent=1))


def print_row(result: dict[str, Any]) -> None:
    """One line of the table."""
    memory = [f"{result[f'{side}_peak_bytes'] / 2**20:,.0f} MiB" for side in ("shared", "repeated")]
    print(
        f"{result['setting']:9} G={result['group_size']:<3} speedup {result['shared_prefix_speedup']:5.2f} "
        f"of at most {result['flop_bound']:5.2f} ({result['share_of_bound']:.0%})  "
        f"gradient error {result['relative_gradient_error']:.1e}  "
        f"{result['samples_per_s']:.2f} samples/s  memory {memory[0]}, repeated {memory[1]}",
        flush=True,
    )


if __name__ == "__main__":
    main()
