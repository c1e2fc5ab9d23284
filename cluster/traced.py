"""The loop's collaborators with spans around what the loop asks of them; the loop itself stays as it is.

    lane `loop`     wait │ train │ sync │ evaluate │ checkpoint           one after another
    lane `groups`   generate │ reward │ ready │ trained                   of every ticket; many at once

Plugged in by `cluster.profiler` when a run is profiled, and only then.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from alphadrive import metric_names as names
from alphadrive.profiling.recording import GROUPS, LOOP
from alphadrive.profiling.spans import add_span, span
from alphadrive.types import DrivingQuery, GroupHeader, StepResult, WeightVersion
from cluster.loop import Parts


def traced(parts: Parts) -> Parts:
    """The same parts, recorded."""
    return Parts(
        queries=parts.queries,
        rollouts=cast(Any, _Rollouts(parts.rollouts)),
        rewards=cast(Any, _Rewards(parts.rewards)),
        learner=cast(Any, _Learner(parts.learner)),
        sync=cast(Any, _Sync(parts.sync)),
        recorder=cast(Any, _Recorder(parts.recorder)),
        buffer=cast(Any, _Buffer(parts.buffer)),
    )


class _Traced:
    """All of a part, but for the methods that a subclass records."""

    def __init__(self, part: Any) -> None:
        self._part = part

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)


class _Rollouts(_Traced):
    async def generate(self, ticket: int, query: DrivingQuery) -> object:
        with span("generate", GROUPS, ticket=ticket):
            return await self._part.generate(ticket, query)


class _Rewards(_Traced):
    async def score(self, group: object) -> GroupHeader:
        with span("reward", GROUPS) as scoring:
            header: GroupHeader = await self._part.score(group)
            scoring.note(ticket=header.ticket, tokens=header.num_tokens)
        return header


class _Learner(_Traced):
    async def step(self, scored: Sequence[object]) -> StepResult:
        with span("train", LOOP) as training:
            result: StepResult = await self._part.step(scored)
            training.note(step=result.step)
        return result


class _Sync(_Traced):
    async def publish(self, version: WeightVersion) -> None:
        with span("sync", LOOP, version=str(version)):
            await self._part.publish(version)


class _Recorder(_Traced):
    async def evaluate(self, step: int) -> None:
        with span("evaluate", LOOP):
            await self._part.evaluate(step)

    async def checkpoint(self, step: int, **options: Any) -> None:
        with span("checkpoint", LOOP):
            await self._part.checkpoint(step, **options)


class _Buffer(_Traced):
    """Also notes since when each group waits, and since when it is trained on."""

    def __init__(self, part: Any) -> None:
        super().__init__(part)
        self._since_s: dict[int, float] = {}
        self._num_takes = 0

    def put(self, header: GroupHeader) -> None:
        self._part.put(header)
        self._since_s[header.ticket] = time.monotonic()

    async def take(self, num_groups: int) -> list[GroupHeader]:
        self._num_takes += 1
        with span("wait", LOOP, take=self._num_takes):
            headers: list[GroupHeader] = await self._part.take(num_groups)
        for header in headers:
            add_span(
                "ready", self._since_s[header.ticket], GROUPS, ticket=header.ticket, take=self._num_takes
            )
            self._since_s[header.ticket] = time.monotonic()
        return headers

    def release(self, headers: Sequence[GroupHeader]) -> None:
        for header in headers:
            add_span("trained", self._since_s.pop(header.ticket), GROUPS, ticket=header.ticket)
        self._part.release(headers)


class TracedSft(_Traced):
    """The learner of a stage whose loop is `train`, `train`, ..., `checkpoint`; each step begins with a wait
    for nothing, as steps are told apart by it."""

    async def sft_step(self, rows: Sequence[int]) -> StepResult:
        add_span("wait", time.monotonic(), LOOP)
        with span("train", LOOP) as training:
            result: StepResult = await self._part.sft_step(rows)
            tokens = result.metrics.get(names.RESPONSE_LENGTH_MEAN, 0.0) * len(rows)
            training.note(step=result.step, tokens=tokens)
        return result

    async def save(self, folder: Path) -> None:
        with span("checkpoint", LOOP):
            await self._part.save(folder)
