"""How weights get from the learner to engines: in a file, or in a stream from rank 0.

    FileCarrier    export to /dev/shm ─▶ every engine reads it ─▶ deleted (one machine)
    StreamCarrier  offer ─▶ roll call of the engines ─▶ send to those that answered

What an engine received is proved by `cluster.weight_sync`, the same for both.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol

from alphadrive.config import Config
from alphadrive.errors import TransferCutError, WeightSyncError
from alphadrive.types import WeightsFile, WeightsOffer, WeightsSent, WeightsStream, WeightVersion
from cluster import remote
from cluster.engine_handle import Engine
from cluster.fleet import GONE
from cluster.learner_group import LearnerGroup
from cluster.rollout_pool import RolloutPool

logger = logging.getLogger(__name__)


class Shipment(Protocol):
    """Weights on their way to `engines`."""

    engines: Sequence[Engine]

    def to(self, engine: Engine) -> WeightsFile | WeightsStream:
        """What the engine is told to take."""

    async def sent(self) -> WeightsFile | WeightsSent:
        """What has left the learner, when all of it has. Raises LearnerError."""

    def problem(self, engine: Engine) -> str | None:
        """Why the engine did not get all of it, as far as the learner knows; once it is sent."""


class Carrier(Protocol):
    """Carries weights of one version after another."""

    def carry(
        self, engines: Sequence[Engine], version: WeightVersion
    ) -> AbstractAsyncContextManager[Shipment]:
        """The learner's weights, which are those of `version`, for engines; what carries them is there
        until the context ends. Raises LearnerError, WeightSyncError for another version."""


class FileShipment:
    """A file that every engine reads."""

    def __init__(self, engines: Sequence[Engine], weights: WeightsFile) -> None:
        self.engines = engines
        self._weights = weights

    def to(self, engine: Engine) -> WeightsFile:
        """As `Shipment`."""
        return self._weights

    async def sent(self) -> WeightsFile:
        """As `Shipment`."""
        return self._weights

    def problem(self, engine: Engine) -> None:
        """As `Shipment`."""


class FileCarrier:
    """Files in `folder` whose names start with `prefix`."""

    def __init__(self, learner: LearnerGroup, folder: Path, prefix: str) -> None:
        self._learner, self._folder, self._prefix = learner, folder, prefix

    @asynccontextmanager
    async def carry(self, engines: Sequence[Engine], version: WeightVersion) -> AsyncIterator[Shipment]:
        """As `Carrier`."""
        path = self._folder / f"{self._prefix}-{version}.safetensors"
        try:
            yield FileShipment(engines, await self._learner.export_weights(path))
        finally:
            path.unlink(missing_ok=True)


class StreamShipment:
    """A stream from the learner's rank 0 to engines that have answered the roll call."""

    def __init__(
        self,
        streams: dict[str, WeightsStream],
        engines: Sequence[Engine],
        sending: "asyncio.Task[WeightsSent]",
    ) -> None:
        self.engines = engines
        self._streams, self._sending = streams, sending

    def to(self, engine: Engine) -> WeightsStream:
        """As `Shipment`."""
        return self._streams[engine.id]

    async def sent(self) -> WeightsSent:
        """As `Shipment`."""
        return await asyncio.shield(self._sending)

    def problem(self, engine: Engine) -> str | None:
        """As `Shipment`."""
        return self._sending.result().missing.get(engine.id)


class StreamCarrier:
    """Streams by `kind` (`gloo`, `nccl`, `ipc`) in buckets; nobody is waited for longer than `timeout_s`.

    With `waits` engines end what they have under way before anything is sent.
    """

    def __init__(
        self,
        kind: str,
        pool: RolloutPool,
        learner: LearnerGroup,
        *,
        bucket_bytes: int,
        timeout_s: float,
        waits: bool = False,
    ) -> None:
        self._kind, self._pool, self._learner = kind, pool, learner
        self._bucket_bytes, self._timeout_s, self._waits = bucket_bytes, timeout_s, waits

    @asynccontextmanager
    async def carry(self, engines: Sequence[Engine], version: WeightVersion) -> AsyncIterator[Shipment]:
        """As `Carrier`. Engines that do not answer the roll call are fenced, and are not in the shipment."""
        if self._waits:
            await asyncio.gather(*(self._pool.until_empty(engine) for engine in engines))
        offer = await self._learner.offer_weights(self._kind, self._bucket_bytes, self._timeout_s)
        if offer.version != version:
            raise WeightSyncError(
                f"the learner offers version {offer.version} of its weights, expected {version}"
            )
        streams = {
            engine.id: WeightsStream(offer=offer, member=engine.id, timeout_s=self._timeout_s)
            for engine in engines
        }
        ranks = [f"{engine.id} (rank {rank} of {len(engines) + 1})" for rank, engine in enumerate(engines, 1)]
        roll_call = [
            asyncio.create_task(self._answers(engine, streams[engine.id], name))
            for engine, name in zip(engines, ranks, strict=True)
        ]
        try:
            answers = await asyncio.gather(*roll_call)
        finally:  # where the learner died, none may look for it later and find its successor on the way
            for each in roll_call:
                each.cancel()
            await asyncio.gather(*roll_call, return_exceptions=True)
        present = [engine for engine, is_here in zip(engines, answers, strict=True) if is_here]
        sending = asyncio.create_task(self._send(offer, present))
        try:
            yield StreamShipment(streams, present, sending)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def _answers(self, engine: Engine, stream: WeightsStream, name: str) -> bool:
        """Whether an engine answers the roll call; it is fenced if not. Raises LearnerDiedError where the
        learner is the reason, WeightSyncError where the engine refuses the version."""
        try:
            await remote.fetch(engine.actor.see_offer.remote(stream), self._timeout_s)
        except GONE as error:
            if isinstance(error, TimeoutError | TransferCutError):
                await self._learner.answer()
            limit = f"rollout.sync_timeout_s={self._timeout_s:g}"
            reason = str(error) or f"{name} did not answer the roll call in {limit}"
            self._pool.lose(engine, f"{engine.state} at version {stream.version}: {reason}")
            return False
        return not engine.is_dead

    async def _send(self, offer: WeightsOffer, engines: Sequence[Engine]) -> WeightsSent:
        if not engines:
            return WeightsSent(version=offer.version, sha256="", num_bytes=0, missing={})
        living = [engine.id for engine in self._pool.engines]
        return await self._learner.send_weights([engine.id for engine in engines], living)


def transfer_kind(config: Config, num_machines: int, *, may_grow: bool) -> str:
    """How weights reach the engines where `rollout.weight_transfer` leaves it open (`auto`). `may_grow`:
    machines may join while the run goes on, and have engines then."""
    rollout, learner = config.rollout, config.learner
    if rollout.weight_transfer != "auto":
        return rollout.weight_transfer
    gpus = rollout.gpus_per_worker, learner.gpus_per_rank
    if min(gpus) >= 1:
        return "nccl"
    is_here = num_machines == 1 and not may_grow
    if min(gpus) > 0 and sum(gpus) <= 1 and rollout.num_workers == learner.num_ranks == 1 and is_here:
        return "ipc"
    return "file" if is_here else "gloo"
