"""An engine's end of a transfer, in the process that holds its model.

    layout from the store, version checked ─▶ group: the one held, or a new one ─▶ buckets ─▶ `load`
                                                   digest of what came = digest of what was sent

Knows no vLLM: `load` takes named tensors.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributed import Store

from alphadrive.errors import TransferCutError, WeightSyncError
from alphadrive.types import WeightsOffer, WeightsStream, WeightVersion
from alphadrive.weight_layout import WeightLayout
from alphadrive.weights import WeightDigest
from rollout.gloo_link import ENGINE, GlooLink
from rollout.weight_buckets import Named, add_to_digest, unpack
from rollout.weight_store import Note, Round, local_address, reach_store, read_layout, read_note

Load = Callable[[list[Named]], Any]

PATIENCE = 3.0
"""An engine waits longer than the learner by this factor: the learner may wait for another one meanwhile."""


@dataclass
class StreamInfo:
    """A stream as vLLM carries it to its workers: plain values."""

    kind: str
    host: str
    port: int
    round: int
    attempt: int
    step: int
    member: str
    timeout_s: float

    @classmethod
    def of(cls, stream: WeightsStream) -> dict[str, Any]:
        """The plain values of a stream."""
        offer = stream.offer
        info = cls(
            kind=offer.kind,
            host=offer.host,
            port=offer.port,
            round=offer.round,
            attempt=offer.version.attempt,
            step=offer.version.step,
            member=stream.member,
            timeout_s=stream.timeout_s,
        )
        return asdict(info)

    @property
    def stream(self) -> WeightsStream:
        """The stream again."""
        offer = WeightsOffer(
            kind=self.kind,
            host=self.host,
            port=self.port,
            round=self.round,
            version=WeightVersion(self.attempt, self.step),
        )
        return WeightsStream(offer=offer, member=self.member, timeout_s=self.timeout_s)


class Inlet(Protocol):
    """Where bytes come in, on one engine."""

    def receive(self, note: Note, layout: WeightLayout, notes: Round, member: str, load: Load) -> None:
        """Take every tensor of `layout`. Raises TransferCutError when the transfer breaks off."""

    def close(self) -> None:
        """Let the group go."""


class WeightReceiver:
    """Takes weights again and again. `make_inlet(kind, host, timeout_s)` as `make_cpu_inlet`."""

    def __init__(self, make_inlet: "Callable[[str, str, float], Inlet] | None" = None) -> None:
        self._make_inlet = make_inlet or make_cpu_inlet
        self._store: Store | None = None
        self._inlet: Inlet | None = None
        self._source: tuple[str, str, int] | None = None

    def receive(self, stream: WeightsStream, load: Load) -> str:
        """Take the weights of a stream and hand them to `load`; returns their digest.

        Raises WeightSyncError for another version than told and for a digest that is not the learner's,
        TransferCutError when the transfer broke off or stood still: some tensors may be loaded then.
        """
        store, inlet = self._connected(stream)
        notes = Round(store, stream.offer.round)
        layout = read_layout(store, stream)
        note = json.loads(read_note(store, notes.key(f"go/{stream.member}"), stream.timeout_s))
        digest = WeightDigest()

        def digest_and_load(tensors: list[Named]) -> None:
            for name, tensor in tensors:
                add_to_digest(digest, name, tensor)
            load(tensors)

        try:
            inlet.receive(note, layout, notes, stream.member, digest_and_load)
            sent = read_note(store, notes.key("sha256"), PATIENCE * stream.timeout_s)
        except TransferCutError as error:
            self.close()
            raise TransferCutError(
                f"{TransferCutError.MARK}{stream.member} got {digest.num_tensors} of "
                f"{len(layout.tensors)} tensors of version {layout.version}: {error}"
            ) from error
        except BaseException:
            self.close()  # so that the learner does not wait for one that takes no more
            raise
        if digest.hexdigest() != sent:
            raise WeightSyncError(
                f"{stream.member}: received tensors with SHA-256 {digest.hexdigest()} as version "
                f"{layout.version}, the learner sent {sent}"
            )
        return sent

    def close(self) -> None:
        """Let groups and store go."""
        inlet, self._inlet, self._store, self._source = self._inlet, None, None, None
        if inlet is not None:
            inlet.close()

    def _connected(self, stream: WeightsStream) -> tuple[Store, Inlet]:
        offer = stream.offer
        source = (offer.kind, offer.host, offer.port)
        if self._store is None or self._inlet is None or source != self._source:
            self.close()
            self._store = reach_store(offer.host, offer.port, stream.timeout_s)
            self._inlet = self._make_inlet(offer.kind, offer.host, PATIENCE * stream.timeout_s)
            self._source = source
        return self._store, self._inlet


def make_cpu_inlet(kind: str, host: str, timeout_s: float) -> Inlet:
    """The engine's end of a transfer that needs no GPU. Raises WeightSyncError for another kind."""
    if kind != "gloo":
        raise WeightSyncError(f"weights by {kind} came to an engine without a GPU; expected gloo")
    return GlooInlet(host, timeout_s)


class GlooInlet:
    """A link to the learner, over the network."""

    def __init__(self, host: str, timeout_s: float) -> None:
        self._address, self._timeout_s = local_address(host), timeout_s
        self._link: GlooLink | None = None

    def receive(self, note: Note, layout: WeightLayout, notes: Round, member: str, load: Load) -> None:
        """As `Inlet`. Every bucket has memory of its own: what loads it may keep parts of it."""
        if self._link is None or self._link.name != note["link"]:
            self.close()
            with cut_off():
                self._link = GlooLink(notes.store, note["link"], ENGINE, self._address, self._timeout_s)
        for bucket in layout.buckets:
            buffer: Tensor = torch.empty(bucket[-1].end, dtype=torch.uint8)
            if len(buffer):
                with cut_off():
                    self._link.receive(buffer)
            load(list(unpack(bucket, buffer)))

    def close(self) -> None:
        """As `Inlet`."""
        link, self._link = self._link, None
        if link is not None:
            link.close()


@contextmanager
def cut_off() -> Iterator[None]:
    """What a group raises is a TransferCutError."""
    try:
        yield
    except RuntimeError as error:
        raise TransferCutError(f"{TransferCutError.MARK}{error}") from error


def see_offer(stream: WeightsStream) -> None:
    """Look at an offer from an engine, before anything is paused for it. Raises as `read_layout`, and
    TransferCutError when the learner cannot be reached."""
    read_layout(reach_store(stream.offer.host, stream.offer.port, stream.timeout_s), stream)
