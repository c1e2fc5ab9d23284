"""The rollout engines: which one draws a group, and what happens when one dies.

                     start                    begin_sync
    (spawned) STARTING ──────────▶ SERVING ◀──────────────▶ SYNCING
                  ▲                   │  admit (canary passed)  │
                  │ catch_up          ▼                         │ no answer in time, died
                  └─── restart ── LOST ◀────────────────────────┘

A group goes to the engine with the fewest under way. If the engine is lost, its groups are sent to
another one with the same ticket, and a new engine is started in its place; it serves after
`catch_up` brought it the current weights and the proof. A group drawn while its engine was being
synchronised is handed on only after the proof. Runs in the driver's event loop.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Any, TypeVar

from alphadrive.config import RolloutConfig
from alphadrive.errors import EngineDiedError, RolloutError
from alphadrive.types import DrivingQuery
from cluster.remote import ActorGoneError, fetch, fetch_or_cancel, kill
from rollout.settings import EngineSettings, Sampling

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

START_TIMEOUT_S = 600.0
PROGRESS_TIMEOUT_S = 10.0


class EngineState(StrEnum):
    """Where an engine is in its life."""

    STARTING = "starting"
    SERVING = "serving"
    SYNCING = "syncing"
    LOST = "lost"


class Engine:
    """The driver's handle on one engine actor; a restarted engine gets a new one."""

    def __init__(self, index: int, engine_id: str, actor: Any) -> None:
        self.index = index
        self.engine_id = engine_id
        self.actor = actor
        self.pid = 0
        self.state = EngineState.STARTING
        self.num_running = 0
        self.settled = asyncio.Event()
        """Set unless the engine is being synchronised."""


