"""Whole updates through DeepSpeed, in processes of their own, against plain torch."""

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_training import shipped_weights, train_plainly
from safetensors.torch import load_file
from scenarios import ALL_ROWS, LEARNING_RATE, MAX_PIXELS, ONE_ROW, Calls, Outcomes, saved_name, scenario

from alphadrive.processing import PromptProcessor, resolve_model
from alphadrive.weights import file_sha256

pytestmark = pytest.mark.e2e

VISION_PASSES = "perf/vision_passes_per_query"


@pytest.fixture(scope="module")
def reference(dataset: Path) -> dict[str, torch.Tensor]:
    """The weights after three steps of plain torch, under the names of a checkpoint."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(resolve_model("tiny"), dtype=torch.float32)
    train_plainly(model, dataset)
    weights = dict(model.state_dict())
    weights.pop("lm_head.weight")
    return {saved_name(name): tensor for name, tensor in weights.items()}


THREE_STEPS: Calls = (
    ("step", (0, 4)),
    ("gradient", "gradient.st"),
    ("step", (1, 4)),
    ("step", (2, 4)),
    ("export_weights", "weights.st"),
)
CUTS = [
    scenario(
        f"{ranks}_ranks_zero_{zero_stage}_{size}_tokens",
        *THREE_STEPS,
        ranks=ranks,
        learner__zero_stage=zero_stage,
        learner__max_tokens_per_microbatch=size,
    )
    for ranks, zero_stage, size in [
        (1, 0, 8192),
        *((1, zero_stage, 8192) for zero_stage in (1, 2, 3)),
        *((1, zero_stage, ONE_ROW) for zero_stage in (1, 2, 3)),
        *((2, zero_stage, ONE_ROW) for zero_stage in (1, 2, 3)),
    ]
]


@pytest.mark.parametrize("name", CUTS)
def test_three_steps_equal_plain_torch_however_they_are_cut(
    name: str, outcomes: Outcomes, folder: Path, reference: dict[str, torch.Tensor]
) -> None:
    path = folder / name / "weights.st"
    exported = load_file(path)
    assert set(exported) == set(reference)
    differences = torch.cat([(exported[key] - reference[key]).abs().flatten() for key in sorted(exported)])
    # Adam divides by |gradient|: where that is near 0, rounding may turn a step.
    assert (differences < 1e-5).float().mean() > 0.999 and differences.max() < LEARNING_RATE
    shipped = shipped_weights()
    changes = torch.cat([(reference[key] - shipped[key]).flatten() for key in sorted(exported)])
    assert differences.norm() / changes.norm() <= 1e-3
    first, *others = outcomes[name]
    assert first[-1] == [file_sha256(path), [0, 3]]
    for rank in others:
        assert rank[-1] is None
        for key in ("actor/pg_loss", "actor/grad_norm", "actor/entropy", "critic/rewards/mean"):
            for ours, theirs in zip((rank[0], *rank[2:4]), (first[0], *first[2:4]), strict=True):
                assert ours[key] == theirs[key]


WHOLE, *CUT = [name for name in CUTS if "zero_0" not in name]


@pytest.mark.parametrize("name", CUT)
def test_the_gradient_is_the_same_however_a_step_is_cut(name: str, outcomes: Outcomes, folder: Path) -> None:
    whole, cut = (load_file(folder / each / "gradient.st") for each in (WHOLE, name))
    assert set(whole) == set(cut)
    size = sum(tensor.square().sum() for tensor in whole.values()).sqrt()
    difference = sum((cut[key] - whole[key]).square().sum() for key in whole).sqrt()
    assert size == pytest.approx(outcomes[WHOLE][0][0]["actor/grad_norm"], rel=1e-5)
    assert difference / size <= 1e-6


UNEVEN: Calls = (("step", (0, 3)), ("step", (1, 1)), ("score", 2))
ALONE = scenario("uneven_alone", *UNEVEN)
TOGETHER = [
    scenario(
        f"uneven_zero_{zero_stage}",
        *UNEVEN,
        ranks=2,
        learner__max_tokens_per_microbatch=ONE_ROW,
        learner__zero_stage=zero_stage,
    )
    for zero_stage in (1, 3)
]


@pytest.mark.parametrize("name", TOGETHER)
def test_ranks_may_hold_different_numbers_of_groups(name: str, outcomes: Outcomes) -> None:
    (alone,), (first, second) = outcomes[ALONE], outcomes[name]
    for step in (0, 1):
        for key in ("actor/pg_loss", "actor/grad_norm", "response_length/mean"):
            assert first[step][key] == pytest.approx(alone[step][key], rel=1e-3)
    for ours, theirs in zip(alone[2], first[2], strict=True):
        assert [len(answer) for answer in ours] == [len(answer) for answer in theirs]
        assert list(chain(*ours)) == pytest.approx(list(chain(*theirs)), abs=1e-2)
    assert len(second[2]) == 1


UNTRAINED = scenario(
    "untrained", ("export_weights", "a.st"), ("export_weights", "b.st"), ("save_model", "model")
)


def test_export_is_reproducible_and_named_like_a_model_folder(outcomes: Outcomes, folder: Path) -> None:
    ((first, second, _),) = outcomes[UNTRAINED]
    assert first == second == [file_sha256(folder / UNTRAINED / "model" / "model.safetensors"), [0, 0]]
    shipped, exported = shipped_weights(), load_file(folder / UNTRAINED / "a.st")
    assert set(exported) == set(shipped) - {"lm_head.weight"}
    assert all(torch.equal(tensor, shipped[name]) for name, tensor in exported.items())


TRAINED = scenario("trained", ("step", (0, 2)), ("export_weights", "a.st"), ("save_model", "model"))


def test_a_saved_model_loads_with_the_weights_that_were_exported(outcomes: Outcomes, folder: Path) -> None:
    from transformers import AutoModelForImageTextToText

    saved = folder / TRAINED / "model"
    assert resolve_model(str(saved)) == saved
    model = AutoModelForImageTextToText.from_pretrained(saved)
    loaded = {saved_name(name): tensor for name, tensor in model.state_dict().items()}
    assert torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)
    for name, tensor in load_file(folder / TRAINED / "a.st").items():
        assert torch.equal(loaded[name], tensor), name
    PromptProcessor(saved, MAX_PIXELS)


HALF = scenario(
    "bfloat16",
    ("step", (0, 2)),
    ("step", (1, 2)),
    ("export_weights", "weights.st"),
    ("optimizer_dtypes", None),
    model__dtype="bfloat16",
)


def test_bfloat16_keeps_float32_masters_and_exports_bfloat16(outcomes: Outcomes, folder: Path) -> None:
    ((first, second, _, optimizer_dtypes),) = outcomes[HALF]
    assert optimizer_dtypes == ["torch.float32"]
    assert first["actor/grad_norm"] > 0 and second["actor/grad_norm"] > 0
    assert {tensor.dtype for tensor in load_file(folder / HALF / "weights.st").values()} == {torch.bfloat16}


REFUSED = scenario(
    "refused",
    ("step", (1, 2)),
    ("export_weights", "weights.st"),
    ("step", (0, 2)),
    ("step", (0, 2)),
    ("step", (0, 2)),
)


def test_groups_outside_the_lag_bound_are_refused_and_change_nothing(outcomes: Outcomes) -> None:
    ((future, exported, fresh, one_behind, two_behind),) = outcomes[REFUSED]
    assert "PolicyLagError" in future["error"] and "does not exist yet" in future["error"]
    assert exported == [outcomes[UNTRAINED][0][0][0], [0, 0]]
    assert [fresh["training/policy_lag/max"], one_behind["training/policy_lag/max"]] == [0, 1]
    assert "PolicyLagError" in two_behind["error"] and "max_policy_lag" in two_behind["error"]


ANCHORED = scenario("anchored", ("step", (0, 2)), ("step", (1, 2)), grpo__kl_coef=0.1)


def test_the_kl_to_the_start_is_zero_at_first_and_then_grows(outcomes: Outcomes) -> None:
    ((first, second),) = outcomes[ANCHORED]
    assert first["actor/kl_loss"] == pytest.approx(0.0, abs=1e-9)
    assert second["actor/kl_loss"] > 1e-6
    # The reference's tower never changes: its features are kept, the policy's are not.
    assert [first[VISION_PASSES], second[VISION_PASSES]] == [2.0, 1.0]


FROZEN = scenario("frozen", ("step", (0, 2)), ("export_weights", "weights.st"), learner__freeze_vision=True)


def test_frozen_vision_stays_and_the_rest_moves(outcomes: Outcomes, folder: Path) -> None:
    assert outcomes[FROZEN][0][0]["actor/grad_norm"] > 0
    shipped, exported = shipped_weights(), load_file(folder / FROZEN / "weights.st")
    has_moved = {name: not torch.equal(tensor, shipped[name]) for name, tensor in exported.items()}
    assert not any(moved for name, moved in has_moved.items() if name.startswith("visual."))
    assert any(has_moved.values())


def frozen(name: str, ranks: int = 1, **options: Any) -> str:
    calls: Calls = (("step", (0, 1)), ("step", (1, 2)), ("step", (2, 3)), ("export_weights", "weights.st"))
    if not options.get("learner__vision_cache_bytes"):
        calls += (("save_checkpoint", "c"), ("load_checkpoint", "c"), ("step", (3, 3)))
    shape = {"learner__zero_stage": 3 if ranks > 1 else 1, "learner__max_tokens_per_microbatch": ONE_ROW}
    return scenario(f"{name}_{ranks}", *calls, ranks=ranks, learner__freeze_vision=True, **shape, **options)


@pytest.mark.parametrize(
    ("kept", "again", "passes"),
    [
        # Each step trains on the rows of the one before and a new one.
        (frozen("kept"), frozen("again", learner__vision_cache_bytes=1), [1, 1 / 2, 1 / 3, 1]),
        # The second rank fills up with row 0, then has row 1: only the first has what its step needs.
        (frozen("kept", 2), frozen("again", 2, learner__vision_cache_bytes=1), [2, 1 / 2, 1 / 3, 4 / 3]),
        (frozen("anchored", grpo__kl_coef=0.1), None, [1, 1 / 2, 1 / 3, 2]),
        (frozen("anchored", 2, grpo__kl_coef=0.1), None, [2, 1 / 2, 1 / 3, 8 / 3]),
    ],
)
def test_features_kept_of_a_frozen_tower_change_nothing(
    kept: str, again: str | None, passes: list[float], outcomes: Outcomes, folder: Path
) -> None:
    rank = outcomes[kept][0]
    assert [metrics[VISION_PASSES] for metrics in (*rank[:3], rank[-1])] == pytest.approx(passes)
    assert [metrics["perf/image_cache_hit_share"] for metrics in rank[:3]] == pytest.approx([0, 0, 0])
    assert all(0 <= metrics["perf/data_wait_share"] <= 1 for metrics in rank[:3])
    if again is not None:
        assert outcomes[again][0][2][VISION_PASSES] >= 1
        exported, expected = (load_file(folder / name / "weights.st") for name in (kept, again))
        assert all(torch.equal(exported[key], expected[key]) for key in expected)


SFT_ALONE = scenario(
    "sft_alone", *[("sft", ALL_ROWS)] * 4, stage="sft", learner__max_tokens_per_microbatch=8192
)
SFT_CUT = scenario(
    "sft_cut", *[("sft", ALL_ROWS)] * 2, stage="sft", learner__max_tokens_per_microbatch=4 * ONE_ROW
)
SFT_TOGETHER = scenario(
    "sft_2",
    *[("sft", ALL_ROWS)] * 2,
    stage="sft",
    learner__max_tokens_per_microbatch=2 * ONE_ROW,
    ranks=2,
)


def test_sft_learns(outcomes: Outcomes) -> None:
    losses = [metrics["sft/loss"] for metrics in outcomes[SFT_ALONE][0]]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("name", [SFT_CUT, SFT_TOGETHER])
def test_sft_is_the_same_however_a_batch_is_cut(name: str, outcomes: Outcomes) -> None:
    for step in (0, 1):
        for key in ("sft/loss", "sft/grad_norm", "response_length/mean"):
            assert outcomes[name][0][step][key] == pytest.approx(outcomes[SFT_ALONE][0][step][key], rel=1e-3)
