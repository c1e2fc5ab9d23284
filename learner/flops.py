"""Arithmetic of one training step on a group, from a model's configuration. Pure; see `alphadrive.sizing`."""

from collections.abc import Sequence
from statistics import fmean

from transformers import PretrainedConfig, Qwen2VLConfig

from alphadrive.errors import ModelError
from alphadrive.sizing.architecture import architecture_from
from alphadrive.sizing.flops import forward_flops
from alphadrive.types import RolloutGroup


def training_flops(
    config: Qwen2VLConfig, num_text: int, num_completion: float, grid: tuple[int, int, int], group_size: int
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


def step_flops(config: PretrainedConfig, groups: Sequence[RolloutGroup], image_token_id: int) -> float | None:
    """The arithmetic of one update of all weights on these groups, each of completions of one length: their
    mean. None for a model whose sizes `alphadrive.sizing` does not know."""
    try:
        architecture = architecture_from(config.to_dict(), "the model's configuration")
    except ModelError:
        return None
    merged = architecture.vision.merge**2
    total = 0.0
    for group in groups:
        num_vision = group.prompt_token_ids.count(image_token_id)
        total += 3 * forward_flops(
            architecture,
            num_text=len(group.prompt_token_ids) - num_vision,
            num_patches=num_vision * merged,
            num_completion=fmean(len(completion.token_ids) for completion in group.completions),
            group_size=len(group.completions),
        )
    return total
