"""An engine without vLLM, for tests of everything around engines: same methods, same errors, no model.

What it draws depends on the query, the weight version and the sampling alone, so two runs agree. It pauses
for updates, reads the weights file, proves its digest and labels tokens with versions as the real one does.
Faults are injected with `Faults`.
"""

import asyncio
import hashlib
import math
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from alphadrive.actions import PATHS, SPEEDS
from alphadrive.errors import (
    AlphaDriveError,
    EngineDiedError,
    RolloutError,
    TransferCutError,
    WeightSyncError,
)
from alphadrive.prompts import answer_text
from alphadrive.types import (
    Completion,
    DrivingQuery,
    RolloutGroup,
    VersionSpan,
    WeightsFile,
    WeightsStream,
    WeightVersion,
)
from alphadrive.weights import file_sha256
from rollout.settings import CANARY_TICKET, EngineSettings, Sampling, UpdateReceipt

Answer = Callable[[DrivingQuery, int, WeightVersion], str]


@dataclass(kw_only=True)
class Faults:
    """What goes wrong, and when.

    `failing_rows`: rows whose requests raise RolloutError. `hanging_rows`: rows never answered.
    `dies_after`: the engine is gone after so many groups. `skips_update`: it answers as if updated, with the
    digest of what it had. `failing_update`: an update raises and leaves it unusable. `corrupt_logprobs` is
    added to every log-probability after the first update. `garbage`: what is wrong with the groups it
    returns, one of the keys of `SPOILERS`, and with how many of them (`num_garbage`).
    """

    failing_rows: set[int] = field(default_factory=set)
    hanging_rows: set[int] = field(default_factory=set)
    dies_after: int | None = None
    skips_update: bool = False
    failing_update: bool = False
    corrupt_logprobs: float = 0.0
    garbage: str | None = None
    num_garbage: int = 1 << 30


def hashed_answer(query: DrivingQuery, index: int, version: WeightVersion) -> str:
    """A well-formed answer whose plan depends on query, completion and version."""
    noise = _noise(query.query_id, index, version)
    plan = f"{SPEEDS[noise[0] % len(SPEEDS)]}, {PATHS[noise[1] % len(PATHS)]}"
    return answer_text(f"seen {noise[2]}", plan)


