"""Arithmetic of one training step on a group, from a model's configuration. Pure.

Counts multiply-adds of matrix products and attention as two operations each, every one once: what a
learner cannot do without. Norms, activations, the optimizer and recomputation are not counted.
"""

from collections.abc import Sequence
from statistics import fmean

from transformers import Qwen2VLConfig

from alphadrive.types import RolloutGroup


def training_flops(
    config: Qwen2VLConfig, num_text: int, num_completion: float, grid: tuple[int, int, int], group_size: int
) -> float:
    """Forward and backward (three times forward) of a prompt and image with `group_size` completions of
    `num_completion` tokens, logits at completion tokens only. `grid` is the image in patches."""
    num_patches = grid[0] * grid[1] * grid[2]
    num_prompt = num_text + num_patches // config.vision_config.spatial_merge_size**2
    num_inputs = num_completion - 1
    text = _text_flops(config, num_prompt, num_inputs, group_size)
    head = 2 * config.text_config.hidden_size * config.text_config.vocab_size * num_completion * group_size
    return 3 * (_vision_flops(config, num_patches) + text + head)


def _text_flops(config: Qwen2VLConfig, num_prompt: int, num_inputs: float, group_size: int) -> float:
    text = config.text_config
    width, head_dim = text.hidden_size, text.hidden_size // text.num_attention_heads
    matrices = (
        2 * width * width
        + 2 * width * head_dim * text.num_key_value_heads
        + 3 * width * text.intermediate_size
    )
    num_tokens = num_prompt + group_size * num_inputs
    pairs = num_prompt**2 / 2 + group_size * num_inputs * (num_prompt + num_inputs / 2)
    return text.num_hidden_layers * (2 * matrices * num_tokens + 4 * width * pairs)


def _vision_flops(config: Qwen2VLConfig, num_patches: int) -> float:
    vision = config.vision_config
    width = vision.embed_dim
    matrices = 4 * width * width + 2 * width * int(width * vision.mlp_ratio)
    layers = vision.depth * (2 * matrices * num_patches + 4 * width * num_patches**2)
    embedding = (
        2 * num_patches * width * vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    )
    merged = width * vision.spatial_merge_size**2
    merger = (
        2 * (num_patches // vision.spatial_merge_size**2) * merged * (merged + config.text_config.hidden_size)
    )
    return layers + embedding + merger


def step_flops(config: object, groups: Sequence[RolloutGroup], image_token_id: int) -> float | None:
    """The arithmetic of one update of all weights on these groups, each of completions of one length: their
    mean. None for a model that this module does not know."""
    if type(config) is not Qwen2VLConfig:
        return None
    merged = config.vision_config.spatial_merge_size**2
    total = 0.0
    for group in groups:
        num_vision = group.prompt_token_ids.count(image_token_id)
        num_completion = fmean(len(completion.token_ids) for completion in group.completions)
        total += training_flops(
            config,
            len(group.prompt_token_ids) - num_vision,
            num_completion,
            (1, 1, num_vision * merged),
            len(group.completions),
        )
    return total
