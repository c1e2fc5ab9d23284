"""The rule of the paper's released evaluation, for comparison with published figures and for nothing else.

An action counts as predicted if its name occurs anywhere in the text, reasoning included. An answer that
names all nine actions is therefore always right: these figures are upper bounds, and stand in a block of
their own, never beside or mixed with the strict ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from alphadrive.actions import PATHS, SPEEDS, Plan
from alphadrive.metrics.judging import Judgement, judge_plan
from alphadrive.metrics.planning import ActionScore, class_scores
from alphadrive.metrics.statistics import bootstrap_interval, mean
from alphadrive.types import DrivingQuery

RULE = "an action counts as predicted if its name occurs anywhere in the text"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasedMetrics:
    """Figures under `rule`, shares in [0, 1].

    `planning_accuracy`: rows whose text names both words of an acceptable plan. `actions`: each word
    against the rest; the truth is the first acceptable plan that is named in full, else the recorded one.
    """

    rule: str
    planning_accuracy: float
    planning_accuracy_ci95: tuple[float, float]
    actions: dict[str, ActionScore]


def released_metrics(answers: Sequence[tuple[DrivingQuery, str]], seed: int = 0) -> ReleasedMetrics:
    """The figures of (query, answer text) pairs, at least one."""
    judged = [(judge_plan(query, None), text) for query, text in answers]
    correct = [float(any(_names(text, plan) for plan in j.acceptable)) for j, text in judged]
    return ReleasedMetrics(
        rule=RULE,
        planning_accuracy=mean(correct),
        planning_accuracy_ci95=bootstrap_interval(correct, seed),
        actions={
            **class_scores(SPEEDS, [(_named(SPEEDS, text), _truth(j, text).speed) for j, text in judged]),
            **class_scores(PATHS, [(_named(PATHS, text), _truth(j, text).path) for j, text in judged]),
        },
    )


def _names(text: str, plan: Plan) -> bool:
    return plan.speed in text and plan.path in text


def _named(words: Sequence[str], text: str) -> frozenset[str]:
    return frozenset(word for word in words if word in text)


def _truth(judgement: Judgement, text: str) -> Plan:
    return next((plan for plan in judgement.acceptable if _names(text, plan)), judgement.recorded)
