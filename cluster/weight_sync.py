"""Weights from the learner to every engine, with proof.

    learner rank 0 ─ export ─▶ /dev/shm/alphadrive-….safetensors ─▶ all engines at once ─▶ file deleted
                                                                      digest of what each received
                                                                      canary groups ─▶ learner compares

No engine draws a new group between `begin_sync` and the proof, and what it finishes meanwhile waits
for the proof. A mismatch raises WeightSyncError: the run stops before its next step. An engine that
dies or does not answer in `rollout.sync_timeout_s` is fenced, and the publish completes without it.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from alphadrive.errors import EngineDiedError, LearnerDiedError
from alphadrive.types import DrivingQuery, WeightsFile, WeightVersion
from cluster.learner_group import LearnerGroup
from cluster.proof import CANARY_TICKET, CanaryLimit, canary_sampling, check_digest
from cluster.remote import ActorGoneError, fetch
from cluster.rollout_pool import Engine, RolloutPool

logger = logging.getLogger(__name__)


class WeightSync:
    """Publishes versions to the engines of a pool, files by way of `folder`."""

    def __init__(
        self,
        pool: RolloutPool,
        learner: LearnerGroup,
        queries: Sequence[DrivingQuery],
        limit: CanaryLimit,
        *,
        temperature: float,
        timeout_s: float,
        folder: Path,
        prefix: str,
    ) -> None:
        self.seconds: list[float] = []
        self.canary_differences: list[float] = []
        self._pool = pool
        self._learner = learner
        self._queries = queries
        self._limit = limit
        self._sampling = canary_sampling(temperature)
        self._timeout_s = timeout_s
        self._folder = folder
        self._prefix = prefix

    @property
    def is_calibrated(self) -> bool:
        """Whether `calibrate` has set the limit."""
        return self._limit.limit is not None

    async def calibrate(self) -> None:
        """Compare engines and learner before any transfer; sets the limit for all that follow."""
        async with self._learner.lock:
            engines = self._pool.begin_sync()
            groups = await asyncio.gather(*(self._draw_canaries(engine) for engine in engines))
            differences = await self._differences(groups)
            self._limit.calibrate(differences)
            for engine in engines:
                self._pool.admit(engine)
        logger.info("canary at the start: %.2g, limit %.2g", max(differences), self._limit.limit)

    async def publish(self, version: WeightVersion) -> None:
        """Bring every serving engine to `version`, which is the learner's. Raises WeightSyncError."""
        started_s = time.monotonic()
        async with self._learner.lock:
            await self._bring(self._pool.begin_sync(), version)
        self.seconds.append(time.monotonic() - started_s)

    async def catch_up(self, engine: Engine) -> None:
        """Bring one new engine to the learner's weights, with the same proof; waits while the learner
        restarts. Raises WeightSyncError, EngineDiedError when it is lost again."""
        while True:
            await self._learner.is_up.wait()
            try:
                async with self._learner.lock:
                    await self._bring([engine], self._learner.version)
                break
            except LearnerDiedError as error:
                logger.info("%s waits for the learner: %s", engine.engine_id, error)
        if engine not in self._pool.living():
            raise EngineDiedError(f"{engine.engine_id} was lost while it took the current weights")

    def remove_files(self) -> None:
        """Remove what an interrupted publish left behind."""
        for path in self._folder.glob(f"*{self._prefix}*"):
            path.unlink(missing_ok=True)

    async def _bring(self, engines: Sequence[Engine], version: WeightVersion) -> None:
        path = self._folder / f"{self._prefix}-{version}.safetensors"
        try:
            weights = await self._learner.export_weights(path)
            updated = await asyncio.gather(*(self._update(engine, weights, version) for engine in engines))
        finally:
            path.unlink(missing_ok=True)
        proved = [(engine, groups) for engine, groups in zip(engines, updated, strict=True) if groups]
        if not proved:
            return
        differences = await self._differences([groups for _, groups in proved])
        self.canary_differences.append(max(differences))
        for (engine, _), difference in zip(proved, differences, strict=True):
            self._limit.check(engine.engine_id, version, difference)
        for engine, _ in proved:
            self._pool.admit(engine)

    async def _update(self, engine: Engine, weights: WeightsFile, version: WeightVersion) -> list[object]:
        """Update one engine and draw its canaries; none if it was fenced."""
        try:
            received = await fetch(engine.actor.update_weights.remote(weights), self._timeout_s)
            check_digest(engine.engine_id, weights, received, version)
            return await self._draw_canaries(engine)
        except TimeoutError:
            reason = f"no answer in rollout.sync_timeout_s={self._timeout_s}"
        except (EngineDiedError, ActorGoneError) as error:
            reason = str(error)
        self._pool.lose(engine, f"STALE at version {version}: {reason}")
        return []

    async def _draw_canaries(self, engine: Engine) -> list[object]:
        pairs = [
            engine.actor.generate.options(num_returns=2).remote(CANARY_TICKET, query, self._sampling)
            for query in self._queries
        ]
        await asyncio.gather(*(fetch(receipt, self._timeout_s) for receipt, _ in pairs))
        return [group for _, group in pairs]

    async def _differences(self, groups: Sequence[list[object]]) -> list[float]:
        """The largest difference for each engine's canary groups; one call of the learner for all."""
        flat = iter(await self._learner.logprob_differences([group for own in groups for group in own]))
        return [max(next(flat) for _ in own) for own in groups]
