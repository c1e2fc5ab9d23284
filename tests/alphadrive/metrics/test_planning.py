"""The strict figures of a hand-worked confusion."""

import pytest

from alphadrive.actions import Plan
from alphadrive.errors import DataError
from alphadrive.metrics.judging import judge
from alphadrive.metrics.planning import majority_baseline, planning_metrics
from alphadrive.types import DrivingQuery


def query(*plans, number=0):
    return DrivingQuery(
        query_id=f"q{number}", row=number, speed_mps=8.0, navigation="go straight", plans=tuple(plans)
    )


def said(plan):
    return f"<think> so </think> <answer> {plan} </answer>"


ROWS = [
    # (acceptable plans, answer)                                   credited truth        verdict
    (("KEEP, STRAIGHT",), said("KEEP, STRAIGHT")),  # KEEP, STRAIGHT        right
    (("KEEP, STRAIGHT", "DECELERATE, STRAIGHT"), said("DECELERATE, STRAIGHT")),  # DECELERATE, STRAIGHT right
    (("STOP, STRAIGHT",), said("KEEP, STRAIGHT")),  # STOP, STRAIGHT        missed brake
    (
        ("STOP, STRAIGHT", "DECELERATE, STRAIGHT"),
        said("DECELERATE, LEFT_TURN"),
    ),  # STOP, STRAIGHT        wrong
    (("ACCELERATE, LEFT_TURN",), said("ACCELERATE, STRAIGHT")),  # ACCELERATE, LEFT_TURN wrong path
    (("KEEP, STRAIGHT",), "KEEP, STRAIGHT"),  # KEEP, STRAIGHT        invalid
    (("KEEP, STRAIGHT",), said("STOP, STRAIGHT")),  # KEEP, STRAIGHT        false brake
    (("STOP, STRAIGHT",), said("STOP, STRAIGHT")),  # STOP, STRAIGHT        right
]


@pytest.fixture(scope="module")
def metrics():
    return planning_metrics([judge(query(*plans), text) for plans, text in ROWS])


def test_shares(metrics):
    assert metrics.num_rows == 8
    assert metrics.planning_accuracy == 3 / 8
    assert metrics.exact_match == 2 / 8
    assert metrics.invalid_rate == 1 / 8
    assert metrics.speed_accuracy == 4 / 8  # rows 0, 1, 4, 7
    assert metrics.path_accuracy == 5 / 8  # rows 0, 1, 2, 6, 7
    assert metrics.missed_brake_rate == 1 / 3  # rows 2, 3, 7 must brake; row 2 does not
    assert metrics.false_brake_rate == 1 / 4  # rows 0, 4, 5, 6 must not; row 6 does


def test_per_action_confusion(metrics):
    def values(word):
        score = metrics.actions[word]
        return score.precision, score.recall, score.f1, score.support, score.num_predicted

    assert values("KEEP") == (1 / 2, 1 / 3, 2 / 5, 3, 2)
    assert values("STOP") == (1 / 2, 1 / 3, 2 / 5, 3, 2)
    assert values("DECELERATE") == (1 / 2, 1.0, 2 / 3, 1, 2)
    assert values("ACCELERATE") == (1.0, 1.0, 1.0, 1, 1)
    assert values("STRAIGHT") == (5 / 6, 5 / 7, 10 / 13, 7, 6)
    assert values("LEFT_TURN") == (0.0, 0.0, 0.0, 1, 1)
    assert values("RIGHT_CHANGE") == (0.0, 0.0, 0.0, 0, 0)


