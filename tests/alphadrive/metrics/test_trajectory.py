"""Stated trajectories in an evaluation."""

import pytest

from alphadrive.metrics.trajectory import trajectory_metrics
from alphadrive.prompts import answer_text
from alphadrive.types import DrivingQuery

DRIVEN = tuple((4.0 * step, 0.0) for step in range(1, 7))


def query(waypoints: tuple[tuple[float, ...], ...] | None = DRIVEN) -> DrivingQuery:
    return DrivingQuery(
        query_id="q", row=0, speed_mps=8.0, navigation="go", plans=("KEEP, STRAIGHT",), waypoints=waypoints
    )


def stated(shift_m: float) -> str:
    return answer_text("clear", "KEEP, STRAIGHT", [(x, y + shift_m) for x, y in DRIVEN])


def test_ade_is_over_what_can_be_read_and_the_share_says_how_much_that_is() -> None:
    unreadable = "<think> a </think> <trajectory> (1, 2) </trajectory> <answer> KEEP, STRAIGHT </answer>"
    answers = [
        (query(), stated(1.0)),
        (query(), stated(2.0)),
        (query(), unreadable),
        (query(None), stated(9)),
    ]
    figures = trajectory_metrics(answers)
    assert figures is not None
    assert (figures.num_rows, figures.stated_share) == (3, pytest.approx(2 / 3))
    assert figures.ade_m == pytest.approx(1.5)


def test_there_is_no_figure_where_nobody_speaks_of_a_trajectory() -> None:
    plain = answer_text("clear", "KEEP, STRAIGHT")
    assert trajectory_metrics([(query(), plain)]) is None
    assert trajectory_metrics([(query(None), stated(1.0))]) is None
    unreadable = trajectory_metrics([(query(), "<trajectory> x </trajectory>")])
    assert unreadable is not None and (unreadable.stated_share, unreadable.ade_m) == (0.0, None)
