"""Features kept of a frozen vision tower change nothing but the number of its forwards; 8-bit patches."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from alphadrive.errors import LearnerError
from alphadrive.processing import PromptProcessor, resolve_model
from learner.batch import TokenBatch, TokenRow, build_token_batch
from learner.patches import PatchTable
from learner.policy import Policy
from learner.vision import FrozenFeatures

VISION_TOKEN_IDS = (59, 60, 61, 62)
FEATURE_BYTES = 6 * 32 * 4
"""Of one image of the tiny model: 6 vision tokens of 32 float32."""
MakeRow = Callable[..., TokenRow]


class Counted:
    """A frozen policy of a copy of a model, and the images that each forward of its tower saw."""

    def __init__(self, model, features: FrozenFeatures | None) -> None:
        self.policy = Policy(copy.deepcopy(model), VISION_TOKEN_IDS)
        self.policy.freeze_vision()
        self.policy.frozen_features = features
        self.seen: list[list[list[int]]] = []
        self.policy.model.base_model.visual.register_forward_hook(
            lambda tower, args, kwargs, output: self.seen.append(kwargs["grid_thw"].tolist()),
            with_kwargs=True,
        )

    def batch(self, rows: Sequence[TokenRow]) -> TokenBatch:
        """A pack as the reader makes it: without the pixels of images whose features are known."""
        features = self.policy.frozen_features
        known = [features.known(row.image_key) if features else None for row in rows]
        given = [
            row if found is None else replace(row, pixel_values=None, features_VD=found.features_VD)
            for row, found in zip(rows, known, strict=True)
        ]
        return build_token_batch(given, self.policy.prompt_positions)

    def gradients(self, rows: Sequence[TokenRow]) -> dict[str, Tensor]:
        """Gradients of the sum of the log-probabilities."""
        self.policy.zero_grad()
        self.policy(self.batch(rows))[0].sum().backward()
        named = self.policy.named_parameters()
        return {name: weight.grad.clone() for name, weight in named if weight.grad is not None}


@pytest.fixture
def rows(make_row: MakeRow) -> list[TokenRow]:
    return [replace(make_row(seed, (3, 2)), image_key=seed) for seed in range(4)]


def test_an_image_goes_through_a_frozen_tower_once_and_the_gradient_is_the_same_to_the_bit(
    model, rows
) -> None:
    kept, plain = Counted(model, FrozenFeatures(1 << 20)), Counted(model, None)
    for _ in range(3):
        cached, computed = kept.gradients(rows[:2]), plain.gradients(rows[:2])
        assert cached.keys() == computed.keys() and not any("visual" in name for name in cached)
        assert all(torch.equal(cached[name], computed[name]) for name in cached)
    assert [len(images) for images in kept.seen] == [2]
    assert [len(images) for images in plain.seen] == [2, 2, 2]
    assert (kept.policy.num_vision_passes, plain.policy.num_vision_passes) == (2, 6)


def test_a_pack_mixes_known_and_new_images_in_order(model, rows) -> None:
    kept, plain = Counted(model, FrozenFeatures(1 << 20)), Counted(model, None)
    kept.gradients([rows[1], rows[3]])
    batch = kept.batch(rows)
    assert batch.image_keys == (0, 1, 2, 3)
    assert [given is None for given in batch.image_features] == [True, False, True, False]
    assert batch.pixel_values is not None and len(batch.pixel_values) == 2 * 24
    expected = plain.policy(plain.batch(rows))[0]
    torch.testing.assert_close(kept.policy(batch)[0], expected, rtol=0, atol=1e-6)
    assert [len(images) for images in kept.seen] == [2, 2]


def test_a_pack_built_before_its_images_were_known_uses_what_is_known_by_now(model, rows) -> None:
    kept, plain = Counted(model, FrozenFeatures(1 << 20)), Counted(model, None)
    early = kept.batch(rows)
    kept.policy(kept.batch([rows[0], rows[2]]))
    expected = plain.policy(plain.batch(rows))[0]
    torch.testing.assert_close(kept.policy(early)[0], expected, rtol=0, atol=1e-6)
    assert kept.policy.num_vision_passes == 4


def test_a_full_hit_needs_no_pixels_and_outlives_its_eviction(model, rows) -> None:
    kept = Counted(model, FrozenFeatures(2 * FEATURE_BYTES))
    expected = kept.policy(kept.batch(rows[:2]))[0]
    batch = kept.batch(rows[:2])
    assert batch.pixel_values is None
    kept.policy(kept.batch(rows[2:]))
    assert kept.policy.frozen_features.known(0) is None
    assert torch.equal(kept.policy(batch)[0], expected)
    assert kept.policy.num_vision_passes == 4


@pytest.mark.parametrize("images", [0.5, 1, 3])
def test_a_budget_smaller_than_the_images_changes_no_result(model, rows, images: float) -> None:
    kept = Counted(model, FrozenFeatures(int(images * FEATURE_BYTES)))
    plain = Counted(model, None)
    for pair in (rows[:2], rows[2:], rows[1:3], rows[:2]):
        expected = plain.policy(plain.batch(pair))[0]
        torch.testing.assert_close(kept.policy(kept.batch(pair))[0], expected, rtol=0, atol=1e-6)
    assert kept.policy.num_vision_passes > 4


def test_features_of_other_weights_are_never_used_once_forgotten(model, rows) -> None:
    kept = Counted(model, FrozenFeatures(1 << 20))
    before = kept.policy(kept.batch(rows[:1]))[0]
    with torch.no_grad():
        kept.policy.model.base_model.visual.merger.mlp[0].weight.mul_(-1)
    assert torch.equal(kept.policy(kept.batch(rows[:1]))[0], before)
    kept.policy.frozen_features.forget()
    after = kept.policy(kept.batch(rows[:1]))[0]
    assert (after - before).abs().max() > 1e-3
    plain = Counted(kept.policy.model, None)
    assert torch.equal(after, plain.policy(plain.batch(rows[:1]))[0])


def test_images_without_a_key_are_never_kept(model, make_row: MakeRow) -> None:
    kept = Counted(model, FrozenFeatures(1 << 20))
    batch = build_token_batch([make_row(1, (2,)), make_row(2, (2,))], kept.policy.prompt_positions)
    assert torch.equal(kept.policy(batch)[0], kept.policy(batch)[0])
    assert kept.policy.num_vision_passes == 4


def test_a_rank_with_all_features_joins_in_when_another_needs_its_tower(model, rows) -> None:
    answers: list[bool] = []
    others_need = False

    def any_rank(is_due: bool) -> bool:
        answers.append(is_due)
        return is_due or others_need

    kept = Counted(model, FrozenFeatures(1 << 20, any_rank))
    first = kept.policy(kept.batch(rows[:2]))[0]
    kept.policy(kept.batch(rows[:2]))
    assert len(kept.seen) == 1
    others_need = True
    assert torch.equal(kept.policy(kept.batch(rows[:2]))[0], first)
    assert kept.seen[1:] == [[[1, 2, 2]]]
    assert answers == [True, False, False] and kept.policy.num_vision_passes == 2


def test_a_policy_that_keeps_nothing_refuses_a_pack_without_pixels(model, rows) -> None:
    kept, plain = Counted(model, FrozenFeatures(1 << 20)), Counted(model, None)
    kept.policy(kept.batch(rows[:1]))
    with pytest.raises(LearnerError, match="without pixels"):
        plain.policy(kept.batch(rows[:1]))


@pytest.fixture(scope="module")
def processor() -> PromptProcessor:
    return PromptProcessor(resolve_model("tiny"), 28 * 28 * 8)


def test_pixel_values_of_8_bit_patches_are_the_image_processors_to_the_bit(processor) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (56, 112, 3), dtype=np.uint8)
    expected, grid = processor.pixels(Image.fromarray(noise))
    patches, raw_grid = processor.raw_patches(noise)
    assert raw_grid == grid and patches.dtype == np.uint8
    assert patches.nbytes * 8 == expected.nbytes
    made = PatchTable.of(processor).pixel_values(torch.from_numpy(patches))
    assert np.array_equal(made.numpy(), expected)


def test_8_bit_patches_need_a_table(model, rows) -> None:
    plain = Counted(model, None)
    eight_bit = replace(rows[0], pixel_values=np.zeros((24, 3 * 14 * 14), dtype=np.uint8))
    batch = plain.batch([eight_bit])
    with pytest.raises(LearnerError, match="patch table"):
        plain.policy(batch)
    table = PatchTable(torch.linspace(-2, 2, 3 * 256).view(3, 256), 2)
    plain.policy.patch_table = table
    lowest = table.values_CL[:, :1].expand(3, 2 * 14 * 14).reshape(1, -1)
    by_hand = replace(batch, pixel_values=lowest.repeat(24, 1))
    assert torch.equal(plain.policy(batch)[0], plain.policy(by_hand)[0])