def test_confusion_counts_every_row_once(metrics):
    assert metrics.confusion["speed"] == {
        "KEEP": {"KEEP": 1, "ACCELERATE": 0, "DECELERATE": 0, "STOP": 1, "invalid": 1},
        "ACCELERATE": {"KEEP": 0, "ACCELERATE": 1, "DECELERATE": 0, "STOP": 0, "invalid": 0},
        "DECELERATE": {"KEEP": 0, "ACCELERATE": 0, "DECELERATE": 1, "STOP": 0, "invalid": 0},
        "STOP": {"KEEP": 1, "ACCELERATE": 0, "DECELERATE": 1, "STOP": 1, "invalid": 0},
    }
    path = metrics.confusion["path"]
    assert path["STRAIGHT"]["STRAIGHT"] == 5
    assert path["STRAIGHT"]["LEFT_TURN"] == 1
    assert path["STRAIGHT"]["invalid"] == 1
    assert path["LEFT_TURN"]["STRAIGHT"] == 1
    assert sum(count for row in path.values() for count in row.values()) == 8


def test_columns_of_the_paper_merge_turns_and_changes_of_one_side():
    rows = [
        ("KEEP, LEFT_TURN", "KEEP, LEFT_CHANGE"),  # wrong plan, right column
        ("KEEP, LEFT_CHANGE", "KEEP, RIGHT_TURN"),
        ("KEEP, RIGHT_TURN", "KEEP, RIGHT_TURN"),
        ("STOP, STRAIGHT", "KEEP, STRAIGHT"),
    ]
    found = planning_metrics([judge(query(truth), said(answer)) for truth, answer in rows])
    columns = found.paper_columns
    assert list(columns) == ["straight", "left", "right", "keep", "acc", "dec", "stop"]
    assert columns["left"].f1 == 2 / 3  # 1 hit, 1 predicted, 2 true
    assert columns["right"].f1 == 2 / 3  # 1 hit, 2 predicted, 1 true
    assert (columns["straight"].f1, columns["keep"].f1, columns["stop"].f1) == (1.0, 6 / 7, 0.0)
    assert found.planning_accuracy == 1 / 4


def test_macro_f1_leaves_out_words_that_never_occur(metrics):
    speed = (2 / 5 + 2 / 5 + 2 / 3 + 1) / 4
    path = (10 / 13 + 0) / 2
    assert metrics.speed_macro_f1 == pytest.approx(speed)
    assert metrics.path_macro_f1 == pytest.approx(path)
    assert metrics.macro_f1 == pytest.approx((4 * speed + 2 * path) / 6)


def test_interval_surrounds_the_accuracy(metrics):
    low, high = metrics.planning_accuracy_ci95
    assert 0 <= low < metrics.planning_accuracy < high <= 1


def test_listing_every_action_scores_nothing():
    text = said(
        "KEEP, ACCELERATE, DECELERATE, STOP, STRAIGHT, RIGHT_CHANGE, LEFT_CHANGE, RIGHT_TURN, LEFT_TURN"
    )
    metrics = planning_metrics([judge(query("KEEP, STRAIGHT"), text)])
    assert (metrics.planning_accuracy, metrics.invalid_rate, metrics.macro_f1) == (0.0, 1.0, 0.0)


def test_brake_rates_without_such_rows_are_none():
    metrics = planning_metrics([judge(query("KEEP, STRAIGHT", "STOP, STRAIGHT"), said("STOP, STRAIGHT"))])
    assert metrics.missed_brake_rate is None
    assert metrics.false_brake_rate is None


def test_no_rows_and_unreadable_truth_are_errors():
    with pytest.raises(DataError, match="empty"):
        planning_metrics([])
    with pytest.raises(DataError, match="query q0: plans"):
        judge(query("FLY, STRAIGHT"), said("KEEP, STRAIGHT"))


def test_majority_is_the_plan_acceptable_most_often():
    queries = [
        query("KEEP, STRAIGHT"),
        query("STOP, STRAIGHT", "KEEP, STRAIGHT"),
        query("STOP, STRAIGHT"),
        query("DECELERATE, STRAIGHT", "STOP, STRAIGHT"),
    ]
    assert majority_baseline(queries) == (Plan("STOP", "STRAIGHT"), 0.75)
