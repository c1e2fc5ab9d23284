"""Planning metrics of a hand-worked confusion; bootstrap against numbers that can be checked."""

import math

import numpy as np
import pytest

from alphadrive.actions import Plan
from alphadrive.errors import DataError
from alphadrive.metrics import (
    bootstrap_interval,
    judge,
    majority_baseline,
    paired_difference,
    planning_metrics,
    variety_metrics,
)
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
    return planning_metrics([(query(*plans), text) for plans, text in ROWS])


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
    metrics = planning_metrics([(query("KEEP, STRAIGHT"), text)])
    assert (metrics.planning_accuracy, metrics.invalid_rate, metrics.macro_f1) == (0.0, 1.0, 0.0)


def test_brake_rates_without_such_rows_are_none():
    metrics = planning_metrics([(query("KEEP, STRAIGHT", "STOP, STRAIGHT"), said("STOP, STRAIGHT"))])
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


def test_bootstrap_interval_of_a_share_is_close_to_the_normal_one():
    values = [1.0] * 700 + [0.0] * 300
    low, high = bootstrap_interval(values)
    half = 1.96 * math.sqrt(0.7 * 0.3 / 1000)
    assert (low, high) == pytest.approx((0.7 - half, 0.7 + half), abs=2e-3)
    assert bootstrap_interval(values) == (low, high)


def test_bootstrap_draws_from_its_seed():
    values = np.random.default_rng(0).normal(size=40).tolist()
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)


def test_bootstrap_agrees_with_drawing_rows_one_by_one():
    values = np.random.default_rng(3).normal(size=50)
    rows = np.random.default_rng(4).integers(0, 50, size=(20_000, 50))
    expected = np.quantile(values[rows].mean(axis=1), [0.025, 0.975])
    assert bootstrap_interval(values.tolist()) == pytest.approx(expected.tolist(), abs=0.01)


def test_bootstrap_of_equal_values_has_no_width():
    assert bootstrap_interval([0.25] * 9) == (0.25, 0.25)
    with pytest.raises(ValueError, match="no values"):
        bootstrap_interval([])


def test_paired_difference_is_narrower_than_the_unpaired_one():
    before = [1.0] * 500 + [0.0] * 500
    after = [1.0] * 600 + [0.0] * 400
    gain, (low, high) = paired_difference(before, after)
    assert gain == pytest.approx(0.1)
    half = 1.96 * math.sqrt(0.1 * 0.9 / 1000)  # 100 rows of 1000 differ, all by +1
    assert (low, high) == pytest.approx((0.1 - half, 0.1 + half), abs=2e-3)
    with pytest.raises(ValueError, match="longer"):
        paired_difference([1.0], [1.0, 0.0])


def test_variety_of_samples():
    two_ways = query("KEEP, STRAIGHT", "DECELERATE, STRAIGHT")
    samples = [
        (two_ways, [said("KEEP, STRAIGHT"), said("DECELERATE, STRAIGHT"), said("KEEP, STRAIGHT"), "?"]),
        (query("STOP, STRAIGHT"), [said("KEEP, STRAIGHT")] * 3 + [said("KEEP, LEFT_TURN")]),
    ]
    variety = variety_metrics(samples)
    assert (variety.num_samples, variety.pass_at_k) == (4, 0.5)
    assert (variety.sample_accuracy, variety.invalid_rate) == (3 / 8, 1 / 8)
    assert (variety.distinct_plans, variety.distinct_acceptable) == (2.0, 1.0)
