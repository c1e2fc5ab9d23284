"""Arithmetic of rollouts and training, from a model's sizes. Pure.

Counts multiply-adds of matrix products and attention as two operations each, every one once: what cannot be
done without. Norms, activations, the optimizer and recomputation are not counted.
"""

from alphadrive.sizing.architecture import Architecture


def vision_flops(architecture: Architecture, num_patches: int) -> float:
    """Forward of the vision tower on one image."""
    vision = architecture.vision
    matrices = 4 * vision.width**2 + (3 if vision.is_gated else 2) * vision.width * vision.mlp
    layers = vision.layers * 2 * matrices * num_patches
    seen = vision.windowed_layers * min(num_patches, vision.window or num_patches)
    seen += (vision.layers - vision.windowed_layers) * num_patches
    attention = 4 * vision.width * num_patches * seen
    embedding = 2 * num_patches * vision.width * vision.patch_values
    merged = vision.merged_width
    num_tokens = num_patches // vision.merge**2
    return layers + attention + embedding + 2 * num_tokens * merged * (merged + vision.out_width)


def text_flops(architecture: Architecture, num_prompt: int, num_inputs: float, group_size: int) -> float:
    """Forward of the language model's layers on a prompt and `group_size` completions of `num_inputs`."""
    text = architecture.text
    queries = text.heads * text.head_dim
    matrices = 2 * text.width * queries + 2 * text.width * text.kv_width + 3 * text.width * text.mlp
    num_tokens = num_prompt + group_size * num_inputs
    pairs = num_prompt**2 / 2 + group_size * num_inputs * (num_prompt + num_inputs / 2)
    return text.layers * (2 * matrices * num_tokens + 4 * queries * pairs)


def head_flops(architecture: Architecture, num_tokens: float) -> float:
    """Logits of so many tokens."""
    return 2.0 * architecture.text.width * architecture.text.vocabulary * num_tokens


def forward_flops(
    architecture: Architecture, *, num_text: int, num_patches: int, num_completion: float, group_size: int
) -> float:
    """A prompt with its image once and `group_size` completions, logits at completion tokens only.

    The last token of a completion is never an input.
    """
    num_prompt = num_text + num_patches // architecture.vision.merge**2
    return (
        vision_flops(architecture, num_patches)
        + text_flops(architecture, num_prompt, num_completion - 1, group_size)
        + head_flops(architecture, num_completion * group_size)
    )
