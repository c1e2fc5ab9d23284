"""Planning metrics over answers, and the statistics that go with them.

Every answer is read strictly (`alphadrive.actions.parse_answer`): one that cannot be read is invalid,
wrong everywhere, and counted. Numbers and text only; who draws the answers is `alphadrive.evaluation`.

A query has several acceptable plans, the recorded one first. So beside each other stand:

    planning accuracy   the whole plan is one of the acceptable ones
    exact match         the whole plan is the recorded one
    per-action scores   against the *credited truth*: the answer itself where it is acceptable,
                        else the recorded plan
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from alphadrive.actions import PATHS, SPEEDS, Plan, parse_answer, parse_plan
from alphadrive.errors import DataError
from alphadrive.types import DrivingQuery

BRAKING = ("DECELERATE", "STOP")


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionScore:
    """One word against the rest, over the credited truth. Each rate is 0.0 where it is undefined.

    `support`: rows whose credited truth has the word. `num_predicted`: rows whose answer has it.
    """

    precision: float
    recall: float
    f1: float
    support: int
    num_predicted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanningMetrics:
    """What a set of answers is worth. Shares lie in [0, 1]; intervals are 95 % bootstrap ones.

    `macro_f1` is the mean F1 of the words that occur in the credited truth or in an answer;
    `speed_macro_f1` and `path_macro_f1` the same over their words. `missed_brake_rate`: of the rows
    where every acceptable plan brakes (DECELERATE or STOP), the share answered KEEP or ACCELERATE;
    `false_brake_rate`: of those where none does, the share answered DECELERATE or STOP. An invalid
    answer is neither. Either rate is None where there is no such row.
    """

    num_rows: int
    planning_accuracy: float
    planning_accuracy_ci95: tuple[float, float]
    exact_match: float
    speed_accuracy: float
    path_accuracy: float
    invalid_rate: float
    missed_brake_rate: float | None
    false_brake_rate: float | None
    macro_f1: float
    speed_macro_f1: float
    path_macro_f1: float
    actions: dict[str, ActionScore]

    def as_dict(self) -> dict[str, object]:
        """The same as plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """One answer against its query: the plan read (None: invalid), its query's plans, and whether it
    is acceptable."""

    plan: Plan | None
    acceptable: tuple[Plan, ...]

    @property
    def recorded(self) -> Plan:
        """The plan that was driven."""
        return self.acceptable[0]

    @property
    def is_acceptable(self) -> bool:
        """Whether the whole plan is one of the acceptable ones."""
        return self.plan in self.acceptable

    @property
    def credited_truth(self) -> Plan:
        """The answer where it is acceptable, else the recorded plan."""
        return self.plan if self.plan is not None and self.is_acceptable else self.recorded


def judge(query: DrivingQuery, text: str) -> Judgement:
    """Read one answer strictly. Raises DataError if the query's own plans cannot be read."""
    plans = [parse_plan(plan) for plan in query.plans]
    acceptable = tuple(plan for plan in plans if plan is not None)
    if not plans or len(acceptable) != len(plans):
        raise DataError(f"query {query.query_id}: plans {list(query.plans)}: expected 'SPEED, PATH' each")
    return Judgement(plan=parse_answer(text), acceptable=acceptable)


def planning_metrics(answers: Iterable[tuple[DrivingQuery, str]], seed: int = 0) -> PlanningMetrics:
    """All metrics of (query, answer text) pairs. `seed` is that of the bootstrap.

    Raises DataError when there are no pairs.
    """
    judgements = [judge(query, text) for query, text in answers]
    if not judgements:
        raise DataError("no answers to judge; the data set is empty")
    correct = [float(judgement.is_acceptable) for judgement in judgements]
    speeds = _scores(SPEEDS, [(j.plan.speed if j.plan else None, j.credited_truth.speed) for j in judgements])
    paths = _scores(PATHS, [(j.plan.path if j.plan else None, j.credited_truth.path) for j in judgements])
    must_brake = [j for j in judgements if all(plan.speed in BRAKING for plan in j.acceptable)]
    must_not_brake = [j for j in judgements if all(plan.speed not in BRAKING for plan in j.acceptable)]
    return PlanningMetrics(
        num_rows=len(judgements),
        planning_accuracy=float(np.mean(correct)),
        planning_accuracy_ci95=bootstrap_interval(correct, seed),
        exact_match=_share(j.plan == j.recorded for j in judgements),
        speed_accuracy=_share(
            j.plan is not None and j.plan.speed == j.credited_truth.speed for j in judgements
        ),
        path_accuracy=_share(j.plan is not None and j.plan.path == j.credited_truth.path for j in judgements),
        invalid_rate=_share(j.plan is None for j in judgements),
        missed_brake_rate=_rate(j.plan is not None and j.plan.speed not in BRAKING for j in must_brake),
        false_brake_rate=_rate(j.plan is not None and j.plan.speed in BRAKING for j in must_not_brake),
        macro_f1=_macro_f1({**speeds, **paths}),
        speed_macro_f1=_macro_f1(speeds),
        path_macro_f1=_macro_f1(paths),
        actions={**speeds, **paths},
    )


