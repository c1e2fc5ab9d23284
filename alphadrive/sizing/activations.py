"""What the learner keeps of a forward pass for its backward pass, in bytes. Pure.

Counted tensor by tensor in transformers' layers under this project's attention, whose fused kernels keep
queries, keys, values, output and one number a head; `tests/learner/test_sizing.py` compares the counts with
what autograd saves. `value` is the bytes of a number in the model's dtype; norms keep float32 copies.

    language layer   norm, norm -> 2 float32 + 2; inputs of q/k/v and of the MLP 2; q and output 2;
                     keys and values; gate, silu(gate), up, their product 4 mlp
    vision layer     norm, norm 2; inputs of qkv, proj and MLP 3; qkv whole 3, q, k and
                     output 3; MLP 3 mlp, gated 4 mlp and 2 float32 for its norms
"""

from dataclasses import dataclass

from alphadrive.sizing.architecture import Architecture

FLOAT32 = 4
LOGITS_AT_ONCE = 1 << 25
"""`learner.policy.MAX_LOGITS`: more are computed chunk by chunk, and again in the backward pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """A microbatch: positions of the language model, patches of its images."""

    tokens: int
    patches: int


def text_layer_bytes(architecture: Architecture, value: int) -> int:
    """Kept by one layer of the language model for one token."""
    text = architecture.text
    queries = text.heads * text.head_dim
    whole = 5 * text.width * value + 2 * text.width * FLOAT32 + 2 * queries * value
    return whole + 2 * text.kv_width * value + 4 * text.mlp * value + FLOAT32 * (text.heads + 2)


def vision_layer_bytes(architecture: Architecture, value: int) -> int:
    """Kept by one layer of the vision tower for one patch."""
    vision = architecture.vision
    kept = 11 * vision.width * value + (4 if vision.is_gated else 3) * vision.mlp * value
    if vision.is_gated:
        return kept + 2 * vision.width * FLOAT32 + FLOAT32 * (vision.heads + 2)
    return kept + FLOAT32 * vision.heads + 4 * value


def kept_bytes(
    architecture: Architecture, pack: Pack, value: int, *, is_checkpointed: bool, trains_vision: bool
) -> int:
    """Kept for the backward pass of one microbatch, logits aside.

    With activation checkpointing only the input of each layer is.
    """
    text, vision = architecture.text, architecture.vision
    text_layer, vision_layer = text_layer_bytes(architecture, value), vision_layer_bytes(architecture, value)
    if is_checkpointed:
        text_layer, vision_layer = text.width * value, vision.width * value
    ends = 3 * text.head_dim * value + text.width * (FLOAT32 + value)
    kept = pack.tokens * (text.layers * text_layer + ends)
    if trains_vision:
        merger = vision.patch_values + vision.width + 3 * vision.merged_width // vision.merge**2
        norms_and_angles = FLOAT32 * (vision.width * vision.is_gated + 2 * vision.width // vision.heads)
        kept += pack.patches * (vision.layers * vision_layer + merger * value + norms_and_angles)
    return kept


def embedding_gradient_bytes(architecture: Architecture, value: int) -> int:
    """Held beside accumulated gradients: those of the token embedding and the output head, by far the largest
    of single weights. Where both are one weight, the head's waits through the whole backward pass for the
    embedding's."""
    text = architecture.text
    return (2 if architecture.is_head_tied else 1) * text.vocabulary * text.width * value


def working_bytes(
    architecture: Architecture, pack: Pack, value: int, *, is_checkpointed: bool, trains_vision: bool
) -> int:
    """Held beside what is kept, at most: the gradients of the largest layer, as much as it keeps; with
    checkpointing, that layer computed again, too; logits with their gradient and a float32 copy."""
    text = pack.tokens * text_layer_bytes(architecture, value)
    vision = pack.patches * vision_layer_bytes(architecture, value)
    if not trains_vision:
        vision = vision // 2
    largest = max(text, vision) * (2 if is_checkpointed else 1)
    return largest + LOGITS_AT_ONCE * (2 * value + FLOAT32)
