"""The engine under every ZeRO stage: what is not finite, what saves memory, checkpoints."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from scenarios import ONE_ROW, Calls, Outcomes, scenario

from alphadrive.processing import resolve_model
from alphadrive.weights import file_sha256

pytestmark = pytest.mark.e2e

HEALTHY = scenario(
    "healthy", ("export_weights", "before.st"), ("step", (0, 2)), ("export_weights", "after.st")
)
POISONED = [
    scenario(
        f"poisoned_{ranks}_zero_{zero_stage}",
        ("poisoned_gradient", (0, 2)),
        ("poisoned_advantages", (0, 2)),
        ("poisoned_loss", (0, 2)),
        ("export_weights", "before.st"),
        ("step", (0, 2)),
        ("export_weights", "after.st"),
        ranks=ranks,
        learner__zero_stage=zero_stage,
        grpo__max_policy_lag=4,
        **options,
    )
    for ranks, zero_stage, options in [
        (1, 0, {}),
        (1, 1, {"learner__offload_optimizer": True}),
        (2, 1, {}),
        (2, 2, {}),
        (2, 3, {}),
    ]
]


@pytest.mark.parametrize("name", POISONED)
def test_what_is_not_finite_on_one_rank_is_left_out_on_all(
    name: str, outcomes: Outcomes, folder: Path
) -> None:
    for gradient, advantages, loss, *_ in outcomes[name]:
        assert gradient["problem"] == "the gradient is not finite"
        assert advantages["problem"] == "the loss is nan"
        assert loss["problem"] == "the loss is inf"
        for metrics in (gradient, advantages, loss):
            assert not metrics["was_updated"] and metrics["actor/nonfinite_updates"] == 1
    _, _, _, before, step, after = outcomes[name][0]
    assert before == [outcomes[HEALTHY][0][0][0], [0, 3]]
    assert after[1] == [0, 4]
    assert step["actor/nonfinite_updates"] == 0
    # As if they had never been: neither weights nor moments nor the optimizer's step know of them.
    expected, trained = (load_file(folder / each / "after.st") for each in (HEALTHY, name))
    assert max((trained[key] - expected[key]).abs().max() for key in expected) < 1e-5


SHARES = [3, 1]
KL: dict[str, Any] = dict(grpo__kl_coef=0.1, learner__max_tokens_per_microbatch=ONE_ROW)
TWICE: Calls = (("step_of_shares", (0, SHARES)), ("step_of_shares", (1, SHARES)))
WHOLE_REFERENCE = scenario("reference_whole", ("reference", (0, 4)), ("step", (0, 4)), ("step", (1, 4)), **KL)
SPLIT_REFERENCE = scenario(
    "reference_split", ("reference", (0, 4)), *TWICE, ranks=2, learner__zero_stage=3, **KL
)


def test_a_split_reference_gives_what_a_whole_one_gives(outcomes: Outcomes) -> None:
    (whole, *_), first, second = outcomes[WHOLE_REFERENCE][0], *outcomes[SPLIT_REFERENCE]
    for rank in (first, second):
        assert rank[0]["logprobs"] == pytest.approx(whole["logprobs"], abs=1e-5)
        assert whole["held"] / 2 <= rank[0]["held"] < whole["held"] * 0.51


def test_three_microbatches_and_one_make_the_same_step(outcomes: Outcomes) -> None:
    (_, *alone), (_, *first), (_, *second) = outcomes[WHOLE_REFERENCE][0], *outcomes[SPLIT_REFERENCE]
    for ours, theirs, also_theirs in zip(alone, first, second, strict=True):
        for key in ("actor/loss", "actor/kl_loss", "actor/grad_norm"):
            assert theirs[key] == also_theirs[key] == pytest.approx(ours[key], rel=1e-4, abs=1e-9)
    assert alone[1]["actor/kl_loss"] > 1e-6


DECAY = 0.1
"""Biases and norms do not decay: an optimizer that forgot its groups would show."""
RESUMED_STEP: Calls = (("step", (1, 2)), ("export_weights", "weights.st"))


def straight(ranks: int, zero_stage: int) -> str:
    """Two steps with a checkpoint between them."""
    return scenario(
        f"straight_{ranks}_zero_{zero_stage}",
        ("step", (0, 2)),
        ("save_checkpoint", "checkpoint"),
        *RESUMED_STEP,
        ranks=ranks,
        learner__zero_stage=zero_stage,
        learner__weight_decay=DECAY,
    )


def resumed(saved: str, ranks: int, zero_stage: int) -> str:
    """The second of them, from the checkpoint."""
    return scenario(
        f"{saved}_resumed_by_{ranks}",
        ("load_checkpoint", f"../{saved}/checkpoint"),
        *RESUMED_STEP,
        attempt=1,
        ranks=ranks,
        learner__zero_stage=zero_stage,
        learner__weight_decay=DECAY,
    )


ONE, TWO_1, TWO_3 = straight(1, 1), straight(2, 1), straight(2, 3)
SAME_RANKS = [(ONE, resumed(ONE, 1, 1)), (TWO_3, resumed(TWO_3, 2, 3))]
OTHER_RANKS = [(TWO_1, resumed(TWO_1, 1, 1)), (TWO_1, resumed(TWO_1, 1, 2)), (TWO_3, resumed(TWO_3, 1, 3))]


@pytest.mark.parametrize(("saved", "name"), SAME_RANKS)
def test_a_checkpoint_continues_bit_for_bit(saved: str, name: str, outcomes: Outcomes, folder: Path) -> None:
    (straight, *_), (resumed, *_) = outcomes[saved], outcomes[name]
    assert resumed[1]["actor/pg_loss"] == straight[2]["actor/pg_loss"]
    assert resumed[2] == [straight[3][0], [1, 2]]
    assert file_sha256(folder / name / "weights.st") == file_sha256(folder / saved / "weights.st")


@pytest.mark.parametrize(("saved", "name"), OTHER_RANKS)
def test_another_number_of_ranks_continues_as_if_uninterrupted(
    saved: str, name: str, outcomes: Outcomes, folder: Path
) -> None:
    (straight, *_), (resumed, *_) = outcomes[saved], outcomes[name]
    assert resumed[1]["actor/grad_norm"] == pytest.approx(straight[2]["actor/grad_norm"], rel=1e-4)
    before, after = (load_file(folder / each / "weights.st") for each in (saved, name))
    assert max((after[key] - before[key]).abs().max() for key in before) < 1e-5
    assert sorted(path.name for path in (folder / saved).iterdir()) == ["checkpoint", "weights.st"]


OTHER_MODEL = scenario(
    "other_model",
    ("load_checkpoint", f"../{ONE}/checkpoint"),
    ("export_weights", "weights.st"),
    learner__freeze_vision=True,
)
NO_CHECKPOINT = scenario("no_checkpoint", ("load_checkpoint", "nowhere"))


def test_the_optimizer_state_of_another_model_is_refused_before_a_weight_changes(outcomes: Outcomes) -> None:
    ((refused, exported),) = outcomes[OTHER_MODEL]
    assert "CheckpointError" in refused["error"]
    assert "visual.patch_embed.proj.weight" in refused["error"]
    assert exported == [outcomes[HEALTHY][0][0][0], [0, 0]]


def test_a_folder_without_a_checkpoint_is_refused(outcomes: Outcomes) -> None:
    assert "CheckpointError" in outcomes[NO_CHECKPOINT][0][0]["error"]


def lean(name: str, ranks: int, zero_stage: int, **options: bool) -> str:
    """The steps of `straight`, with what saves memory."""
    return scenario(
        name,
        ("step", (0, 2)),
        ("count_layer_forwards", None),
        *RESUMED_STEP,
        ranks=ranks,
        learner__zero_stage=zero_stage,
        learner__weight_decay=DECAY,
        **options,
    )


OFFLOAD = {"learner__offload_optimizer": True}
RECOMPUTE = {"learner__activation_checkpointing": True}
LEAN = [
    (ONE, lean("offloaded", 1, 1, **OFFLOAD), 1),
    (ONE, lean("recomputed", 1, 1, **RECOMPUTE), 2),
    (TWO_3, lean("offloaded_and_recomputed", 2, 3, **OFFLOAD, **RECOMPUTE), 2),
]


@pytest.mark.parametrize(("plain", "name", "forwards"), LEAN)
def test_what_saves_memory_changes_no_update(
    plain: str, name: str, forwards: int, outcomes: Outcomes, folder: Path
) -> None:
    for rank in outcomes[name]:
        assert rank[1] == [forwards, forwards]
    expected, trained = (load_file(folder / each / "weights.st") for each in (plain, name))
    assert max((trained[key] - expected[key]).abs().max() for key in expected) < 1e-6


def test_the_steps_here_change_the_weights(outcomes: Outcomes, folder: Path) -> None:
    shipped = load_file(resolve_model("tiny") / "model.safetensors")
    for name in (ONE, TWO_3):
        trained = load_file(folder / name / "weights.st")
        assert max((trained[key] - shipped[key]).abs().max() for key in trained) > 1e-3


FULL_DISK = [
    scenario(
        f"full_disk_zero_{zero_stage}",
        ("step", (0, 2)),
        ("save_on_full_disk", "checkpoint"),
        ("load_checkpoint", "checkpoint"),
        ("step", (1, 2)),
        ("load_what_others_may_write", "checkpoint"),
        ranks=2,
        learner__zero_stage=zero_stage,
    )
    for zero_stage in (1, 3)
]


@pytest.mark.parametrize("name", FULL_DISK)
def test_a_rank_that_cannot_write_fails_the_save_on_all_and_the_next_one_works(
    name: str, outcomes: Outcomes
) -> None:
    first, last = outcomes[name]
    assert first[1] == "CheckpointWriteError: another rank could not write its share"
    assert last[1] == "CheckpointWriteError: OSError: [Errno 28] No space left on device"
    for rank in (first, last):
        assert rank[2] is None and rank[3]["actor/grad_norm"] > 0


@pytest.mark.parametrize("name", FULL_DISK)
def test_a_checkpoint_that_others_may_write_is_refused_before_it_is_unpickled(
    name: str, outcomes: Outcomes
) -> None:
    for rank in outcomes[name]:
        assert "CheckpointError" in rank[4]["error"] and "may be written by others" in rank[4]["error"]
