"""Weights from GPU to GPU by vLLM's own `nccl` backend: one group of the learner's rank 0 and all engines.

    rank 0     `stateless_init_process_group`, `packed_nccl_broadcast_producer`   (vLLM's trainer side)
    engine k   `NCCLWeightTransferEngine`, rank k                                 (vLLM's worker side)

Around it is what the CPU's links have, too: the notes in the store, the digest, the version. A broadcast
spans all members: when one stands still in it, all do, and the learner ends with the name of that one.
Has never run: there was no GPU where this was written.
"""

import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from uuid import uuid4

import torch
from vllm.distributed.weight_transfer.nccl_common import (
    NCCLWeightTransferInitInfo,
    stateless_init_process_group,
)
from vllm.distributed.weight_transfer.nccl_engine import (
    NCCLWeightTransferEngine,
    NCCLWeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.packed_tensor import packed_nccl_broadcast_producer

from alphadrive.errors import LearnerDiedError
from alphadrive.weight_layout import WeightLayout
from alphadrive.weights import WeightDigest
from rollout.weight_buckets import Named
from rollout.weight_receiver import Load, cut_off
from rollout.weight_sender import Buckets, Reasons, named_tensors
from rollout.weight_store import Note, Round

T = TypeVar("T")


class NcclFabric:
    """The learner's end, on the current GPU of its rank 0. A `Fabric`."""

    def __init__(self, host: str, timeout_s: float) -> None:
        self._host, self._timeout_s = host, timeout_s
        self._device = torch.cuda.current_device()
        self._members: list[str] = []
        self._name = ""
        self._group: Any = None
        self._notes: Round | None = None

    def connect(self, notes: Round, members: Sequence[str], living: Sequence[str]) -> Reasons:
        """A group of exactly `members`: the one kept, or a new one. Raises LearnerDiedError when it does not
        form in time."""
        self._notes = notes
        is_new = self._group is None or self._members != list(members)
        port = 0
        if is_new:
            self.close()
            self._members, self._name = list(members), uuid4().hex
            with socket.create_server((self._host, 0)) as probe:
                port = probe.getsockname()[1]
        for rank, member in enumerate(members, start=1):
            notes.call_up(member, {"group": self._name, "rank": rank, "size": len(members) + 1, "port": port})
        if is_new:
            size = len(members) + 1
            self._group = self._in_time(
                "join the group",
                lambda: stateless_init_process_group(self._host, port, 0, size, self._device),
            )
        return {}

    def send(self, layout: WeightLayout, buckets: Buckets, digest: WeightDigest) -> Reasons:
        """Broadcast all tensors. Raises LearnerDiedError when that does not end in time."""
        self._in_time(
            "take all tensors",
            lambda: packed_nccl_broadcast_producer(
                iterator=named_tensors(layout, buckets, digest),
                group=self._group,
                src=0,
                post_iter_func=lambda item: item[1],
                buffer_size_bytes=layout.bucket_bytes,
            ),
        )
        return {}

    def close(self) -> None:
        """End the group."""
        group, self._group = self._group, None
        if group is not None:
            group.destroy()

    def _in_time(self, what: str, work: Callable[[], T]) -> T:
        """What `work` gives. NCCL waits for ever: past `timeout_s` the learner can only be ended."""
        given: list[T] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                torch.cuda.set_device(self._device)
                given.append(work())
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=run, name="alphadrive-nccl", daemon=True)
        thread.start()
        thread.join(self._timeout_s)
        if errors:
            raise errors[0]
        if given:
            return given[0]
        raise LearnerDiedError(missing_words(self._notes, self._members, what, self._timeout_s))


def missing_words(notes: Round | None, members: Sequence[str], what: str, timeout_s: float) -> str:
    """Which engines are furthest behind in a transfer that stands still, by what they told last."""
    told = {member: notes.progress(member) if notes else 0 for member in members}
    behind = [
        f"{member} (rank {rank} of {len(members) + 1})"
        for rank, member in enumerate(members, start=1)
        if told[member] == min(told.values())
    ]
    return f"{', '.join(behind)} did not {what} in rollout.sync_timeout_s={timeout_s:g}"


class NcclInlet:
    """An engine's end: vLLM's engine of the backend, whose model is ours to load. An `Inlet`."""

    def __init__(self, host: str, owner: Any) -> None:
        self._host, self._owner = host, owner
        self._name = ""
        self._engine: NCCLWeightTransferEngine | None = None

    def receive(self, note: Note, layout: WeightLayout, notes: Round, member: str, load: Load) -> None:
        """As `Inlet`."""
        if self._engine is None or self._name != note["group"]:
            self.close()
            self._name, owner = note["group"], self._owner
            notes.report(member, 1)
            with cut_off():
                engine = NCCLWeightTransferEngine(owner.config, owner.vllm_config, owner.device, owner.model)
                engine.init_transfer_engine(
                    NCCLWeightTransferInitInfo(
                        master_address=self._host,
                        master_port=note["port"],
                        rank_offset=note["rank"],
                        world_size=note["size"],
                        packed=True,
                        packed_buffer_size_bytes=layout.bucket_bytes,
                    )
                )
            self._engine = engine
        self._engine.model = Loading(load, notes, member)
        names, dtypes, shapes = zip(*layout.tensors, strict=True)
        self._engine.receive_weights(
            NCCLWeightTransferUpdateInfo(
                names=list(names), dtype_names=list(dtypes), shapes=[list(shape) for shape in shapes]
            )
        )

    def close(self) -> None:
        """As `Inlet`."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.shutdown()


class Loading:
    """Stands for the model in vLLM's engine: what it is given goes on to `load`, and is told in the store."""

    def __init__(self, load: Load, notes: Round, member: str) -> None:
        self._load, self._notes, self._member = load, notes, member
        self._num_tensors = 0

    def load_weights(self, tensors: list[Named]) -> None:
        """Load some tensors."""
        self._load(tensors)
        self._num_tensors += len(tensors)
        self._notes.report(self._member, 1 + self._num_tensors)
