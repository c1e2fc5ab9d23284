"""The learner's end of a transfer, in the process of its rank 0.

    offer ─▶ which tensors stand in the store; engines answer the driver's roll call
    send  ─▶ groups with the engines called up: those kept from the last sync, or new ones
             bucket by bucket: pack, digest, send;  at the end the digest into the store

An engine that cannot be reached or stands still is named in the result and left out from then on.
"""

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import cycle
from typing import Protocol
from uuid import uuid4

import torch
from torch import Tensor
from torch.distributed import Work

from alphadrive.errors import WeightSyncError
from alphadrive.types import WeightsOffer, WeightsSent
from alphadrive.weight_layout import WeightLayout
from alphadrive.weights import WeightDigest
from rollout.gloo_link import LEARNER, GlooLink
from rollout.weight_buckets import Named, add_to_digest, pack, unpack
from rollout.weight_store import Round, open_store

logger = logging.getLogger(__name__)

Buckets = Iterable[list[Tensor]]
Reasons = dict[str, str]
"""By engine, why it does not get the weights."""


class Fabric(Protocol):
    """How bytes get from the learner to the engines."""

    def connect(self, notes: Round, members: Sequence[str], living: Sequence[str]) -> Reasons:
        """Have groups with all `members`; those of engines that are not `living` any more are let go."""

    def send(self, layout: WeightLayout, buckets: Buckets, digest: WeightDigest) -> Reasons:
        """Send all buckets, and add all tensors to `digest`, whoever is left to take them."""

    def close(self) -> None:
        """End all groups."""


class WeightSender:
    """Sends the learner's weights by way of `kind` (`gloo`, `nccl`, `ipc`); its store listens on `host`."""

    def __init__(self, kind: str, host: str, timeout_s: float) -> None:
        self._kind, self._host = kind, host
        self._store = open_store(host)
        self._fabric = make_fabric(kind, host, timeout_s)
        self._round: Round | None = None
        self._members: list[str] = []
        self._num_rounds = 0
        self._layout: WeightLayout | None = None

    def offer(self, layout: WeightLayout) -> WeightsOffer:
        """Offer weights; the offer before is taken back."""
        if self._round is not None:
            self._round.forget(self._members)
        self._num_rounds += 1
        self._round, self._members = Round(self._store, self._num_rounds), []
        self._layout = layout
        self._round.offer(layout)
        return WeightsOffer(
            kind=self._kind,
            host=self._host,
            port=self._store.port,
            round=self._num_rounds,
            version=layout.version,
        )

    def send(self, members: Sequence[str], living: Sequence[str], buckets: Buckets) -> WeightsSent:
        """Send what was offered to the engines `members`; `living` are all there are. Takes every bucket,
        whatever becomes of engines. Raises WeightSyncError before any offer."""
        layout, notes = self._layout, self._round
        if layout is None or notes is None:
            raise WeightSyncError("weights were to be sent before any were offered")
        self._members = list(members)
        started_s = time.monotonic()
        missing = self._fabric.connect(notes, members, living)
        digest = WeightDigest()
        missing |= self._fabric.send(layout, buckets, digest)
        sha256 = digest.hexdigest()
        notes.close(sha256)
        logger.info(
            "weights %s: %d bytes to %d of %d engines by %s in %.3f s",
            layout.version,
            layout.num_bytes,
            len(members) - len(missing),
            len(members),
            self._kind,
            time.monotonic() - started_s,
        )
        return WeightsSent(version=layout.version, sha256=sha256, num_bytes=layout.num_bytes, missing=missing)

    def close(self) -> None:
        """End all groups."""
        self._fabric.close()


def make_fabric(kind: str, host: str, timeout_s: float) -> Fabric:
    """The learner's end of a kind of transfer."""
    if kind == "gloo":
        return GlooFabric(host, timeout_s)
    if kind == "nccl":
        from rollout.nccl_group import NcclFabric

        return NcclFabric(timeout_s)
    from rollout.ipc_buffer import IpcFabric

    return IpcFabric(timeout_s)


