"""The strict figures of one answer a query.

Beside each other stand:

    planning accuracy   the whole plan is one of the acceptable ones
    exact match         the whole plan is the recorded one
    per-action scores   against the *credited truth*: the answer itself where it is acceptable,
                        else the recorded plan
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from alphadrive.actions import PATHS, SPEEDS, Plan
from alphadrive.errors import DataError
from alphadrive.metrics.judging import Judgement, judge_plan
from alphadrive.metrics.safety import false_brake_rate, missed_brake_rate, severity_cost, wrong_side_rate
from alphadrive.metrics.statistics import bootstrap_interval, mean
from alphadrive.types import DrivingQuery

INVALID = "invalid"
PAPER_COLUMNS = {
    "straight": ("STRAIGHT",),
    "left": ("LEFT_TURN", "LEFT_CHANGE"),
    "right": ("RIGHT_TURN", "RIGHT_CHANGE"),
    "keep": ("KEEP",),
    "acc": ("ACCELERATE",),
    "dec": ("DECELERATE",),
    "stop": ("STOP",),
}
"""The columns of the paper's Table 1: turns and lane changes to one side are one class."""

Pair = tuple[str | None, str]
"""A predicted word (None: invalid) and the true one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionScore:
    """One class against the rest, over the credited truth. Each rate is 0.0 where it is undefined.

    `support`: rows whose credited truth has the class. `num_predicted`: rows whose answer has it.
    """

    precision: float
    recall: float
    f1: float
    support: int
    num_predicted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanningMetrics:
    """What a set of answers is worth. Shares lie in [0, 1]; intervals are 95 % bootstrap ones.

    `severity_cost` is the mean cost of an answer (`alphadrive.metrics.safety`, as are the rates above it,
    None where no row can show them). `macro_f1` is the mean F1 of the words that occur in the credited
    truth or in an answer; `speed_macro_f1` and `path_macro_f1` the same over their words. `paper_columns`
    are the classes of `PAPER_COLUMNS`. `confusion["speed"][truth][answer]` counts rows, `invalid` being
    one more answer.
    """

    planning_accuracy: float
    planning_accuracy_ci95: tuple[float, float]
    num_rows: int
    exact_match: float
    speed_accuracy: float
    path_accuracy: float
    invalid_rate: float
    missed_brake_rate: float | None
    false_brake_rate: float | None
    wrong_side_rate: float | None
    severity_cost: float
    macro_f1: float
    speed_macro_f1: float
    path_macro_f1: float
    actions: dict[str, ActionScore]
    paper_columns: dict[str, ActionScore]
    confusion: dict[str, dict[str, dict[str, int]]]

    def as_dict(self) -> dict[str, object]:
        """The same as plain values for JSON."""
        return asdict(self)


def planning_metrics(judgements: Sequence[Judgement], seed: int = 0) -> PlanningMetrics:
    """All figures of one judged answer a query. `seed` is that of the bootstrap.

    Raises DataError when there is none.
    """
    if not judgements:
        raise DataError("no answers to judge; the data set is empty")
    correct = [float(judgement.is_acceptable) for judgement in judgements]
    speed_pairs: list[Pair] = [(j.plan.speed if j.plan else None, j.credited_truth.speed) for j in judgements]
    path_pairs: list[Pair] = [(j.plan.path if j.plan else None, j.credited_truth.path) for j in judgements]
    speeds = class_scores(SPEEDS, [_sets(pair) for pair in speed_pairs])
    paths = class_scores(PATHS, [_sets(pair) for pair in path_pairs])
    return PlanningMetrics(
        planning_accuracy=mean(correct),
        planning_accuracy_ci95=bootstrap_interval(correct, seed),
        num_rows=len(judgements),
        exact_match=mean(j.plan == j.recorded for j in judgements),
        speed_accuracy=mean(predicted == truth for predicted, truth in speed_pairs),
        path_accuracy=mean(predicted == truth for predicted, truth in path_pairs),
        invalid_rate=mean(j.plan is None for j in judgements),
        missed_brake_rate=missed_brake_rate(judgements),
        false_brake_rate=false_brake_rate(judgements),
        wrong_side_rate=wrong_side_rate(judgements),
        severity_cost=mean(map(severity_cost, judgements)),
        macro_f1=_macro_f1({**speeds, **paths}),
        speed_macro_f1=_macro_f1(speeds),
        path_macro_f1=_macro_f1(paths),
        actions={**speeds, **paths},
        paper_columns=_paper_columns([*speed_pairs, *path_pairs]),
        confusion={"speed": _confusion(SPEEDS, speed_pairs), "path": _confusion(PATHS, path_pairs)},
    )


def majority_baseline(queries: Sequence[DrivingQuery]) -> tuple[Plan, float]:
    """The one plan that would be acceptable most often if always given, and its planning accuracy.

    Found with the answers in hand, so no constant planner can do better on these rows.
    """
    counts = Counter(plan for query in queries for plan in set(judge_plan(query, None).acceptable))
    plan, count = max(counts.items(), key=lambda item: (item[1], str(item[0])))
    return plan, count / len(queries)


def class_scores(
    classes: Sequence[str], rows: Sequence[tuple[frozenset[str], str]]
) -> dict[str, ActionScore]:
    """Precision, recall and F1 of each class over rows of (predicted classes, true class).

    F1 is 2 hits / (predicted + support), the harmonic mean of the two.
    """
    hits = Counter(truth for predicted, truth in rows if truth in predicted)
    predictions = Counter(name for predicted, _ in rows for name in predicted)
    support = Counter(truth for _, truth in rows)
    scores = {}
    for name in classes:
        total = predictions[name] + support[name]
        scores[name] = ActionScore(
            precision=hits[name] / predictions[name] if predictions[name] else 0.0,
            recall=hits[name] / support[name] if support[name] else 0.0,
            f1=2 * hits[name] / total if total else 0.0,
            support=support[name],
            num_predicted=predictions[name],
        )
    return scores


def _sets(pair: Pair) -> tuple[frozenset[str], str]:
    predicted, truth = pair
    return frozenset() if predicted is None else frozenset({predicted}), truth


def _paper_columns(pairs: Sequence[Pair]) -> dict[str, ActionScore]:
    column_of = {word: column for column, words in PAPER_COLUMNS.items() for word in words}
    merged: list[Pair] = [
        (None if predicted is None else column_of[predicted], column_of[truth]) for predicted, truth in pairs
    ]
    return class_scores(tuple(PAPER_COLUMNS), [_sets(pair) for pair in merged])


def _confusion(words: Sequence[str], pairs: Sequence[Pair]) -> dict[str, dict[str, int]]:
    counts = Counter((truth, predicted or INVALID) for predicted, truth in pairs)
    return {truth: {answer: counts[truth, answer] for answer in (*words, INVALID)} for truth in words}


def _macro_f1(scores: Mapping[str, ActionScore]) -> float:
    return mean(score.f1 for score in scores.values() if score.support or score.num_predicted)
