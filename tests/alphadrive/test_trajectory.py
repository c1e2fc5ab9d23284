"""The stated trajectory: written, read back, refused; in prompts, targets and the check of a dataset."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alphadrive.actions import is_well_formed, parse_answer, reasoning_of
from alphadrive.prompts import answer_text, planning_prompt
from alphadrive.trajectory import parse_trajectory, read_waypoints, trajectory_text, waypoints_problem

POINTS = tuple((4.0 * i, 0.25 * i) for i in range(1, 7))
_CM = st.integers(-99999, 99999).map(lambda hundredths: hundredths / 100)


@given(st.lists(st.tuples(_CM, _CM), min_size=6, max_size=6).map(tuple))
def test_what_is_written_is_read_back(points):
    text = answer_text("the road is clear", "KEEP, STRAIGHT", points)
    assert parse_trajectory(text) == points
    assert is_well_formed(text)
    assert (str(parse_answer(text)), reasoning_of(text)) == ("KEEP, STRAIGHT", "the road is clear")


@pytest.mark.parametrize(
    "content",
    ["", "(1, 2)", "(1, 2) " * 5, "(1, 2) " * 7, "(1, 2) " * 5 + "(1 2)", "(1e3, 2) " * 6, "(nan, 0) " * 6,
     "(1234, 0) " * 6, "(1, 2) " * 6 + "x", "(\u0661, 2) " * 6],
)  # fmt: skip
def test_what_is_no_trajectory_is_not_read_and_spoils_the_form(content):
    text = f"<think> a </think> <trajectory> {content}</trajectory> <answer> KEEP, STRAIGHT </answer>"
    assert read_waypoints(content) is None
    assert parse_trajectory(text) is None
    assert not is_well_formed(text)


def test_two_trajectories_are_none():
    block = f"<trajectory> {trajectory_text(POINTS)} </trajectory>"
    assert parse_trajectory(block) == POINTS
    assert parse_trajectory(block + block) is None


def test_the_prompt_asks_for_it_only_when_told_to():
    plain, more = planning_prompt(8.0, "go"), planning_prompt(8.0, "go", with_trajectory=True)
    assert more.startswith(plain) and "<trajectory>" in more and "<trajectory>" not in plain


@pytest.mark.parametrize("points", [None, (), POINTS[:5]])
def test_waypoints_that_are_no_target(points):
    assert "expected 6" in waypoints_problem(points)


@pytest.fixture
def scenes(tmp_path):
    from alphadrive.data.parquet import write_records
    from alphadrive.world.dataset import synthesize

    records = [dataclasses.replace(record, waypoints=POINTS) for record in synthesize(3, 0, "train")]
    write_records(records, tmp_path / "whole")
    records[1] = dataclasses.replace(records[1], waypoints=None)
    write_records(records, tmp_path / "gap")
    return tmp_path


def test_a_row_without_waypoints_is_refused_before_the_start_where_they_are_asked_for(scenes, monkeypatch):
    from alphadrive.dataset_check import check_dataset
    from alphadrive.errors import DataError
    from alphadrive.model_folder import resolve_model

    monkeypatch.setenv("XDG_CACHE_HOME", str(scenes / "cache"))
    model = resolve_model("tiny")
    asked = {"max_pixels": 25088, "with_trajectory": True}
    plain = check_dataset(scenes / "gap", model, max_pixels=25088)
    whole = check_dataset(scenes / "whole", model, **asked)
    assert whole.longest_prompt > plain.longest_prompt
    assert whole.longest_sample - whole.longest_prompt > plain.longest_sample - plain.longest_prompt
    with pytest.raises(DataError, match=r"part-00000\.parquet: row 1: waypoints: got none, expected 6"):
        check_dataset(scenes / "gap", model, **asked)


def test_a_query_carries_the_waypoints_and_sft_teaches_them(scenes):
    pytest.importorskip("torch")
    from alphadrive.data.parquet import DrivingDataset
    from alphadrive.errors import DataError
    from alphadrive.model_folder import resolve_model
    from alphadrive.processing import PromptProcessor
    from learner.rows import RowReader

    query = DrivingDataset(scenes / "whole").query(0)
    assert query.waypoints == POINTS
    processor = PromptProcessor(resolve_model("tiny"), 25088, with_trajectory=True)
    target = RowReader(scenes / "whole", processor).target(0, "teacher")
    text = processor.tokenizer.decode(target.completion_ids[:-1])
    assert parse_trajectory(text) == POINTS
    assert is_well_formed(text)
    assert "<trajectory>" in processor.tokenizer.decode(target.prompt_ids)
    with pytest.raises(DataError, match="waypoints: got none"):
        RowReader(scenes / "gap", processor).target(1, "teacher")
