"""Asking a planner about a dataset, row by row.

Who answers is a function: one engine in `alphadrive eval`, a pool of engines during training. Rows
are asked in order with a bounded number in flight; a failure of any ends the evaluation with that
failure, because an accuracy over the rows that happened to work is none.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from alphadrive import metric_names
from alphadrive.metrics.judging import judge
from alphadrive.metrics.planning import PlanningMetrics, planning_metrics
from alphadrive.types import DrivingQuery

Answer = Callable[[DrivingQuery], Awaitable[str]]
R = TypeVar("R")


class Queries(Protocol):
    """What an evaluation needs of a dataset; `alphadrive.data.parquet.DrivingDataset` has it."""

    def __len__(self) -> int: ...

    def query(self, row: int) -> DrivingQuery:
        """The situation of a row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What a planner said to one query: the answer it is judged by, and sampled ones where there are any."""

    query: DrivingQuery
    text: str
    samples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalResult:
    """What the answers to the rows of a dataset are worth, and how long they took."""

    metrics: PlanningMetrics
    seconds: float

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

    Raises what `answer` raises, and DataError for an empty dataset.
    """
    started_s = time.monotonic()
    asked = await ask(answer, dataset, num_rows, max_concurrency=max_concurrency, on_answer=on_answer)
    return EvalResult(
        metrics=planning_metrics([judge(query, text) for query, text in asked]),
        seconds=time.monotonic() - started_s,
    )


async def ask(
    answer: Callable[[DrivingQuery], Awaitable[R]],
    dataset: Queries,
    num_rows: int | None = None,
    *,
    max_concurrency: int = 64,
    on_answer: Callable[[], None] | None = None,
) -> list[tuple[DrivingQuery, R]]:
    """Each of the first `num_rows` queries (all when None) with its answer, in the order of the rows.

    `on_answer` is called after each, for a progress display. Raises what `answer` raises.
    """
    count = len(dataset) if num_rows is None else min(num_rows, len(dataset))
    answered: dict[int, tuple[DrivingQuery, R]] = {}
    rows = iter(range(count))

    async def work() -> None:
        for row in rows:
            query = dataset.query(row)
            answered[row] = query, await answer(query)
            if on_answer is not None:
                on_answer()

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(max_concurrency, count)):
                group.create_task(work())
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [answered[row] for row in range(count)]
