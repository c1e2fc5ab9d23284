"""Costs that order errors as they are documented; rates on hand-worked rows."""

import itertools

import pytest

from alphadrive.actions import PATHS, SPEEDS, Plan, parse_plan
from alphadrive.metrics.judging import Judgement
from alphadrive.metrics.planning import planning_metrics
from alphadrive.metrics.safety import INVALID_COST, PATH_COSTS, SPEED_COSTS, plan_cost, severity_cost

PLANS = [Plan(speed, path) for speed in SPEEDS for path in PATHS]


def judged(answer, *acceptable):
    return Judgement(
        plan=parse_plan(answer) if answer else None, acceptable=tuple(parse_plan(plan) for plan in acceptable)
    )


def test_cost_is_zero_for_the_truth_and_positive_up_to_one_for_anything_else():
    for truth, answer in itertools.product(PLANS, PLANS):
        cost = plan_cost(truth, answer)
        assert (cost == 0) == (truth == answer), (truth, answer)
        assert 0 <= cost <= 1


def test_accelerating_where_one_must_stop_is_the_worst_and_only_it():
    worst = [(truth, answer) for truth in SPEEDS for answer in SPEEDS if SPEED_COSTS[truth][answer] == 1]
    assert worst == [("STOP", "ACCELERATE")]
    assert max(cost for row in PATH_COSTS.values() for cost in row.values()) < 1


def test_too_fast_costs_more_than_too_slow():
    by_speed = ("STOP", "DECELERATE", "KEEP", "ACCELERATE")
    for slow, fast in itertools.combinations(by_speed, 2):
        assert SPEED_COSTS[slow][fast] > SPEED_COSTS[fast][slow]


def test_path_costs_are_the_same_mirrored():
    mirrored = {
        path: path.replace("LEFT", "?").replace("RIGHT", "LEFT").replace("?", "RIGHT") for path in PATHS
    }
    for truth, answer in itertools.product(PATHS, PATHS):
        assert PATH_COSTS[truth][answer] == PATH_COSTS[mirrored[truth]][mirrored[answer]]


def test_cost_of_an_answer_is_that_to_the_nearest_acceptable_plan():
    assert severity_cost(judged("KEEP, STRAIGHT", "STOP, STRAIGHT", "DECELERATE, STRAIGHT")) == 0.6
    assert severity_cost(judged("STOP, LEFT_TURN", "STOP, STRAIGHT", "STOP, LEFT_TURN")) == 0
    assert severity_cost(judged("DECELERATE, RIGHT_TURN", "STOP, LEFT_TURN")) == 0.9
    assert severity_cost(judged("", "KEEP, STRAIGHT")) == INVALID_COST


def test_wrong_side_counts_only_rows_with_one_side():
    rows = [
        judged("KEEP, RIGHT_CHANGE", "KEEP, LEFT_TURN"),  # wrong side
        judged("STOP, STRAIGHT", "KEEP, LEFT_TURN", "KEEP, LEFT_CHANGE"),  # wrong, but no side
        judged("", "KEEP, RIGHT_TURN"),  # invalid
        judged("KEEP, RIGHT_TURN", "KEEP, RIGHT_TURN"),
        judged("KEEP, LEFT_TURN", "KEEP, STRAIGHT"),  # not a row with one side
        judged("KEEP, LEFT_TURN", "KEEP, RIGHT_TURN", "KEEP, STRAIGHT"),  # neither is this
    ]
    metrics = planning_metrics(rows)
    assert metrics.wrong_side_rate == 1 / 4
    assert metrics.severity_cost == pytest.approx((0.9 + 0.3 + 1.0 + 0.0 + 0.8 + 0.8) / 6)
    assert planning_metrics(rows[4:]).wrong_side_rate is None
