"""A tiny random Qwen2-VL, versions of it, what transformers says about it, and a dataset of noise images."""

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from alphadrive.actions import PATHS, SPEEDS
from alphadrive.data.parquet import DrivingDataset, write_records
from alphadrive.data.records import DrivingRecord, ImageRecord
from alphadrive.processing import PromptProcessor
from alphadrive.prompts import planning_prompt
from alphadrive.types import RolloutGroup, WeightsFile, WeightVersion
from alphadrive.weights import file_sha256

SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% endif %}"
)
NUM_ROWS = 8


def make_tiny_model(folder: Path, seed: int = 0) -> Path:
    """Write a random Qwen2-VL of 1 M parameters; sharper than an untrained one, so that tokens differ in
    likelihood."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLForConditionalGeneration

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([planning_prompt(3.0, "straight")], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.add_special_tokens({"additional_special_tokens": SPECIAL_TOKENS})
    ids = {name: fast.convert_tokens_to_ids(name) for name in SPECIAL_TOKENS}
    token_ids = dict(
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=ids["<|im_end|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        vision_token_id=ids["<|vision_pad|>"],
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
    )
    text: dict[str, Any] = dict(
        vocab_size=1024,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=token_ids["bos_token_id"],
        eos_token_id=token_ids["eos_token_id"],
    )
    vision = dict(
        depth=3, embed_dim=64, hidden_size=128, num_heads=4, mlp_ratio=2, patch_size=14, spatial_merge_size=2
    )
    config = Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **token_ids)
    torch.manual_seed(seed)
    model = Qwen2VLForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.15 if "visual" in name or "embed_tokens" in name else 0.08)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            dict(
                image_processor_type="Qwen2VLImageProcessor",
                processor_class="Qwen2VLProcessor",
                size={"shortest_edge": 784, "longest_edge": 401408},
                patch_size=14,
                merge_size=2,
                temporal_patch_size=2,
                do_resize=True,
                do_rescale=True,
                do_normalize=True,
                do_convert_rgb=True,
                rescale_factor=1 / 255,
                image_mean=[0.5, 0.5, 0.5],
                image_std=[0.5, 0.5, 0.5],
                resample=3,
            )
        )
    )
    return folder


def make_dataset(folder: Path, num_rows: int = NUM_ROWS) -> Path:
    """Write rows whose images are noise of the size the tiny model sees."""
    generator = np.random.default_rng(0)
    records = []
    for row in range(num_rows):
        pixels = generator.integers(0, 256, (112, 224, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG")
        image = ImageRecord(camera="front", dt_s=0.0, data=buffer.getvalue(), width=224, height=112)
        records.append(
            DrivingRecord(
                query_id=f"q{row}",
                scene_id=f"s{row}",
                time_s=0.0,
                split="train",
                images=(image,),
                speed_mps=float(row),
                navigation="go straight",
                plans=(f"{SPEEDS[row % 4]}, {PATHS[row % 5]}",),
                source="test",
                label_rule="test",
            )
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_records(records, folder)
    return folder


@dataclass(frozen=True)
class ModelVersion:
    """A model folder and its weights as a learner would publish them."""

    folder: Path
    weights: WeightsFile


def changed_model(
    source: Path, folder: Path, version: WeightVersion, change: Callable[[dict[str, Any]], None]
) -> ModelVersion:
    """A copy of a model folder whose tensors `change` edits in place."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    path = folder / "model.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    weights = WeightsFile(
        path=str(path), version=version, sha256=file_sha256(path), num_bytes=path.stat().st_size
    )
    return ModelVersion(folder, weights)


def add_noise(scale: float, only: str = "", seed: int = 1) -> Callable[[dict[str, Any]], None]:
    """A change for `changed_model`: noise on all matrices whose name contains `only`."""
    import torch

    def change(tensors: dict[str, Any]) -> None:
        generator = torch.Generator().manual_seed(seed)
        for name in sorted(tensors):
            noise = torch.randn(tensors[name].shape, generator=generator)
            if only in name and tensors[name].ndim > 1:
                tensors[name] = tensors[name] + scale * noise

    return change


def reference_logits(folder: Path, dataset: Path, group: RolloutGroup) -> list[Any]:
    """What transformers gives for a group: a tensor [tokens, vocabulary] a completion, each run by itself."""
    import torch
    from transformers import Qwen2VLForConditionalGeneration

    model = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = PromptProcessor(folder, 401408)
    pixels, grid = processor.pixels(processor.fit(DrivingDataset(dataset).image(group.query.row)))
    all_logits = []
    for completion in group.completions:
        ids = torch.tensor([[*group.prompt_token_ids, *completion.token_ids]])
        with torch.no_grad():
            output = model(
                input_ids=ids,
                mm_token_type_ids=(ids == processor.image_token_id).int(),
                pixel_values=torch.from_numpy(pixels),
                image_grid_thw=torch.tensor([grid]),
            )
        all_logits.append(output.logits[0, len(group.prompt_token_ids) - 1 : -1])
    return all_logits


def reference_logprobs(
    folder: Path, dataset: Path, group: RolloutGroup, temperature: float
) -> list[list[float]]:
    """The reference's log-probability of every token of a group, with temperature and vision mask."""
    import torch

    vision = list(PromptProcessor(folder, 401408).vision_token_ids)
    all_logprobs = []
    for logits, completion in zip(reference_logits(folder, dataset, group), group.completions, strict=True):
        masked = (logits / temperature).index_fill(1, torch.tensor(vision), -float("inf"))
        tokens = torch.tensor(completion.token_ids)[:, None]
        all_logprobs.append(masked.log_softmax(-1).gather(1, tokens)[:, 0].tolist())
    return all_logprobs


def largest_difference(group: RolloutGroup, logprobs: list[list[float]]) -> float:
    """The largest difference of any token's log-probability between a group and a reference."""
    return max(
        abs(ours - theirs)
        for completion, reference in zip(group.completions, logprobs, strict=True)
        for ours, theirs in zip(completion.rollout_logprobs, reference, strict=True)
    )
