"""The rollout engines: which may draw, which must prove their weights first, what becomes of their groups.

    started ─▶ STALE ─ catch_up: current weights, proved ─▶ SERVING ─▶ DRAINING ─▶ closed
                 ▲                                            │
                 └────────── begin_sync ◀──── admit ──────────┘        lose: killed, another started

How many there are is `cluster.fleet`'s business, which one draws a group `cluster.dispatch`'s, the watch for
hangs `cluster.health`'s. Runs in the driver's event loop.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from alphadrive.config import RolloutConfig
from alphadrive.errors import AlphaDriveError, EngineDiedError, LearnerError
from alphadrive.types import DrivingQuery, WeightVersion
from cluster import remote
from cluster.batches import BatchItem
from cluster.dispatch import Dispatcher
from cluster.engine_handle import Engine
from cluster.exchange import Drawn, Line
from cluster.fleet import GONE, Craft, Fleet
from cluster.headers import check_receipt
from cluster.health import HealthWatch
from cluster.restarts import RestartPolicy
from cluster.trials import Trials
from cluster.watchdog import ProgressWatch
from cluster.workers import WorkerState, WorkerStatus
from rollout.settings import EngineSettings, Sampling

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 600.0
PERIOD_S = 0.004
"""Between two exchanges with any engines, so that there are no more of them with more engines."""
LONGEST_PERIOD_S = 1.0
"""Between two with the same engine."""


class RolloutPool:
    """All engines of a run. `spawn` makes an engine's actor, `settings_of` its settings; `room` says what is
    free for one."""

    def __init__(
        self,
        config: RolloutConfig,
        spawn: Callable[[int], Any],
        settings_of: Callable[[int], EngineSettings],
        group_sampling: Callable[[DrivingQuery], Sampling],
        answer_sampling: Sampling,
        room: Callable[[], str] = str,
    ) -> None:
        self.catch_up: Callable[[Engine], Awaitable[None]] | None = None
        """Brings a new engine the current weights and their proof; without it a new one serves at once."""
        self.start_seconds: list[float] = []
        """Of every engine that came up: loading, and, where there were any, the current weights and their
        proof."""
        self._config = config
        self._spawn = spawn
        self._settings_of = settings_of
        self._group_sampling = group_sampling
        self._answer_sampling = answer_sampling
        craft = Craft(
            kind="rollout",
            prefix="engine-",
            make=self._make,
            start=self._start_engine,
            taken_back_as=WorkerState.STALE,
            take_back=self._bring_weights,
            until_empty=self._until_closable,
            none_left=self._none_left,
            needs=f"{config.cpus_per_worker:g} CPUs and {config.gpus_per_worker:g} GPUs",
            room=room,
        )
        policy = RestartPolicy(config.max_restarts)
        self._fleet: Fleet[Engine] = Fleet(craft, policy, config.request_timeout_s)
        self._dispatcher = Dispatcher(self)
        self._health = HealthWatch(self, config.hang_timeout_s)

    @property
    def engines(self) -> Sequence[Engine]:
        """The engines that are not dead."""
        return self._fleet.living

    @property
    def num_wanted(self) -> int:
        """Engines there are to be."""
        return self._fleet.num_wanted

    @property
    def num_lost(self) -> int:
        """Engines that died, hung or were fenced so far."""
        return self._fleet.num_lost

    @property
    def num_up(self) -> int:
        """Engines that serve, or will as soon as their weights are proved."""
        return self._fleet.num_up

    async def start(self) -> None:
        """Start all engines; returns when those that have room are up, or are being tried again.

        Raises InputError where an engine says that it cannot start, EngineDiedError when none can be had.
        """
        self._fleet.in_background(self._health.run())
        await self._fleet.start(self._config.num_workers)

    async def generate(self, ticket: int, query: DrivingQuery) -> BatchItem:
        """Draw a group; returns where it is.

        Raises RolloutError when the group is given up (see `cluster.trials`), EngineDiedError when no
        engine can be had any more.
        """
        sampling = self._group_sampling(query)
        held: WeightVersion | None = None

        def start(engine: Engine) -> asyncio.Future[Drawn]:
            nonlocal held
            held = engine.version
            return engine.line.order(ticket, query, sampling)

        def check(engine: Engine, drawn: Drawn) -> None:
            versions = (held, engine.version)
            check_receipt(drawn[0], engine.id, ticket, query, sampling.num_samples, versions)

        trials = Trials(f"ticket {ticket} ({query.query_id})", ticket, self._config.max_attempts)
        return (await self._dispatcher.draw(trials, start, check))[1]

    async def answer(self, query: DrivingQuery) -> str:
        """A greedy answer on the evaluation set. Raises as `generate`."""

        async def start(engine: Engine) -> str:
            reference = engine.actor.answer.remote(query, self._answer_sampling)
            return await remote.fetch_or_cancel(reference, self._config.request_timeout_s)

        trials = Trials(f"evaluation of {query.query_id}", -1, self._config.max_attempts)
        return await self._dispatcher.draw(trials, start, lambda engine, text: None)

    def resize(self, num_workers: int) -> None:
        """Want so many engines from now on; returns at once.

        New ones start in the background and serve when they have proved their weights; those too many end
        what they have under way, the ones with the fewest groups first. Raises ValueError below 1.
        """
        self._fleet.resize(num_workers)

    def drain_node(self, node_id: str, deadline_s: float | None) -> None:
        """Empty a node that goes away in `deadline_s` seconds (None: it does not say when).

        What its engines have under way ends there, or is drawn elsewhere with the same ticket when the
        time is nearly over; their successors are placed on other nodes.
        """
        self._fleet.drain_node(node_id, deadline_s)

    def actors(self) -> list[tuple[str, Any]]:
        """Id and actor of every engine that is not dead."""
        return [(engine.id, engine.actor) for engine in self.engines]

    def workers(self) -> list[WorkerStatus]:
        """All engines, and those that died in the last minutes."""
        return self._fleet.statuses()

    def begin_sync(self, *, holds_groups: bool = True) -> list[Engine]:
        """Close every engine to new groups; the engines that are to get new weights.

        With `holds_groups` what they draw from now on waits for the proof. Raises the failure that ended
        the pool, where there is one.
        """
        self.raise_failure()
        engines = [engine for engine in self.engines if engine.is_up and not engine.is_catching_up]
        for engine in engines:
            if engine.state is WorkerState.SERVING:
                engine.enter(WorkerState.STALE)
            if holds_groups:
                engine.settled.clear()
        return engines

    async def until_empty(self, engine: Engine) -> None:
        """Wait until an engine has no group under way, or is dead."""
        while engine.num_under_way and not engine.is_dead:
            await self.changed()

    def admit(self, engine: Engine, version: WeightVersion | None = None) -> None:
        """Open an engine that has proved its weights, those of `version` (None: the ones it had)."""
        if engine.is_dead:
            return
        engine.version = version or engine.version
        if engine.state is WorkerState.STALE:
            engine.enter(WorkerState.SERVING)
        engine.settled.set()
        self.notify()

    def lose(self, engine: Engine, reason: object, *, blames_groups: bool = True) -> None:
        """Fence an engine: kill it, and start another in its place.

        `blames_groups`: what it had under way may be the reason. Where that was one group on an engine of
        its own, the death is the group's and not the engine's.
        """
        if engine.is_dead:
            return
        engine.blames_groups = blames_groups and engine.state is not WorkerState.DRAINING
        engine.was_alone = engine.num_under_way == 1
        is_groups_fault = blames_groups and engine.was_alone and engine.reserved_for is not None
        self._fleet.lose(engine, reason, counts=not is_groups_fault)

    async def close(self) -> None:
        """Stop all engines and their processes."""
        await self._fleet.close()

    async def changed(self) -> None:
        """Wait until something may have become possible that was not."""
        await self._fleet.changed()

    def notify(self) -> None:
        """Wake all that wait in `changed`."""
        self._fleet.notify()

    def raise_failure(self) -> None:
        """Raise what ended the pool, where something has."""
        self._fleet.raise_failure()

    def _make(self, index: int, engine_id: str) -> Engine:
        watch = ProgressWatch(self._health.limit_s, asyncio.get_running_loop().time())
        actor = self._spawn(index)
        line = Line(actor, self._config.request_timeout_s, self._period_s)
        return Engine(index, engine_id, actor, watch, line, self._dispatcher.note)

    def _period_s(self) -> float:
        return min(LONGEST_PERIOD_S, len(self.engines) * PERIOD_S)

    async def _start_engine(self, engine: Engine) -> None:
        settings = self._settings_of(engine.index)
        started_s = asyncio.get_running_loop().time()
        try:
            await remote.fetch(engine.actor.start.remote(settings, engine.id), START_TIMEOUT_S)
        except (AlphaDriveError, TimeoutError):
            raise
        except Exception as error:
            raise EngineDiedError(f"{engine.id}: {type(error).__name__}: {error}") from error
        if not engine.is_dead:  # scaled down meanwhile
            engine.version = settings.initial_version
            engine.enter(WorkerState.STALE)
            await self._bring_weights(engine)
            if engine.state is WorkerState.SERVING:
                self.start_seconds.append(asyncio.get_running_loop().time() - started_s)

    async def _bring_weights(self, engine: Engine) -> None:
        """Bring an engine the current weights, and open it when it has proved them."""
        if engine.is_dead:
            return
        engine.watch.restart(asyncio.get_running_loop().time())
        if self.catch_up is None:
            self.admit(engine)
            return
        engine.is_catching_up = True
        self.notify()
        try:
            await self.catch_up(engine)
        except GONE as error:
            self.lose(engine, error or type(error).__name__)
        except LearnerError as error:
            logger.warning("%s waits for the learner to come back: %s", engine.id, error)
        else:
            logger.info("%s serves", engine.id)
        finally:
            engine.is_catching_up = False

    async def _until_closable(self, engine: Engine) -> None:
        await self.until_empty(engine)
        await engine.settled.wait()

    def _none_left(self, reason: str) -> Exception:
        return EngineDiedError(
            "no engine is left, and none stays up when it is started again: "
            f"rollout.max_restarts={self._config.max_restarts} is used up. The last reason: {reason}"
        )
