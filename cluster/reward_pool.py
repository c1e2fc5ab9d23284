"""The reward workers: one group each at a time, under a hard timeout.

A reward that hangs cannot be interrupted, so its worker is killed and replaced; the group is tried
once more, on another worker. What fails twice raises RewardError and the loop dead-letters it: an error never
becomes a number. Runs in the driver's event loop.
"""

import asyncio
import dataclasses
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from alphadrive.config import RewardConfig
from alphadrive.errors import RewardError
from alphadrive.types import GroupHeader
from cluster.remote import ActorGoneError, fetch, kill

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 2
START_TIMEOUT_S = 120.0


class RewardPool:
    """All reward workers of a run. `spawn(worker_id)` makes a worker's actor."""

    def __init__(self, config: RewardConfig, spawn: Callable[[str], Any]) -> None:
        self._config = config
        self._spawn = spawn
        self._workers: list[Any] = []
        self._idle: asyncio.Queue[Any] = asyncio.Queue()
        self._num_spawned = 0

    async def start(self) -> None:
        """Start all workers."""
        for worker in await asyncio.gather(*(self._make() for _ in range(self._config.num_workers))):
            self._idle.put_nowait(worker)

    async def score(self, group: object) -> GroupHeader:
        """Score the group behind a reference. Raises RewardError after the second failure."""
        failure: Exception | None = None
        for _ in range(MAX_ATTEMPTS):
            worker = await self._idle.get()
            try:
                header, scored = worker.score.options(num_returns=2).remote(group)
                return dataclasses.replace(await fetch(header, self._config.timeout_s), scored=scored)
            except (TimeoutError, ActorGoneError) as error:
                failure = error
                logger.warning("a reward worker is replaced: %s", _words(error, self._config.timeout_s))
                worker = await self._replace(worker)
            except RewardError as error:
                failure = error
                with suppress(RewardError, ActorGoneError):
                    await fetch(scored)  # the same error; Ray reports one that nobody looks at
            finally:
                self._idle.put_nowait(worker)
        assert failure is not None
        raise RewardError(
            f"failed {MAX_ATTEMPTS} times: {_words(failure, self._config.timeout_s)}"
        ) from failure

    async def flush(self) -> None:
        """Write what was scored until now: afterwards no worker holds a group that was given to it before."""
        for worker in self._workers:
            try:
                await fetch(worker.flush.remote(), self._config.timeout_s)
            except (TimeoutError, ActorGoneError) as error:
                logger.warning("a reward worker did not write what it has scored: %s", error)

    async def close(self) -> None:
        """Write what is not on disk yet and end the workers."""
        for worker in self._workers:
            try:
                await fetch(worker.close.remote(), self._config.timeout_s)
            except (TimeoutError, ActorGoneError) as error:
                logger.warning("a reward worker did not close by itself: %s", error)
            kill(worker)
        self._workers = []

    async def _make(self) -> Any:
        worker = self._spawn(f"w{self._num_spawned}")
        self._num_spawned += 1
        self._workers.append(worker)
        await fetch(worker.ready.remote(), START_TIMEOUT_S)
        return worker

    async def _replace(self, worker: Any) -> Any:
        self._workers.remove(worker)
        kill(worker)
        return await self._make()


def _words(failure: Exception, timeout_s: float) -> str:
    if isinstance(failure, TimeoutError):
        return f"no answer in rewards.timeout_s={timeout_s}"
    return f"{type(failure).__name__}: {failure}"
