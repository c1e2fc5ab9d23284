"""Everything `alphadrive eval` reports about one set of answers, whoever gave them.

`figures_of` computes it, `as_dict` is the content of `eval.json`. Which answers they are is known to the
callers: `alphadrive.engine_evaluation` and `alphadrive.predictions`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from alphadrive.actions import Plan, parse_answer, reasoning_of
from alphadrive.evaluation import Answered
from alphadrive.metrics.choice import majority_vote, risk_averse
from alphadrive.metrics.judging import Judgement, judge, judge_plan
from alphadrive.metrics.pairs import PairCounts, pair_counts
from alphadrive.metrics.planning import PlanningMetrics, majority_baseline, planning_metrics
from alphadrive.metrics.reasoning import ReasoningMetrics, reasoning_metrics
from alphadrive.metrics.released import ReleasedMetrics, released_metrics
from alphadrive.metrics.statistics import paired_difference
from alphadrive.metrics.trajectory import TrajectoryMetrics, trajectory_metrics
from alphadrive.metrics.variety import VarietyMetrics, variety_metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """The planning figures of another way of answering, and what its accuracy gains (after - before) over
    the answers it is held against, on the same rows, with a paired 95 % interval."""

    metrics: PlanningMetrics
    gain: float
    gain_ci95: tuple[float, float]

    def as_dict(self) -> dict[str, object]:
        """Plain values: what a choice or an ablation is compared by."""
        kept = ("planning_accuracy", "planning_accuracy_ci95", "num_rows", "invalid_rate")
        safety = ("missed_brake_rate", "false_brake_rate", "wrong_side_rate", "severity_cost")
        return {
            **{name: getattr(self.metrics, name) for name in kept},
            "gain": self.gain,
            "gain_ci95": self.gain_ci95,
            **{name: getattr(self.metrics, name) for name in safety},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleFigures:
    """Of the rows with K samples: their variety, and one plan chosen out of the K, beside the answer itself
    (`answer`) on the same rows."""

    variety: VarietyMetrics
    answer: PlanningMetrics
    choices: dict[str, Compared]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalFigures:
    """The figures of one set of answers. `reasoning` is None without references, `samples` without samples;
    `majority` is the best constant plan on these rows with its accuracy; `pairs` are the counterfactual ones
    by the fact in which they differ; `trajectory` is None where no answer states one."""

    planning: PlanningMetrics
    majority: tuple[Plan, float]
    reasoning: ReasoningMetrics | None
    samples: SampleFigures | None
    pairs: dict[str, PairCounts]
    trajectory: TrajectoryMetrics | None
    released: ReleasedMetrics

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON: the strict figures first, the released rule in a block of its own."""
        samples = self.samples
        return {
            **self.planning.as_dict(),
            "majority": {"plan": str(self.majority[0]), "planning_accuracy": self.majority[1]},
            "reasoning": None if self.reasoning is None else asdict(self.reasoning),
            "samples": None if samples is None else asdict(samples.variety),
            "choices": None
            if samples is None
            else {
                "answer": {
                    "planning_accuracy": samples.answer.planning_accuracy,
                    "planning_accuracy_ci95": samples.answer.planning_accuracy_ci95,
                    "num_rows": samples.answer.num_rows,
                    "severity_cost": samples.answer.severity_cost,
                },
                **{name: choice.as_dict() for name, choice in samples.choices.items()},
            },
            "pairs": {fact: counts.as_dict() for fact, counts in self.pairs.items()} or None,
            "trajectory": None if self.trajectory is None else asdict(self.trajectory),
            "released": asdict(self.released),
        }


def figures_of(answers: Sequence[Answered], seed: int = 0) -> EvalFigures:
    """All figures of some answers; `seed` is that of the bootstraps. Raises DataError when there are none."""
    references = [
        (reasoning_of(answered.text), answered.query.reasoning)
        for answered in answers
        if answered.query.reasoning is not None
    ]
    judgements = judged(answers)
    texts = [(answered.query, answered.text) for answered in answers]
    verdicts = [
        (one.query.query_id, verdict.is_acceptable) for one, verdict in zip(answers, judgements, strict=True)
    ]
    return EvalFigures(
        planning=planning_metrics(judgements, seed),
        majority=majority_baseline([answered.query for answered in answers]),
        reasoning=reasoning_metrics(references),
        samples=_sample_figures([answered for answered in answers if answered.samples], seed),
        pairs=pair_counts(verdicts),
        trajectory=trajectory_metrics(texts),
        released=released_metrics(texts, seed),
    )


def judged(answers: Sequence[Answered]) -> list[Judgement]:
    """The verdict on each answer."""
    return [judge(answered.query, answered.text) for answered in answers]


def compared(before: Sequence[Judgement], after: Sequence[Judgement], seed: int = 0) -> Compared:
    """The figures of `after`, held against `before` on the same rows."""
    gain, interval = paired_difference(
        [float(judgement.is_acceptable) for judgement in before],
        [float(judgement.is_acceptable) for judgement in after],
        seed,
    )
    return Compared(metrics=planning_metrics(after, seed), gain=gain, gain_ci95=interval)


def _sample_figures(answers: Sequence[Answered], seed: int) -> SampleFigures | None:
    if not answers:
        return None
    plans = [[parse_answer(text) for text in answered.samples] for answered in answers]
    queries = [answered.query for answered in answers]
    before = judged(answers)
    choices = {}
    for name, choose in (("majority_vote", majority_vote), ("risk_averse", risk_averse)):
        after = [judge_plan(query, choose(row)) for query, row in zip(queries, plans, strict=True)]
        choices[name] = compared(before, after, seed)
    variety = variety_metrics(
        [[judge_plan(query, plan) for plan in row] for query, row in zip(queries, plans, strict=True)]
    )
    return SampleFigures(variety=variety, answer=planning_metrics(before, seed), choices=choices)
