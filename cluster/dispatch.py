"""Which engine draws a group, and what becomes of the group when that goes wrong.

    waits for a serving engine ─▶ drawn ─▶ waits for the proof of the weights ─▶ checked ─▶ handed on
            ▲                       │                  │                           │
            └────── tried again ────┴── engine died ───┴── engine fenced ──────────┴── garbage

A group goes to the engine with the fewest under way. A suspect (see `cluster.trials`) gets an engine of
its own: that engine takes no new group, and the suspect starts when what it had under way has ended.
With several engines one is always left for the others. Runs in the driver's event loop.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

from alphadrive.errors import EngineDiedError, GarbageError, RolloutError
from cluster.engine_handle import Engine
from cluster.load_index import LoadIndex, is_open
from cluster.remote import ActorGoneError
from cluster.trials import Trials
from cluster.workers import WorkerState

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

MAX_GARBAGE_IN_A_ROW = 2


class Engines(Protocol):
    """The engines that there are."""

    @property
    def engines(self) -> Sequence[Engine]:
        """Those that are not dead."""

    def raise_failure(self) -> None:
        """Raises what ended the pool, where something has."""

    async def changed(self) -> None:
        """Wait until an engine may have become free."""

    def notify(self) -> None:
        """Wake all that wait in `changed`."""

    def lose(self, engine: Engine, reason: object, *, blames_groups: bool = True) -> None:
        """Fence an engine."""


class Dispatcher:
    """Draws groups with the engines that there are."""

    def __init__(self, engines: Engines) -> None:
        self._pool = engines
        self._suspects: list[Trials] = []
        self._by_load = LoadIndex(lambda: engines.engines)

    def note(self, engine: Engine) -> None:
        """To be told whenever an engine's state changes."""
        self._by_load.note(engine)

    async def draw(
        self,
        trials: Trials,
        start: Callable[[Engine], Awaitable[Result]],
        check: Callable[[Engine, Result], None],
    ) -> Result:
        """Have an engine draw a group: `start` asks an engine for it, `check` raises GarbageError.

        Raises RolloutError when the group is given up, EngineDiedError when no engine can be had any more.
        """
        while True:
            engine = await self._engine_for(trials)
            result = await self._drawn(engine, trials, start)
            if result is not None and await self._is_accepted(engine, trials, result, check):
                return result
            trials.last_engine = engine
            if (failure := trials.verdict()) is not None:
                self._pool.raise_failure()
                raise failure

    async def _drawn(
        self, engine: Engine, trials: Trials, start: Callable[[Engine], Awaitable[Result]]
    ) -> Result | None:
        """What the engine answers; None where it failed."""
        if engine.num_under_way == 0:
            engine.watch.restart(asyncio.get_running_loop().time())
        drawing: asyncio.Future[Result] = asyncio.ensure_future(start(engine))
        engine.draws[drawing] = None
        self.note(engine)
        try:
            return await drawing
        except (EngineDiedError, ActorGoneError) as error:
            self._pool.lose(engine, error)
            self._note_death(engine, trials, error)
        except asyncio.CancelledError:
            if not engine.is_dead or _is_cancelled():
                raise
            self._note_death(engine, trials, "fenced")
        except (RolloutError, TimeoutError) as error:
            reason = error if str(error) else "no answer in rollout.request_timeout_s"
            logger.warning("%s failed on %s: %s", trials.label, engine.id, reason)
            trials.failed(f"{engine.id}: {reason}")
        finally:
            engine.draws.pop(drawing, None)
            if engine.reserved_for is trials:
                engine.reserved_for = None
            self.note(engine)
            if not engine.draws:
                reserve(self._pool.engines, self._suspects)
                self._pool.notify()
        return None

    def _note_death(self, engine: Engine, trials: Trials, reason: object) -> None:
        if engine.blames_groups:
            trials.engine_died(f"{engine.id}: {reason}", was_alone=engine.was_alone)
        logger.debug("%s is sent again: %s is gone", trials.label, engine.id)

    async def _is_accepted(
        self, engine: Engine, trials: Trials, result: Result, check: Callable[[Engine, Result], None]
    ) -> bool:
        """Wait for the proof of the engine's weights, then check what it has drawn."""
        await engine.settled.wait()
        if engine.was_fenced:
            logger.debug("%s is sent again: %s was fenced", trials.label, engine.id)
            return False
        try:
            check(engine, result)
        except GarbageError as error:
            logger.warning("%s", error)
            engine.garbage_in_a_row += 1
            if engine.garbage_in_a_row < MAX_GARBAGE_IN_A_ROW:
                trials.failed(error)
            else:
                self._pool.lose(engine, f"garbage again: {error}", blames_groups=False)
            return False
        engine.garbage_in_a_row = 0
        engine.groups_done += 1
        engine.last_done_s = asyncio.get_running_loop().time()
        return True

    async def _engine_for(self, trials: Trials) -> Engine:
        """Wait for an engine; where the group must be alone, one that is reserved for it and empty."""
        if trials.must_be_alone:
            self._suspects.append(trials)
            self._suspects.sort(key=lambda suspect: suspect.ticket)
        try:
            while True:
                self._pool.raise_failure()
                reserve(self._pool.engines, self._suspects)
                engine = self._choose(trials)
                if engine is not None:
                    return engine
                await self._pool.changed()
        except BaseException:
            for engine in self._pool.engines:
                if engine.reserved_for is trials:
                    engine.reserved_for = None
                    self.note(engine)
            raise
        finally:
            if trials.must_be_alone:
                self._suspects.remove(trials)

    def _choose(self, trials: Trials) -> Engine | None:
        """The engine that draws this group now; None while there is none."""
        if not trials.must_be_alone:
            return self._by_load.least_loaded(trials.last_engine)
        own = (engine for engine in self._pool.engines if is_open(engine, trials) and not engine.draws)
        return next(own, None)


def _is_cancelled() -> bool:
    """Whether the task that runs was itself told to end."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def reserve(engines: Sequence[Engine], suspects: Sequence[Trials]) -> None:
    """Give suspects, the oldest first, engines of their own: all but one engine, or the only one."""
    if not suspects:
        return
    for engine in engines:
        if engine.reserved_for in suspects and not engine.is_up:
            engine.reserved_for = None
    serving = [engine for engine in engines if engine.state is WorkerState.SERVING]
    shared = sorted(
        (engine for engine in serving if engine.reserved_for is None), key=lambda engine: engine.num_under_way
    )
    held = {id(engine.reserved_for) for engine in engines}
    num_to_give = max(1, len(serving) - 1) - (len(serving) - len(shared))
    waiting = [suspect for suspect in suspects if id(suspect) not in held]
    for suspect, engine in zip(waiting[: max(0, num_to_give)], shared, strict=False):
        engine.reserved_for = suspect