def majority_baseline(queries: Sequence[DrivingQuery]) -> tuple[Plan, float]:
    """The one plan that would be acceptable most often if always given, and its planning accuracy.

    Found with the answers in hand, so no constant planner can do better on these rows.
    """
    counts = Counter(plan for query in queries for plan in set(judge(query, "").acceptable))
    plan, count = max(counts.items(), key=lambda item: (item[1], str(item[0])))
    return plan, count / len(queries)


@dataclass(frozen=True, slots=True, kw_only=True)
class VarietyMetrics:
    """What K sampled answers to each query are worth; read them beside the greedy accuracy, because
    variety alone rewards error.

    `pass_at_k`: share of queries with at least one acceptable answer among the K.
    `sample_accuracy`: share of all answers that are acceptable. `distinct_plans` and
    `distinct_acceptable`: mean number of different plans, and of different acceptable ones, a query.
    """

    num_rows: int
    num_samples: int
    pass_at_k: float
    sample_accuracy: float
    invalid_rate: float
    distinct_plans: float
    distinct_acceptable: float


def variety_metrics(samples: Sequence[tuple[DrivingQuery, Sequence[str]]]) -> VarietyMetrics:
    """Metrics of (query, its K answer texts) pairs, the same K for all. Raises DataError for none."""
    if not samples:
        raise DataError("no answers to judge; the data set is empty")
    judged = [[judge(query, text) for text in texts] for query, texts in samples]
    flat = [judgement for row in judged for judgement in row]
    plans = [{judgement.plan for judgement in row if judgement.plan is not None} for row in judged]
    good = [{judgement.plan for judgement in row if judgement.is_acceptable} for row in judged]
    return VarietyMetrics(
        num_rows=len(samples),
        num_samples=len(flat) // len(judged),
        pass_at_k=_share(bool(row) for row in good),
        sample_accuracy=_share(judgement.is_acceptable for judgement in flat),
        invalid_rate=_share(judgement.plan is None for judgement in flat),
        distinct_plans=float(np.mean([len(row) for row in plans])),
        distinct_acceptable=float(np.mean([len(row) for row in good])),
    )


def bootstrap_interval(
    values: Sequence[float], seed: int = 0, num_resamples: int = 10_000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values`, rows drawn with replacement.

    Drawing how often each distinct value occurs (a multinomial) is the same as drawing rows. Raises
    ValueError when there are none.
    """
    if not len(values):
        raise ValueError("bootstrap of no values")
    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(values), counts / len(values), size=num_resamples)
    means = draws @ distinct / len(values)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_difference(
    before: Sequence[float], after: Sequence[float], seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """Mean of `after - before` over the same rows, and its 95 % paired bootstrap interval.

    `before[i]` and `after[i]` are the scores (for accuracy: 0 or 1) of row i. Raises ValueError for
    different lengths.
    """
    differences = [late - early for early, late in zip(before, after, strict=True)]
    return float(np.mean(differences)), bootstrap_interval(differences, seed)


def _scores(words: Sequence[str], pairs: Sequence[tuple[str | None, str]]) -> dict[str, ActionScore]:
    hits = Counter(truth for predicted, truth in pairs if predicted == truth)
    predictions = Counter(predicted for predicted, _ in pairs)
    support = Counter(truth for _, truth in pairs)
    scores = {}
    for word in words:
        precision = hits[word] / predictions[word] if predictions[word] else 0.0
        recall = hits[word] / support[word] if support[word] else 0.0
        total = predictions[word] + support[word]
        scores[word] = ActionScore(
            precision=precision,
            recall=recall,
            f1=2 * hits[word] / total if total else 0.0,
            support=support[word],
            num_predicted=predictions[word],
        )
    return scores


def _macro_f1(scores: dict[str, ActionScore]) -> float:
    occurring = [score.f1 for score in scores.values() if score.support or score.num_predicted]
    return sum(occurring) / len(occurring)


def _share(claims: Iterable[bool]) -> float:
    return float(np.mean(list(claims)))


def _rate(claims: Iterable[bool]) -> float | None:
    listed = list(claims)
    return float(np.mean(listed)) if listed else None