class RolloutPool:
    """All engines of a run. `spawn` makes an engine's actor, `settings_of` its settings."""

    def __init__(
        self,
        config: RolloutConfig,
        spawn: Callable[[int], Any],
        settings_of: Callable[[int], EngineSettings],
        group_sampling: Callable[[int], Sampling],
        answer_sampling: Sampling,
    ) -> None:
        self.engines: list[Engine] = []
        self.catch_up: Callable[[Engine], Awaitable[None]] | None = None
        self.num_lost = 0
        self._config = config
        self._spawn = spawn
        self._settings_of = settings_of
        self._group_sampling = group_sampling
        self._answer_sampling = answer_sampling
        self._restarts: set[asyncio.Task[None]] = set()
        self._failure: Exception | None = None
        self._changed = asyncio.Event()

    async def start(self) -> None:
        """Start all engines at once. Raises what the first one that cannot start raised."""
        self.engines = [self._make(index) for index in range(self._config.num_workers)]
        await asyncio.gather(*(self._bring_up(engine) for engine in self.engines))
        for engine in self.engines:
            self.admit(engine)

    async def generate(self, ticket: int, query: DrivingQuery) -> object:
        """Draw a group; returns a reference to it.

        Raises RolloutError when `rollout.max_attempts` engines failed on it, EngineDiedError when
        no engine can be had any more.
        """
        sampling = self._group_sampling(ticket)

        async def draw(engine: Engine) -> object:
            receipt, group = engine.actor.generate.options(num_returns=2).remote(ticket, query, sampling)
            await fetch_or_cancel(receipt, self._config.request_timeout_s)
            return group

        return await self._attempts(draw, f"ticket {ticket} ({query.query_id})")

    async def answer(self, query: DrivingQuery) -> str:
        """A greedy answer on the evaluation set. Raises as `generate`."""

        async def draw(engine: Engine) -> str:
            reference = engine.actor.answer.remote(query, self._answer_sampling)
            return await fetch_or_cancel(reference, self._config.request_timeout_s)

        return await self._attempts(draw, f"evaluation of {query.query_id}")

    def begin_sync(self) -> list[Engine]:
        """Close every serving engine to new groups; the engines that are to get new weights, those that a
        sync was cut off with included.

        Raises the failure that ended the pool, where there is one.
        """
        self._raise_failure()
        states = (EngineState.SERVING, EngineState.SYNCING)
        engines = [engine for engine in self.engines if engine.state in states]
        for engine in engines:
            engine.state = EngineState.SYNCING
            engine.settled.clear()
        return engines

    def living(self) -> list[Engine]:
        """Engines that are not lost."""
        return [engine for engine in self.engines if engine.state is not EngineState.LOST]

    def admit(self, engine: Engine) -> None:
        """Open an engine that has proved its weights."""
        if engine.state is not EngineState.LOST:
            engine.state = EngineState.SERVING
            engine.settled.set()
            self._notify()

    def lose(self, engine: Engine, reason: Exception | str) -> None:
        """Fence an engine: kill it, start another in its place if the budget allows."""
        if engine.state is EngineState.LOST:
            return
        engine.state = EngineState.LOST
        engine.settled.set()
        kill(engine.actor)
        self.num_lost += 1
        logger.warning("%s lost (%d so far): %s", engine.engine_id, self.num_lost, reason)
        if self.num_lost > self._config.max_restarts:
            self._fail(
                EngineDiedError(
                    f"{engine.engine_id} was lost, the {self.num_lost}. engine of this run; "
                    f"rollout.max_restarts={self._config.max_restarts} is used up. The last reason: {reason}"
                )
            )
        else:
            task = asyncio.create_task(self._restart(engine))
            self._restarts.add(task)
            task.add_done_callback(self._restarts.discard)
        self._notify()

    async def close(self) -> None:
        """Stop all engines and their processes."""
        for task in list(self._restarts):
            task.cancel()
        await asyncio.gather(*self._restarts, return_exceptions=True)
        await asyncio.gather(*(self._close(engine) for engine in self.engines))

    async def _attempts(self, draw: Callable[[Engine], Awaitable[Result]], label: str) -> Result:
        failure: Exception | None = None
        for _ in range(self._config.max_attempts):
            engine = await self._least_loaded()
            engine.num_running += 1
            try:
                result = await draw(engine)
                await engine.settled.wait()
                if engine.state is not EngineState.LOST:
                    return result
                failure = EngineDiedError(f"{engine.engine_id} was fenced while it drew {label}")
            except (EngineDiedError, ActorGoneError) as error:
                failure = error
                self.lose(engine, error)
                logger.debug("%s is sent again", label)
            except TimeoutError:
                failure = RolloutError(
                    f"{engine.engine_id} did not answer {label} in rollout.request_timeout_s="
                    f"{self._config.request_timeout_s}"
                )
                logger.warning("%s", failure)
                await self._lose_if_stuck(engine)
            except RolloutError as error:
                failure = error
                logger.warning("%s failed: %s", label, error)
            finally:
                engine.num_running -= 1
        self._raise_failure()
        raise RolloutError(
            f"{label}: given up after rollout.max_attempts={self._config.max_attempts}: {failure}"
        )

    async def _least_loaded(self) -> Engine:
        while True:
            self._raise_failure()
            serving = [engine for engine in self.engines if engine.state is EngineState.SERVING]
            if serving:
                return min(serving, key=lambda engine: engine.num_running)
            await self._changed.wait()

    async def _lose_if_stuck(self, engine: Engine) -> None:
        """Fence an engine that answers no control call or draws no token at all for a while."""
        try:
            before = await fetch(engine.actor.tokens_generated.remote(), PROGRESS_TIMEOUT_S)
            await asyncio.sleep(PROGRESS_TIMEOUT_S)
            after = await fetch(engine.actor.tokens_generated.remote(), PROGRESS_TIMEOUT_S)
        except (TimeoutError, ActorGoneError) as error:
            self.lose(engine, f"stuck: {type(error).__name__} from a control call")
        else:
            if before == after:
                self.lose(engine, f"stuck: no progress in {PROGRESS_TIMEOUT_S:.0f} s after a timeout")

    def _make(self, index: int, generation: int = 0) -> Engine:
        suffix = f".{generation}" if generation else ""
        return Engine(index, f"engine-{index}{suffix}", self._spawn(index))

    async def _bring_up(self, engine: Engine) -> None:
        settings = self._settings_of(engine.index)
        started = engine.actor.start.remote(settings, engine.engine_id)
        try:
            engine.pid = await fetch(started, START_TIMEOUT_S)
        except (ActorGoneError, TimeoutError) as error:
            raise EngineDiedError(
                f"{engine.engine_id} did not start: {error or type(error).__name__}"
            ) from error

    async def _restart(self, lost: Engine) -> None:
        engine = self._make(lost.index, self.num_lost)
        self.engines[lost.index] = engine
        try:
            await self._bring_up(engine)
            if self.catch_up is not None:
                await self.catch_up(engine)
        except (EngineDiedError, ActorGoneError, TimeoutError) as error:
            self.lose(engine, error)
        except Exception as error:
            self._fail(error)
        else:
            logger.info("%s serves in place of %s", engine.engine_id, lost.engine_id)
            self.admit(engine)

    async def _close(self, engine: Engine) -> None:
        if engine.state in (EngineState.SERVING, EngineState.SYNCING):
            try:
                await fetch(engine.actor.close.remote(), PROGRESS_TIMEOUT_S)
            except (TimeoutError, ActorGoneError) as error:
                logger.warning("%s did not close by itself: %s", engine.engine_id, error)
        engine.state = EngineState.LOST
        engine.settled.set()
        kill(engine.actor)

    def _fail(self, failure: Exception) -> None:
        self._failure = self._failure or failure
        self._notify()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
