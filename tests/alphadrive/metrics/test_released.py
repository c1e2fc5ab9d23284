"""The released rule, and why it stands apart."""

from alphadrive.actions import PATHS, SPEEDS
from alphadrive.metrics.judging import judge
from alphadrive.metrics.planning import planning_metrics
from alphadrive.metrics.released import released_metrics
from alphadrive.types import DrivingQuery

TRUTHS = ("KEEP, STRAIGHT", "STOP, LEFT_TURN", "ACCELERATE, RIGHT_CHANGE", "DECELERATE, STRAIGHT")


def query(*plans):
    return DrivingQuery(query_id="q", row=0, speed_mps=5.0, navigation="ahead", plans=plans)


def test_listing_all_nine_actions_is_always_right_under_the_released_rule_and_never_strictly():
    text = f"<think> hm </think> <answer> {', '.join((*SPEEDS, *PATHS))} </answer>"
    answers = [(query(truth), text) for truth in TRUTHS]
    assert released_metrics(answers).planning_accuracy == 1.0
    strict = planning_metrics([judge(asked, said) for asked, said in answers])
    assert (strict.planning_accuracy, strict.invalid_rate) == (0.0, 1.0)


def test_names_count_wherever_they_stand():
    answers = [
        (query("STOP, STRAIGHT"), "No reason to STOP, going STRAIGHT. <answer> KEEP, STRAIGHT </answer>"),
        (query("KEEP, LEFT_TURN"), "<answer> keep, left_turn </answer>"),
    ]
    found = released_metrics(answers)
    assert found.planning_accuracy == 0.5
    stop, keep, turn = (found.actions[word] for word in ("STOP", "KEEP", "LEFT_TURN"))
    assert (stop.precision, stop.recall, stop.f1) == (1.0, 1.0, 1.0)
    assert (keep.precision, keep.recall, keep.num_predicted, keep.support) == (0.0, 0.0, 1, 1)
    assert (turn.recall, turn.num_predicted) == (0.0, 0)


def test_any_acceptable_plan_named_in_full_counts():
    answers = [
        (query("STOP, STRAIGHT", "KEEP, LEFT_TURN"), "KEEP LEFT_TURN"),
        (query("STOP, STRAIGHT"), "STOP"),
    ]
    found = released_metrics(answers)
    assert found.planning_accuracy == 0.5
    assert found.actions["LEFT_TURN"].f1 == 1.0
