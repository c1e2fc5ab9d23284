"""Collects the spans of all processes of a run into its folder while it goes on.

    driver ── take_spans ──▶ every worker, every few seconds        and once at the end
           ◀── spans, clock ──                                       └─▶ timeline.json
    each batch ──▶ spans.jsonl

A worker that is killed loses what it has not sent; a driver that is killed, what was recorded in the last
seconds. A call that is not answered yet is not repeated: a learner's rank answers between its steps.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from alphadrive.config_checks import get_key
from alphadrive.profiling import spans
from alphadrive.profiling.clocks import ClockOffsets, RoundTrip
from alphadrive.profiling.span_file import SpanFile, read_spans
from alphadrive.profiling.spans import Args, SpanBatch
from alphadrive.profiling.timeline import write_timeline
from cluster.remote import fetch
from cluster.watched import Watched

if TYPE_CHECKING:
    from cluster.launch import Attempt

logger = logging.getLogger(__name__)

PERIOD_S = 2.0
PER_WORKER_S = 0.005
"""With many workers the period grows, so that the driver makes no more than 200 calls a second."""
LAST_TIMEOUT_S = 5.0

Worker = tuple[str, str, Any]
"""Kind, id, actor."""

FACTS = (
    "grpo.group_size",
    "grpo.groups_per_step",
    "grpo.max_policy_lag",
    "grpo.sync_every",
    "sft.batch_size",
    "model.dtype",
)


@asynccontextmanager
async def profiled(attempt: "Attempt") -> AsyncIterator[bool]:
    """Record for the length of the block, where `profile.enabled` asks for it; gives whether it does."""
    if not attempt.config.profile.enabled:
        yield False
        return
    profiler = Profiler(
        SpanFile(attempt.run.path, run_facts(attempt)), lambda: list(workers_of(attempt.watched))
    )
    spans.begin("driver", "driver")
    collecting = asyncio.create_task(profiler.run())
    try:
        yield True
    finally:
        collecting.cancel()
        await asyncio.gather(collecting, return_exceptions=True)
        await profiler.end()
        spans.end()
        try:
            await asyncio.to_thread(lambda: write_timeline(attempt.run.path, read_spans(attempt.run.path)))
        except (OSError, ValueError) as error:
            logger.error("the timeline cannot be written: %s", error)


def run_facts(attempt: "Attempt") -> Args:
    """What the analysis must know of a run."""
    config, placement = attempt.config, attempt.placement
    on_gpu = placement is not None and bool(placement.gpus_per_rank or placement.gpus_per_engine)
    return {
        "stage": str(attempt.status.fields["stage"]),
        "attempt": attempt.version.attempt,
        "cores": os.cpu_count() or 0,
        "gpus": float(on_gpu),
        **{key: get_key(config, key) for key in FACTS},
    }


def workers_of(watched: Watched) -> Iterator[Worker]:
    """All workers that can be asked for their spans."""
    parts = {"rollout": watched.rollouts, "reward": watched.rewards, "learner": watched.learner}
    for kind, part in parts.items():
        for worker_id, actor in part.actors() if hasattr(part, "actors") else ():
            if hasattr(actor, "take_spans"):
                yield kind, worker_id, actor


class Profiler:
    """See the module."""

    def __init__(self, file: SpanFile, workers: Callable[[], list[Worker]]) -> None:
        self.is_on = True
        """Whether anything is recorded; workers are told when they are asked next."""
        self._file, self._workers = file, workers
        self._offsets = ClockOffsets(spans.clock_id())
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._batches: list[SpanBatch] = []

    async def run(self) -> None:
        """Collect until cancelled."""
        while True:
            workers = self._ask()
            await asyncio.sleep(max(PERIOD_S, PER_WORKER_S * len(workers)))
            await self._write()

    async def end(self) -> None:
        """Collect once more from all that answer, and write it down."""
        self._ask()
        if self._asking:
            await asyncio.wait(self._asking.values(), timeout=LAST_TIMEOUT_S)
        for task in self._asking.values():
            task.cancel()
        await self._write()

    def _ask(self) -> list[Worker]:
        """Ask every worker that has answered the time before."""
        self._asking = {worker: task for worker, task in self._asking.items() if not task.done()}
        workers = self._workers()
        for kind, worker_id, actor in workers:
            if worker_id not in self._asking:
                self._asking[worker_id] = asyncio.create_task(self._take(kind, worker_id, actor))
        return workers

    async def _take(self, kind: str, worker_id: str, actor: Any) -> None:
        sent_ns = time.monotonic_ns()
        try:
            batch: SpanBatch | None = await fetch(actor.take_spans.remote(kind, worker_id, self.is_on))
        except Exception as error:  # it died, or its cluster is going away: the run will say so
            logger.debug("%s gave no spans: %s", worker_id, error)
            return
        if batch is not None:
            self._offsets.add(batch.clock, RoundTrip(sent_ns, batch.taken_ns, time.monotonic_ns()))
            self._batches.append(batch)

    async def _write(self) -> None:
        """Write what came, and the driver's own; in a thread, as it may be much."""
        batches, self._batches = self._batches, []
        if (own := spans.take()) is not None:
            batches.append(own)
        offsets = self._offsets
        aligned = [
            (batch, offsets.offset_ns(batch.clock), offsets.error_ns(batch.clock)) for batch in batches
        ]
        await asyncio.to_thread(self._file.write, aligned)
