"""Evaluating a planner on a dataset: ask every row, judge every answer.

Who answers is a function: one engine in `alphadrive eval`, a pool of engines during training. Rows
are asked in order with a bounded number in flight; a failure of any ends the evaluation with that
failure, because an accuracy over the rows that happened to work is none.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from alphadrive import metric_names
from alphadrive.metrics import PlanningMetrics, VarietyMetrics, judge, planning_metrics, variety_metrics
from alphadrive.types import DrivingQuery

Answer = Callable[[DrivingQuery], Awaitable[str]]
Sample = Callable[[DrivingQuery], Awaitable[Sequence[str]]]
R = TypeVar("R")


class Queries(Protocol):
    """What an evaluation needs of a dataset; `alphadrive.data.parquet.DrivingDataset` has it."""

    def __len__(self) -> int: ...

    def query(self, row: int) -> DrivingQuery:
        """The situation of a row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One answer and its verdict. `plan` is None where the answer is invalid; the first of `plans`
    is the recorded one."""

    query_id: str
    row: int
    speed_mps: float
    navigation: str
    plans: tuple[str, ...]
    text: str
    plan: str | None
    is_acceptable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalResult:
    """Greedy answers to the rows of a dataset, in their order, and what they are worth."""

    metrics: PlanningMetrics
    predictions: tuple[Prediction, ...]
    seconds: float

    @property
    def correct(self) -> list[float]:
        """1.0 or 0.0 a row: what a paired comparison of two planners takes."""
        return [float(prediction.is_acceptable) for prediction in self.predictions]

    def as_step_metrics(self) -> dict[str, float]:
        """The figures logged during training, as `val/...`."""
        metrics = self.metrics
        named = {
            metric_names.VAL_PLANNING_ACCURACY: metrics.planning_accuracy,
            metric_names.VAL_EXACT_MATCH: metrics.exact_match,
            metric_names.VAL_MACRO_F1: metrics.macro_f1,
            metric_names.VAL_INVALID_RATE: metrics.invalid_rate,
            metric_names.VAL_MISSED_BRAKE_RATE: metrics.missed_brake_rate,
            metric_names.VAL_SECONDS: self.seconds,
        }
        return {name: value for name, value in named.items() if value is not None}


async def evaluate(
    answer: Answer,
    dataset: Queries,
    num_rows: int | None = None,
    *,
    max_concurrency: int = 64,
    on_answer: Callable[[], None] | None = None,
) -> EvalResult:
    """Ask `answer` for the first `num_rows` rows (all when None) and judge what it says.

    `on_answer` is called after each row, for a progress display. Raises what `answer` raises, and
    DataError for an empty dataset.
    """
    started_s = time.monotonic()
    queries, texts = await _ask(answer, dataset, num_rows, max_concurrency, on_answer)
    pairs = list(zip(queries, texts, strict=True))
    return EvalResult(
        metrics=planning_metrics(pairs),
        predictions=tuple(_prediction(query, text) for query, text in pairs),
        seconds=time.monotonic() - started_s,
    )


async def evaluate_samples(
    sample: Sample,
    dataset: Queries,
    num_rows: int | None = None,
    *,
    max_concurrency: int = 64,
    on_answer: Callable[[], None] | None = None,
) -> VarietyMetrics:
    """The same with K sampled answers to each row: pass@K and variety."""
    queries, texts = await _ask(sample, dataset, num_rows, max_concurrency, on_answer)
    return variety_metrics(list(zip(queries, texts, strict=True)))


async def _ask(
    ask: Callable[[DrivingQuery], Awaitable[R]],
    dataset: Queries,
    num_rows: int | None,
    max_concurrency: int,
    on_answer: Callable[[], None] | None,
) -> tuple[list[DrivingQuery], list[R]]:
    count = len(dataset) if num_rows is None else min(num_rows, len(dataset))
    queries: dict[int, DrivingQuery] = {}
    answers: dict[int, R] = {}
    rows = iter(range(count))

    async def work() -> None:
        for row in rows:
            queries[row] = dataset.query(row)
            answers[row] = await ask(queries[row])
            if on_answer is not None:
                on_answer()

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(max_concurrency, count)):
                group.create_task(work())
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [queries[row] for row in range(count)], [answers[row] for row in range(count)]


def _prediction(query: DrivingQuery, text: str) -> Prediction:
    judgement = judge(query, text)
    return Prediction(
        query_id=query.query_id,
        row=query.row,
        speed_mps=query.speed_mps,
        navigation=query.navigation,
        plans=query.plans,
        text=text,
        plan=None if judgement.plan is None else str(judgement.plan),
        is_acceptable=judgement.is_acceptable,
    )
