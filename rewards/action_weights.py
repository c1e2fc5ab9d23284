"""What each action weighs, and the F1 reward of one plan: shared by the `paper` and `strict` variants."""

from collections.abc import Sequence

from alphadrive.actions import Path, Plan, Speed

SPEED_WEIGHTS: dict[Speed, float] = {"KEEP": 0.8, "ACCELERATE": 0.9, "DECELERATE": 1.0, "STOP": 1.0}
PATH_WEIGHTS: dict[Path, float] = {
    "STRAIGHT": 0.8,
    "RIGHT_CHANGE": 1.0,
    "LEFT_CHANGE": 1.0,
    "RIGHT_TURN": 1.0,
    "LEFT_TURN": 1.0,
}
"""Action weights of the authors' released code; the paper states the idea and no numbers. What is
rare and matters for safety weighs more than KEEP and STRAIGHT."""


def f1_of_word(predicted: str, truth: str) -> float:
    """F1 of one predicted word against one true word: 1.0 if equal, else 0.0.

    Algorithm 1 takes the F1 of word sets. The strict reading leaves exactly one word on either side,
    where precision = recall = F1 is 0 or 1.
    """
    return 1.0 if predicted == truth else 0.0


def plan_terms(answer: Plan | None, acceptable: Sequence[Plan], diversity: float) -> tuple[float, float]:
    """The speed and the path reward of one answer: F1 x action weight x `diversity` each.

    Each lies in [0, `diversity`]. Of several acceptable plans the one counts that pays most for the
    whole answer (the first of equals): the speed of one plan is never combined with the path of
    another. Without an answer both are 0.

    >>> plan_terms(Plan("STOP", "LEFT_TURN"), [Plan("STOP", "STRAIGHT")], diversity=0.8)
    (0.8, 0.0)
    """
    if answer is None:
        return 0.0, 0.0
    speed_pay = SPEED_WEIGHTS[answer.speed] * diversity
    path_pay = PATH_WEIGHTS[answer.path] * diversity
    pairs = [
        (f1_of_word(answer.speed, plan.speed) * speed_pay, f1_of_word(answer.path, plan.path) * path_pay)
        for plan in acceptable
    ]
    return max(pairs, key=sum)
