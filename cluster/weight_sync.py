"""Weights from the learner to every engine, with proof.

    learner rank 0 ─ carrier: a file in /dev/shm, or a stream ─▶ all engines at once
                                                                   digest of what each received
                                                                   canary groups ─▶ learner compares

No engine is given a new group between `begin_sync` and its proof. With `update_mode` `keep` an engine is
updated between two tokens, and what it finishes before the proof waits for it; with `wait` it first ends
what it has under way. Each engine is opened as soon as it is proved. A mismatch raises WeightSyncError:
the run stops before its next step. An engine that dies or does not answer in `rollout.sync_timeout_s` is
fenced, and the publish completes without it; its successor catches up.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any

from alphadrive import metric_names as names
from alphadrive.errors import EngineDiedError, LearnerError, WeightSyncError
from alphadrive.types import DrivingQuery, WeightVersion
from cluster import remote
from cluster.carriers import Carrier, Shipment
from cluster.engine_handle import Engine
from cluster.fleet import GONE
from cluster.learner_group import LearnerGroup
from cluster.proof import CanaryLimit, canary_sampling, check_digest
from cluster.rollout_pool import RolloutPool
from rollout.settings import CANARY_TICKET, UpdateReceipt

logger = logging.getLogger(__name__)

LAST_WAIT_S = 5.0
"""For updates under way, when the publish is given up."""
OWN_WORD_S = 2.0
"""For the own error of an engine that the sender of a stream gave up."""


class WeightSync:
    """Publishes versions to the engines of a pool by way of `carrier`."""

    def __init__(
        self,
        pool: RolloutPool,
        learner: LearnerGroup,
        queries: Sequence[DrivingQuery],
        limit: CanaryLimit,
        *,
        temperature: float,
        timeout_s: float,
        carrier: Carrier,
        update_mode: str = "keep",
    ) -> None:
        self.seconds: list[float] = []
        """Of each publish: export, transfer, canaries, comparison."""
        self.paused_seconds: list[float] = []
        """Of each publish: the longest that an engine drew nothing."""
        self.canary_differences: list[float] = []
        self.latest: dict[str, float] = {}
        """Parts of the latest publish, by the names of their metrics."""
        self._paused_s = 0.0
        self._pool = pool
        self._learner = learner
        self._queries = queries
        self._limit = limit
        self._sampling = canary_sampling(temperature)
        self._timeout_s = timeout_s
        self._carrier = carrier
        self._update_mode = update_mode

    @property
    def is_calibrated(self) -> bool:
        """Whether `calibrate` has set the limit."""
        return self._limit.limit is not None

    async def calibrate(self) -> None:
        """Compare engines and learner before any transfer; sets the limit for all that follow.

        From then on a new engine catches up before it serves. Raises WeightSyncError.
        """
        while True:
            async with self._learner.lock:
                engines = self._pool.begin_sync()
                drawn = await asyncio.gather(*(self._first_canaries(engine) for engine in engines))
                alive = [(engine, groups) for engine, groups in zip(engines, drawn, strict=True) if groups]
                if alive:
                    differences = await self._differences([groups for _, groups in alive])
                    self._limit.calibrate(differences)
                    self._pool.catch_up = self.catch_up
                    for engine, _ in alive:
                        self._pool.admit(engine)
                    break
            await self._pool.changed()
        logger.info("canary at the start: %.2g, limit %.2g", max(differences), self._limit.limit)

    async def publish(self, version: WeightVersion) -> None:
        """Bring every engine that is up to `version`, which is the learner's. Raises WeightSyncError."""
        started_s = time.monotonic()
        async with self._learner.lock:
            engines = self._pool.begin_sync(holds_groups=self._update_mode == "keep")
            if engines:
                await self._bring(engines, version)
        self.seconds.append(time.monotonic() - started_s)
        self.paused_seconds.append(self._paused_s)

    async def catch_up(self, engine: Engine) -> None:
        """Bring one new engine to the learner's weights, with the same proof. Raises WeightSyncError,
        EngineDiedError when it is lost again."""
        async with self._learner.lock:
            if not engine.is_dead:
                await self._bring([engine], self._learner.version)
        if engine.was_fenced:
            raise EngineDiedError(f"{engine.id} was lost while it took the current weights")

    async def _bring(self, engines: Sequence[Engine], version: WeightVersion) -> None:
        begun_s = time.monotonic()
        async with self._carrier.carry(engines, version) as shipment:
            self.latest[names.SYNC_EXPORT_S] = time.monotonic() - begun_s
            updates = {
                asyncio.create_task(self._update(engine, shipment, version)): engine
                for engine in shipment.engines
            }
            try:
                await self._prove_in_turn(updates, version)
            except WeightSyncError:
                raise
            except BaseException:
                # An engine whose update is cut in two is lost; waiting for the end of it costs less.
                if updates:
                    await asyncio.wait(updates, timeout=LAST_WAIT_S)
                self._lose_mismatched(updates)
                raise
            finally:
                for task in updates:
                    task.cancel()
                await asyncio.gather(*updates, return_exceptions=True)

    def _lose_mismatched(self, updates: dict[asyncio.Task[list[object]], Engine]) -> None:
        """Fence engines that took other weights than the learner's: a run whose learner died meanwhile goes
        on without hearing of it, and a canary may not see small damage."""
        for task, engine in updates.items():
            error = task.exception() if task.done() and not task.cancelled() else None
            if isinstance(error, WeightSyncError):
                self._pool.lose(engine, error, blames_groups=False)

    async def _prove_in_turn(
        self, updates: dict[asyncio.Task[list[object]], Engine], version: WeightVersion
    ) -> None:
        """Compare and open the engines as they come, so that none waits for one that hangs."""
        waiting = set(updates)
        largest: list[float] = []
        self._paused_s = canary_s = 0.0
        started_s = time.monotonic()
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            drawn = [(updates[task], task.result()) for task in done]
            updated = [(engine, groups) for engine, groups in drawn if groups]
            arrived_s = time.monotonic()
            differences = await self._differences([groups for _, groups in updated]) if updated else []
            canary_s += time.monotonic() - arrived_s
            for (engine, _), difference in zip(updated, differences, strict=True):
                self._limit.check(engine.id, version, difference)
                self._pool.admit(engine, version)
            largest += differences
        if largest:
            self.canary_differences.append(max(largest))
            self.latest[names.SYNC_ENGINE_S] = arrived_s - started_s
            self.latest[names.SYNC_CANARY_S] = canary_s

    async def _update(self, engine: Engine, shipment: Shipment, version: WeightVersion) -> list[object]:
        """Update one engine and have it draw canaries; none if it was fenced."""
        if self._update_mode == "wait":
            await self._pool.until_empty(engine)
        engine.is_updating = True
        try:
            update = engine.actor.update_weights.options(num_returns=1 + len(self._queries))
            first, *groups = update.remote(shipment.to(engine), self._queries, self._sampling)
            try:
                weights = await shipment.sent()
            except LearnerError:
                remote.forget(first, *groups)
                raise
            if problem := shipment.problem(engine):
                raise EngineDiedError(f"{problem}{await _own_word(first)}")
            receipt: UpdateReceipt = await remote.fetch(first, self._timeout_s)
        except GONE as error:
            remote.forget(*groups)
            reason = str(error) or f"no answer in rollout.sync_timeout_s={self._timeout_s}"
            self._pool.lose(engine, f"{engine.state} at version {version}: {reason}")
            return []
        finally:
            engine.is_updating = False
            engine.watch.restart(asyncio.get_running_loop().time())
        check_digest(engine.id, weights, receipt.sha256, version)
        self._paused_s = max(self._paused_s, receipt.paused_s)
        return groups

    async def _first_canaries(self, engine: Engine) -> list[object]:
        """Canaries of an engine that has had no update; none if it was fenced."""
        pairs = [
            engine.actor.generate.options(num_returns=2).remote(CANARY_TICKET, query, self._sampling)
            for query in self._queries
        ]
        try:
            await asyncio.gather(*(remote.fetch(receipt, self._timeout_s) for receipt, _ in pairs))
        except GONE as error:
            remote.forget(*(group for _, group in pairs))
            self._pool.lose(engine, str(error) or "no canary in rollout.sync_timeout_s")
            return []
        return [group for _, group in pairs]

    async def _differences(self, groups: Sequence[list[object]]) -> list[float]:
        """The largest difference for each engine's canary groups; one call of the learner for all."""
        flat = iter(await self._learner.logprob_differences([group for own in groups for group in own]))
        return [max(next(flat) for _ in own) for own in groups]


async def _own_word(receipt: Any) -> str:
    """What an engine says of an update that the sender gave up, to be put behind the sender's reason; empty
    where it says nothing soon."""
    try:
        await remote.fetch(receipt, OWN_WORD_S)
    except TimeoutError:
        remote.forget(receipt)
    except Exception as error:  # whatever the engine's libraries raise
        return f"; the engine: {type(error).__name__}: {error}"
    return ""
