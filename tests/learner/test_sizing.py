"""What `alphadrive.sizing` counts, against the models themselves and what autograd keeps of them."""

import weakref
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, Qwen2_5_VLConfig, Qwen2VLConfig

from alphadrive.config import ModelConfig
from alphadrive.sizing.activations import LOGITS_AT_ONCE, Pack, kept_bytes
from alphadrive.sizing.architecture import architecture_from, architecture_of
from alphadrive.sizing.published import PUBLISHED
from learner.batch import TokenRow, build_token_batch
from learner.policy import MAX_LOGITS, Policy
from learner.vision import FrozenFeatures

IMAGE = 90
TEXT = dict(
    hidden_size=96,
    intermediate_size=136,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    vocab_size=100,
    max_position_embeddings=512,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
)
SMALL: dict[str, Any] = {
    "qwen2_vl": Qwen2VLConfig(
        text_config=TEXT,
        vision_config=dict(depth=4, embed_dim=64, num_heads=2, hidden_size=96, mlp_ratio=3),
        image_token_id=IMAGE,
        tie_word_embeddings=True,
    ),
    "qwen2_5_vl": Qwen2_5_VLConfig(
        text_config=TEXT,
        vision_config=dict(
            depth=4,
            hidden_size=64,
            intermediate_size=88,
            num_heads=2,
            out_hidden_size=96,
            fullatt_block_indexes=[1, 3],
        ),
        image_token_id=IMAGE,
        tie_word_embeddings=True,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_is_as_large_as_counted(name: str) -> None:
    kind = Qwen2VLConfig if PUBLISHED[name]["model_type"] == "qwen2_vl" else Qwen2_5_VLConfig
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(kind(**PUBLISHED[name]))
    architecture = architecture_of(ModelConfig(path=name))
    assert architecture.parameters == sum(each.numel() for each in model.parameters())
    assert architecture.vision_parameters == sum(each.numel() for each in model.model.visual.parameters())
    linear = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    if architecture.is_head_tied:
        del linear["lm_head"]
    assert architecture.linear_modules() == {n: (m.out_features, m.in_features) for n, m in linear.items()}


class Saved:
    """A tensor that the backward pass will ask for: gone when nothing will."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def saved_bytes(policy: Policy, row: TokenRow) -> tuple[int, Pack]:
    """Bytes that a forward pass leaves for the backward pass beside weights, and the pack."""
    batch = build_token_batch([row], policy.prompt_positions)
    saved: weakref.WeakSet[Saved] = weakref.WeakSet()

    def note(tensor: torch.Tensor) -> Saved:
        saved.add(one := Saved(tensor))
        return one

    with torch.autograd.graph.saved_tensors_hooks(note, lambda one: one.tensor):
        outputs = policy(batch)
    storages = {s.data_ptr(): s.nbytes() for s in (one.tensor.untyped_storage() for one in saved)}
    for weight in policy.parameters():
        storages.pop(weight.untyped_storage().data_ptr(), None)
    assert outputs[0].requires_grad
    return sum(storages.values()), Pack(tokens=len(batch.input_ids_N), patches=row.grid[1] * row.grid[2])


@pytest.mark.parametrize("is_frozen", [False, True])
@pytest.mark.parametrize("is_checkpointed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", SMALL)
def test_a_forward_pass_keeps_what_is_counted(
    family: str, dtype: torch.dtype, is_checkpointed: bool, is_frozen: bool
) -> None:
    model = AutoModelForImageTextToText.from_config(SMALL[family]).to(dtype)
    policy = Policy(model, (IMAGE,))
    if is_checkpointed:
        policy.checkpoint_activations()
    if is_frozen:
        policy.freeze_vision()
        policy.frozen_features = FrozenFeatures(1 << 20)
    policy.train()
    row = TokenRow(
        prompt_ids=[*range(60), *[IMAGE] * 64],
        # One completion is one causal sequence: CPU attention copies no keys, as the GPU's does for none.
        completions=[list(range(30))],
        pixel_values=np.ones((256, 1176), dtype=np.float32),
        grid=(1, 16, 16),
    )
    measured, pack = saved_bytes(policy, row)
    architecture = architecture_from(SMALL[family].to_dict(), family)
    counted = kept_bytes(
        architecture,
        pack,
        dtype.itemsize,
        is_checkpointed=is_checkpointed,
        trains_vision=not is_frozen,
    )
    logits = 30 * (100 + 96) * dtype.itemsize + 100
    # Checkpointing holds the rotary angles by other means, which are not seen here.
    assert counted == pytest.approx(measured - logits, rel=0.1 if is_checkpointed else 0.02)


def test_logits_are_counted_as_they_are_cut() -> None:
    assert LOGITS_AT_ONCE == MAX_LOGITS
