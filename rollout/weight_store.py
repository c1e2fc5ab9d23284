"""What learner and engines tell each other about a transfer: notes in a store at the learner's rank 0.

    rounds/7/layout        the tensors, and which version they are      (learner, before anything is sent)
    rounds/7/go/engine-1   in which group the engine takes part         (learner, as the transfer begins)
    rounds/7/sha256        the digest of what was sent                  (learner, at the end)

A store is torch's TCPStore. It listens on one address only; whoever reaches that may read and write, as with
every process group of torch: keep it in a private network.
"""

import json
import socket
from datetime import timedelta
from typing import Any

from torch.distributed import DistError, Store, TCPStore

from alphadrive.errors import TransferCutError, WeightSyncError
from alphadrive.types import WeightsStream
from alphadrive.weight_layout import WeightLayout

Note = dict[str, Any]


def open_store(host: str) -> TCPStore:
    """The learner's own store, on a free port of the address `host`."""
    with socket.create_server((host, 0)) as listener:
        port = listener.getsockname()[1]
        return TCPStore(
            host, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
        )


def reach_store(host: str, port: int, timeout_s: float) -> TCPStore:
    """The learner's store, from an engine. Raises TransferCutError when it cannot be reached."""
    try:
        return TCPStore(host, port, wait_for_workers=False, timeout=timedelta(seconds=timeout_s))
    except DistError as error:
        raise TransferCutError(
            f"{TransferCutError.MARK}the learner's store at {host}:{port} was not reached in "
            f"{timeout_s:g} s; engines need a route to that address: {error}"
        ) from error


def local_address(host: str) -> str:
    """This machine's address on its way to `host`."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))
        return str(probe.getsockname()[0])


def read_note(store: Store, key: str, timeout_s: float, writer: str = "the learner") -> str:
    """What stands at `key`. Raises TransferCutError when nobody has written it in time, or the store is
    gone."""
    try:
        store.wait([key], timedelta(seconds=timeout_s))
        return str(store.get(key).decode())
    except (DistError, RuntimeError) as error:
        raise TransferCutError(
            f"{TransferCutError.MARK}{key} was not told by {writer} in {timeout_s:g} s: {error}"
        ) from error


class Round:
    """The notes of one transfer."""

    def __init__(self, store: Store, number: int) -> None:
        self.store, self.number = store, number
        self._prefix = f"rounds/{number}"

    def key(self, name: str) -> str:
        """Where a note of this round stands."""
        return f"{self._prefix}/{name}"

    def offer(self, layout: WeightLayout) -> None:
        """Tell the engines what they may get."""
        self.store.set(self.key("layout"), layout.to_json())

    def call_up(self, member: str, note: Note) -> None:
        """Tell an engine in which group it takes part."""
        self.store.set(self.key(f"go/{member}"), json.dumps(note))

    def close(self, sha256: str) -> None:
        """Tell what was sent in all."""
        self.store.set(self.key("sha256"), sha256)

    def report(self, member: str, progress: int) -> None:
        """An engine tells how far it is."""
        self.store.set(self.key(f"progress/{member}"), str(progress))

    def progress(self, member: str) -> int:
        """How far an engine is, as far as it has told."""
        key = self.key(f"progress/{member}")
        return int(self.store.get(key)) if self.store.check([key]) else 0

    def forget(self, members: list[str]) -> None:
        """Remove the notes: an engine that comes too late finds none."""
        of_members = [f"{kind}/{member}" for kind in ("go", "progress") for member in members]
        for name in ("layout", "sha256", *of_members):
            self.store.delete_key(self.key(name))


def read_layout(store: Store, stream: WeightsStream) -> WeightLayout:
    """The tensors on offer, for the engine that was told of them.

    Raises WeightSyncError when the learner offers another version than the engine was told, TransferCutError
    when there is no such offer (any more).
    """
    number, timeout_s = stream.offer.round, stream.timeout_s
    layout = WeightLayout.from_json(read_note(store, Round(store, number).key("layout"), timeout_s))
    if layout.version != stream.version:
        raise WeightSyncError(
            f"{stream.member}: the learner offers version {layout.version} in round {number}, expected "
            f"{stream.version}; it was restarted or has gone on"
        )
    return layout
