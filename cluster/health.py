"""Asking every engine all the time whether it lives and how many tokens it has drawn.

The answer comes from the engine's own process through a control call: an actor that is gone is noticed
at the next question, idle or not, and so is an actor whose engine process is gone. What no answer and
no token mean is `cluster.watchdog`'s business. Runs in the driver's event loop.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Protocol

from cluster import remote
from cluster.engine_handle import Engine
from cluster.workers import WorkerState

logger = logging.getLogger(__name__)

LONGEST_PERIOD_S = 5.0
"""Three questions at least in the 15 s within which a death is to be noticed."""


class Engines(Protocol):
    """The engines that are watched."""

    @property
    def engines(self) -> Sequence[Engine]:
        """Those that are not dead."""

    def lose(self, engine: Engine, reason: object) -> None:
        """Fence an engine."""


class HealthWatch:
    """Fences engines that are gone, and those that make no progress: found within `hang_timeout_s`."""

    def __init__(self, pool: Engines, hang_timeout_s: float) -> None:
        self.period_s = min(LONGEST_PERIOD_S, hang_timeout_s / 4)
        self.limit_s = hang_timeout_s - self.period_s
        self._pool = pool
        self._asking: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Ask for ever."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                due_s = loop.time() + self.period_s
                await asyncio.sleep(self.period_s)
                self._look(loop.time(), late_s=loop.time() - due_s)
        finally:
            for task in self._asking.values():
                task.cancel()

    def _look(self, now_s: float, late_s: float) -> None:
        for engine in list(self._pool.engines):
            if engine.state is WorkerState.STARTING:
                continue
            engine.watch.forgive(late_s)
            if engine.id not in self._asking:
                task = asyncio.get_running_loop().create_task(self._ask(engine))
                self._asking[engine.id] = task
                task.add_done_callback(lambda _, engine_id=engine.id: self._asking.pop(engine_id))
            complaint = engine.watch.complaint(now_s, engine.num_under_way)
            if complaint is not None and not engine.is_updating:
                self._pool.lose(engine, complaint)

    async def _ask(self, engine: Engine) -> None:
        try:
            tokens = await remote.fetch(engine.actor.health.remote())
        except Exception as error:
            self._pool.lose(engine, f"{type(error).__name__}: {error}")
        else:
            engine.watch.answered(asyncio.get_running_loop().time(), tokens)