class FakeEngine:
    """An engine that makes up its completions: `answer(query, completion index, version)` is their text."""

    def __init__(
        self,
        settings: EngineSettings,
        engine_id: str,
        *,
        answer: Answer = hashed_answer,
        delay_s: float = 0.0,
        faults: Faults | None = None,
    ) -> None:
        self.version = settings.initial_version
        self.engine_id = engine_id
        self.faults = faults or Faults()
        self.tokens_generated = 0
        self.groups_drawn = 0
        self.updates_taken: list[WeightVersion] = []
        self._answer = answer
        self._delay_s = delay_s
        self._held_sha256 = ""
        self._receiver: Any = None
        self._failure: AlphaDriveError | None = None
        self._failed = asyncio.Event()
        self._running = asyncio.Event()
        self._running.set()

    @classmethod
    async def start(cls, settings: EngineSettings, engine_id: str) -> Self:
        """A fault-free engine, as `RolloutEngine.start` makes one."""
        return cls(settings, engine_id)

    async def generate(
        self, ticket: int, query: DrivingQuery, sampling: Sampling, dataset: str = "train"
    ) -> RolloutGroup:
        """Make up one group. Raises as `RolloutEngine.generate`."""
        started = self.version
        await self._unless_failed(self._draw_time(query))
        if query.row in self.faults.failing_rows:
            raise RolloutError(f"{self.engine_id}: query {query.query_id}: injected fault")
        if self.faults.dies_after is not None and self.groups_drawn >= self.faults.dies_after:
            self._fail(EngineDiedError(f"{self.engine_id}: injected death after {self.groups_drawn} groups"))
            self._raise_failure()
        completions = tuple(
            self._completion(query, index, sampling, started) for index in range(sampling.num_samples)
        )
        self.groups_drawn += 1
        self.tokens_generated += sum(len(completion.token_ids) for completion in completions)
        group = RolloutGroup(
            ticket=ticket,
            query=query,
            prompt_token_ids=tuple(f"{query.navigation} {query.speed_mps}".encode()),
            completions=completions,
            engine_id=self.engine_id,
        )
        if self.faults.garbage is None or self.groups_drawn > self.faults.num_garbage:
            return group
        return SPOILERS[self.faults.garbage](group)

    async def health(self) -> int:
        """Tokens made up so far. Raises as `RolloutEngine.health`."""
        self._raise_failure()
        return self.tokens_generated

    async def update_and_draw(
        self, weights: WeightsFile | WeightsStream, queries: Sequence[DrivingQuery], sampling: Sampling
    ) -> tuple[UpdateReceipt, list[RolloutGroup]]:
        """Take weights and draw canaries. Raises as `RolloutEngine.update_and_draw`."""
        received = await self.update_weights(weights)
        groups = [await self.generate(CANARY_TICKET, query, sampling) for query in queries]
        return UpdateReceipt(sha256=received, paused_s=0.0), groups

    async def see_offer(self, stream: WeightsStream) -> None:
        """Answer the roll call before a stream. Raises as `RolloutEngine.see_offer`."""
        from rollout.weight_receiver import see_offer

        self._raise_failure()
        await asyncio.to_thread(see_offer, stream)

    async def _received(self, weights: WeightsFile | WeightsStream) -> tuple[str, str]:
        """The digest of what came, and what it should be."""
        if isinstance(weights, WeightsFile):
            return file_sha256(weights.path), weights.sha256
        from rollout.weight_receiver import WeightReceiver

        self._receiver = self._receiver or WeightReceiver()
        received = await asyncio.to_thread(self._receiver.receive, weights, lambda tensors: None)
        return received, received

    async def update_weights(self, weights: WeightsFile | WeightsStream) -> str:
        """Take weights; returns their digest."""
        self._raise_failure()
        self._running.clear()
        await asyncio.sleep(0)
        if self.faults.skips_update:
            self._running.set()
            return self._held_sha256
        try:
            received, expected = await self._received(weights)
            if self.faults.failing_update or received != expected:
                raise WeightSyncError(f"received {received}, expected {expected}")
        except (WeightSyncError, TransferCutError) as error:
            message = f"{self.engine_id}: update to version {weights.version} failed: {error}"
            self._fail(type(error)(message))
            self._raise_failure()
        self.version = weights.version
        self._held_sha256 = received
        self.updates_taken.append(weights.version)
        self._running.set()
        return received

    async def close(self) -> None:
        """Requests in flight end with EngineDiedError."""
        self._fail(EngineDiedError(f"{self.engine_id} is closed"))

    async def _draw_time(self, query: DrivingQuery) -> None:
        await asyncio.sleep(self._delay_s)
        await self._running.wait()
        if query.row in self.faults.hanging_rows:
            await asyncio.Event().wait()

    async def _unless_failed(self, drawing: Coroutine[None, None, None]) -> None:
        async def failed() -> None:
            await self._failed.wait()

        tasks = [asyncio.ensure_future(drawing), asyncio.ensure_future(failed())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
        self._raise_failure()

    def _fail(self, failure: AlphaDriveError) -> None:
        self._failure = self._failure or failure
        self._failed.set()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _completion(
        self, query: DrivingQuery, index: int, sampling: Sampling, started: WeightVersion
    ) -> Completion:
        text = self._answer(query, index, started)
        whole = (*text.encode(), 0)
        token_ids = whole[: sampling.max_new_tokens]
        noise = _noise(query.query_id, index, started)
        shift = self.faults.corrupt_logprobs if self.updates_taken else 0.0
        logprobs = [-(noise[i % len(noise)] + 1) / 256 + shift for i in range(len(token_ids))]
        middle = len(token_ids) if started == self.version else len(token_ids) // 2
        spans = [VersionSpan(version=started, start=0, end=middle)] if middle else []
        if middle < len(token_ids):
            spans.append(VersionSpan(version=self.version, start=middle, end=len(token_ids)))
        return Completion(
            text=bytes(token_ids).removesuffix(b"\0").decode(errors="replace"),
            token_ids=token_ids,
            rollout_logprobs=tuple(logprobs),
            finish_reason="stop" if token_ids == whole else "length",
            weight_versions=tuple(spans),
        )


def _with_completion(group: RolloutGroup, **changes: Any) -> RolloutGroup:
    """The group with its first completion changed."""
    first, *others = group.completions
    return replace(group, completions=(replace(first, **changes), *others))


def _with_version(group: RolloutGroup, change: int) -> RolloutGroup:
    """The group with all tokens said to be of an older or newer version."""
    span = group.completions[0].weight_versions[0]
    version = WeightVersion(span.version.attempt, span.version.step + change)
    whole = VersionSpan(version=version, start=0, end=len(group.completions[0].token_ids))
    return _with_completion(group, weight_versions=(whole,))


SPOILERS: dict[str, Callable[[RolloutGroup], RolloutGroup]] = {
    "ticket": lambda group: replace(group, ticket=group.ticket + 1),
    "query": lambda group: replace(group, query=replace(group.query, query_id="another")),
    "count": lambda group: replace(group, completions=group.completions[1:]),
    "length": lambda group: _with_completion(
        group, rollout_logprobs=group.completions[0].rollout_logprobs[1:]
    ),
    "empty": lambda group: _with_completion(group, token_ids=(), rollout_logprobs=()),
    "nan": lambda group: _with_completion(
        group, rollout_logprobs=(math.nan, *group.completions[0].rollout_logprobs[1:])
    ),
    "future": lambda group: _with_version(group, 1),
    "past": lambda group: _with_version(group, -1),
    "no_version": lambda group: _with_completion(group, weight_versions=()),
}
"""Ways in which a group can be garbage."""


def _noise(query_id: str, index: int, version: WeightVersion) -> bytes:
    return hashlib.sha256(f"{query_id} {index} {version}".encode()).digest()


def write_fake_weights(
    path: Path, version: WeightVersion, tensors: Mapping[str, npt.NDArray[np.float32]] | None = None
) -> WeightsFile:
    """Write a safetensors file as a learner exports it; without `tensors`, one that differs by version."""
    held = tensors or {"model.norm.weight": np.array(version, dtype=np.float32)}
    save_file(dict(held), path)
    return WeightsFile(
        path=str(path), version=version, sha256=file_sha256(path), num_bytes=path.stat().st_size
    )