class GlooFabric:
    """A link to each engine, over the network. The learner sends each engine its own copy."""

    def __init__(self, host: str, timeout_s: float) -> None:
        self._host, self._timeout_s = host, timeout_s
        self._kept: dict[str, GlooLink] = {}
        self._links: dict[str, GlooLink] = {}
        self._rank: dict[str, str] = {}

    def connect(self, notes: Round, members: Sequence[str], living: Sequence[str]) -> Reasons:
        """As `Fabric`. Engines without a link get one, all at once."""
        for member in self._kept.keys() - set(living):
            self._drop(member)
        self._rank = {
            member: f"rank {rank} of {len(members) + 1}" for rank, member in enumerate(members, start=1)
        }
        names = {
            member: kept.name if (kept := self._kept.get(member)) else f"{member}-{uuid4().hex}"
            for member in members
        }
        for member, name in names.items():
            notes.call_up(member, {"link": name})
        new = [member for member in members if member not in self._kept]
        missing: Reasons = {}

        def link(member: str) -> GlooLink | RuntimeError:
            try:
                return GlooLink(notes.store.clone(), names[member], LEARNER, self._host, self._timeout_s)
            except RuntimeError as error:
                return error

        with ThreadPoolExecutor(max(1, len(new))) as threads:
            for member, made in zip(new, threads.map(link, new), strict=True):
                if isinstance(made, GlooLink):
                    self._kept[member] = made
                else:
                    missing[member] = self._reason(member, "joined no group", made)
        self._links = {member: self._kept[member] for member in members if member in self._kept}
        return missing

    def send(self, layout: WeightLayout, buckets: Buckets, digest: WeightDigest) -> Reasons:
        """As `Fabric`. One bucket is packed while the one before is on its way."""
        room = max((bucket[-1].end for bucket in layout.buckets), default=0)
        buffers = cycle([torch.empty(room, dtype=torch.uint8), torch.empty(room, dtype=torch.uint8)])
        missing: Reasons = {}
        works: dict[str, Work] = {}
        for number, (bucket, tensors) in enumerate(zip(layout.buckets, buckets, strict=True)):
            packed = pack(bucket, tensors, next(buffers))
            for name, tensor in unpack(bucket, packed):
                add_to_digest(digest, name, tensor)
            missing |= self._end(works, number - 1, len(layout.buckets))
            works = {}
            for member, link in list(self._links.items()) if len(packed) else ():
                try:
                    works[member] = link.send(packed)
                except RuntimeError as error:  # its connection was closed since the last bucket
                    missing[member] = self._lost(member, number, len(layout.buckets), error)
        return missing | self._end(works, len(layout.buckets) - 1, len(layout.buckets))

    def close(self) -> None:
        """As `Fabric`."""
        for member in list(self._kept):
            self._drop(member)

    def _end(self, works: dict[str, Work], number: int, num_buckets: int) -> Reasons:
        """Wait for the sends of a bucket; all together may take `timeout_s`."""
        missing: Reasons = {}
        deadline_s = time.monotonic() + self._timeout_s
        for member, work in works.items():
            try:
                work.wait(timedelta(seconds=max(0.001, deadline_s - time.monotonic())))
            except RuntimeError as error:
                missing[member] = self._lost(member, number, num_buckets, error)
        return missing

    def _lost(self, member: str, number: int, num_buckets: int, error: Exception) -> str:
        """Let go of an engine that a bucket does not reach; the reason."""
        self._links.pop(member)
        self._drop(member)
        return self._reason(member, f"took bucket {number + 1} of {num_buckets} not", error)

    def _reason(self, member: str, what: str, error: Exception) -> str:
        cause = str(error).splitlines()[0]
        limit = f"rollout.sync_timeout_s={self._timeout_s:g}"
        return f"{member} ({self._rank[member]}) {what} in {limit}: {cause}"

    def _drop(self, member: str) -> None:
        self._kept.pop(member).close()


def named_tensors(layout: WeightLayout, buckets: Buckets, digest: WeightDigest) -> Iterator[Named]:
    """All tensors of all buckets, in copies of their own, on their way through a digest."""
    for bucket, tensors in zip(layout.buckets, buckets, strict=True):
        if tensors and tensors[0].is_cuda:
            torch.cuda.synchronize()  # they may have been made on another stream than the one here
        for slot, tensor in zip(bucket, tensors, strict=True):
            own = tensor.clone()
            add_to_digest(digest, slot.tensor.name, own)
            yield slot.tensor.name, own
