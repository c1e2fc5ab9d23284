"""Arithmetic of one training step on a group, from a model's configuration. Pure; see `alphadrive.sizing`."""

from transformers import Qwen2VLConfig

from alphadrive.sizing.architecture import architecture_from
from alphadrive.sizing.flops import forward_flops


def training_flops(
    config: Qwen2VLConfig, num_text: int, num_completion: int, grid: tuple[int, int, int], group_size: int
) -> float:
    """Forward and backward (three times forward) of a prompt and image with `group_size` completions of
    `num_completion` tokens, logits at completion tokens only. `grid` is the image in patches."""
    return 3 * forward_flops(
        architecture_from(config.to_dict(), "the model's configuration"),
        num_text=num_text,
        num_patches=grid[0] * grid[1] * grid[2],
        num_completion=num_completion,
        group_size=group_size,
    )
