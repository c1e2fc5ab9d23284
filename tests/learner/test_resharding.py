"""Which checkpoint a learner takes, and what it says about one that it cannot take."""

from dataclasses import replace
from pathlib import Path

import pytest

from alphadrive.errors import CheckpointError
from learner.resharding import LearnerShape, needs_conversion

SHAPE = LearnerShape(
    num_ranks=2,
    zero_stage=1,
    dtype="float32",
    parameters={"embed.weight": [64, 32], "norm.weight": [32], "head.weight": [64, 32]},
    frozen=["norm.weight"],
)
FOLDER = Path("checkpoints/step_000002")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, False),
        ({"num_ranks": 1}, True),
        ({"num_ranks": 3}, True),
        ({"zero_stage": 2}, True),
    ],
)
def test_only_another_number_of_ranks_or_split_needs_a_conversion(changes, expected) -> None:
    assert needs_conversion(SHAPE, replace(SHAPE, **changes), FOLDER) is expected


def test_without_zero_every_rank_holds_all_and_nothing_is_converted() -> None:
    saved = replace(SHAPE, zero_stage=0)
    assert not needs_conversion(saved, replace(saved, num_ranks=5), FOLDER)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"parameters": {"embed.weight": [64, 32], "norm.weight": [48], "head.weight": [64, 48]}},
            r"norm.weight is \[32\] in the checkpoint, \[48\] here",
        ),
        (
            {"parameters": {**SHAPE.parameters, "lora.weight": [8, 32]}},
            r"lora.weight is \[8, 32\] here, the checkpoint has no such tensor",
        ),
        (
            {"parameters": {"embed.weight": [64, 32], "norm.weight": [32]}},
            r"head.weight is \[64, 32\] in the checkpoint, this model has no such tensor",
        ),
        ({"frozen": []}, r"norm.weight \[32\] was frozen by the checkpoint's learner, is trained here"),
        (
            {"frozen": ["norm.weight", "head.weight"]},
            r"head.weight \[64, 32\] was trained by the checkpoint's learner, is frozen here",
        ),
        ({"dtype": "bfloat16"}, "model.dtype=float32, this run has bfloat16"),
        ({"zero_stage": 3}, "learner.zero_stage=1, this run has 3"),
        ({"zero_stage": 0}, "learner.zero_stage=1, this run has 0"),
    ],
)
def test_a_checkpoint_of_another_learner_is_refused_by_name(changes, message) -> None:
    with pytest.raises(CheckpointError, match=message) as raised:
        needs_conversion(SHAPE, replace(SHAPE, **changes), FOLDER)
    assert str(FOLDER) in str(raised.value)


def test_a_shape_comes_back_as_it_was_written(tmp_path: Path) -> None:
    SHAPE.write(tmp_path)
    assert LearnerShape.read(tmp_path) == SHAPE


@pytest.mark.parametrize("text", [None, "", '{"num_ranks": 2}', "[]"])
def test_a_shape_that_is_missing_or_cut_is_an_error_with_its_file(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "learner.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"learner\.json"):
        LearnerShape.read(tmp_path)
