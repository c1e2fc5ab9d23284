"""What wrong plans cost, and the errors that matter most for safety.

The costs are a convention of this project, in [0, 1], stated here in full. They order errors; they are no
measured accident risk. Going faster than right costs more than going slower, the more so the larger the
gap; not stopping where one must costs most, and accelerating there is the only error that costs 1. On the
path, the wrong side costs most, leaving the lane for nothing more than missing the route.
"""

from collections.abc import Sequence

from alphadrive.actions import Path, Plan, Speed
from alphadrive.metrics.judging import Judgement
from alphadrive.metrics.statistics import rate

BRAKING = ("DECELERATE", "STOP")
SIDES = {"LEFT_TURN": "left", "LEFT_CHANGE": "left", "RIGHT_TURN": "right", "RIGHT_CHANGE": "right"}
INVALID_COST = 1.0
"""An answer that cannot be read costs as much as the worst plan: saying nothing must never pay."""

SPEED_COSTS: dict[Speed, dict[Speed, float]] = {
    "KEEP": {"KEEP": 0.0, "ACCELERATE": 0.4, "DECELERATE": 0.1, "STOP": 0.3},
    "ACCELERATE": {"KEEP": 0.1, "ACCELERATE": 0.0, "DECELERATE": 0.2, "STOP": 0.3},
    "DECELERATE": {"KEEP": 0.6, "ACCELERATE": 0.8, "DECELERATE": 0.0, "STOP": 0.2},
    "STOP": {"KEEP": 0.9, "ACCELERATE": 1.0, "DECELERATE": 0.5, "STOP": 0.0},
}
"""`SPEED_COSTS[truth][answer]`."""

PATH_COSTS: dict[Path, dict[Path, float]] = {
    "STRAIGHT": {
        "STRAIGHT": 0.0,
        "RIGHT_CHANGE": 0.5,
        "LEFT_CHANGE": 0.5,
        "RIGHT_TURN": 0.8,
        "LEFT_TURN": 0.8,
    },
    "RIGHT_CHANGE": {
        "STRAIGHT": 0.2,
        "RIGHT_CHANGE": 0.0,
        "LEFT_CHANGE": 0.9,
        "RIGHT_TURN": 0.7,
        "LEFT_TURN": 0.9,
    },
    "LEFT_CHANGE": {
        "STRAIGHT": 0.2,
        "RIGHT_CHANGE": 0.9,
        "LEFT_CHANGE": 0.0,
        "RIGHT_TURN": 0.9,
        "LEFT_TURN": 0.7,
    },
    "RIGHT_TURN": {
        "STRAIGHT": 0.4,
        "RIGHT_CHANGE": 0.4,
        "LEFT_CHANGE": 0.9,
        "RIGHT_TURN": 0.0,
        "LEFT_TURN": 0.9,
    },
    "LEFT_TURN": {
        "STRAIGHT": 0.4,
        "RIGHT_CHANGE": 0.9,
        "LEFT_CHANGE": 0.4,
        "RIGHT_TURN": 0.9,
        "LEFT_TURN": 0.0,
    },
}
"""`PATH_COSTS[truth][answer]`."""


def plan_cost(truth: Plan, answer: Plan) -> float:
    """The cost in [0, 1] of driving `answer` where `truth` is right: the larger of its two errors.

    >>> plan_cost(Plan("STOP", "STRAIGHT"), Plan("ACCELERATE", "STRAIGHT"))
    1.0
    """
    return max(SPEED_COSTS[truth.speed][answer.speed], PATH_COSTS[truth.path][answer.path])


def severity_cost(judgement: Judgement) -> float:
    """The cost of an answer against the acceptable plan it is cheapest against; 0 exactly where it is
    acceptable, `INVALID_COST` where it is invalid."""
    if judgement.plan is None:
        return INVALID_COST
    return min(plan_cost(truth, judgement.plan) for truth in judgement.acceptable)


def missed_brake_rate(judgements: Sequence[Judgement]) -> float | None:
    """Of the rows where every acceptable plan brakes (DECELERATE or STOP), the share answered KEEP or
    ACCELERATE. An invalid answer is not counted as missed. None where there is no such row."""
    must_brake = [j for j in judgements if all(plan.speed in BRAKING for plan in j.acceptable)]
    return rate(j.plan is not None and j.plan.speed not in BRAKING for j in must_brake)


def false_brake_rate(judgements: Sequence[Judgement]) -> float | None:
    """Of the rows where no acceptable plan brakes, the share answered DECELERATE or STOP."""
    must_not = [j for j in judgements if all(plan.speed not in BRAKING for plan in j.acceptable)]
    return rate(j.plan is not None and j.plan.speed in BRAKING for j in must_not)


def wrong_side_rate(judgements: Sequence[Judgement]) -> float | None:
    """Of the rows where every acceptable plan turns or changes to one side, the share answered with a turn
    or change to the other."""
    verdicts = []
    for judgement in judgements:
        sides = {SIDES.get(plan.path) for plan in judgement.acceptable}
        if len(sides) == 1 and None not in sides:
            answered = SIDES.get(judgement.plan.path) if judgement.plan is not None else None
            verdicts.append(answered is not None and answered not in sides)
    return rate(verdicts)
