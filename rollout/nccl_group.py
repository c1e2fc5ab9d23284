"""Weights from GPU to GPU by vLLM's own `nccl` backend: one group of the learner's rank 0 and all engines.

    rank 0     `uid_init_process_group`, `packed_nccl_broadcast_producer`   (vLLM's trainer side)
    engine k   `NCCLWeightTransferEngine`, rank k                           (vLLM's worker side)

Around it is what the CPU's links have, too: the notes in the store, the digest, the version. The group's
NCCL id is a note as well. A broadcast spans all members: when one stands still in it, all do. Then the group
is aborted, and the engines are replaced; the learner goes on. NCCL itself has never run under this: there
was no GPU where it was written.
"""

import base64
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import Any, TypeVar

import torch
from vllm.distributed.device_communicators.pynccl_wrapper import NCCLLibrary
from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo, uid_init_process_group
from vllm.distributed.weight_transfer.nccl_engine import (
    NCCLWeightTransferEngine,
    NCCLWeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.packed_tensor import packed_nccl_broadcast_producer

from alphadrive.errors import LearnerDiedError, TransferCutError
from alphadrive.weight_layout import WeightLayout
from alphadrive.weights import WeightDigest
from rollout.weight_buckets import Named
from rollout.weight_receiver import Load, cut_off
from rollout.weight_sender import Buckets, Reasons, named_tensors
from rollout.weight_store import Note, Round

T = TypeVar("T")


class NcclFabric:
    """The learner's end, on the current GPU of its rank 0. A `Fabric`."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._device = torch.cuda.current_device()
        self._members: list[str] = []
        self._id = b""
        self._group: Any = None
        self._notes: Round | None = None

    def connect(self, notes: Round, members: Sequence[str], living: Sequence[str]) -> Reasons:
        """As `Fabric`: a group of exactly `members`, the one kept or a new one."""
        self._notes = notes
        is_new = self._group is None or self._members != list(members)
        if is_new:
            self.close()
            self._members, self._id = list(members), new_id()
        shared_id, size = base64.b64encode(self._id).decode(), len(members) + 1
        for rank, member in enumerate(members, start=1):
            notes.call_up(member, {"id": shared_id, "rank": rank, "size": size})
        if not is_new:
            return {}
        joining = self._on_thread(lambda: uid_init_process_group(self._id, 0, size, self._device))
        if not self._ends(joining):
            return self._reasons("join the group")
        try:
            self._group = joining.result()
        except RuntimeError as error:
            if not is_of_nccl(error):
                raise
            return self._reasons("join the group", error)
        return {}

    def send(self, layout: WeightLayout, buckets: Buckets, digest: WeightDigest) -> Reasons:
        """As `Fabric`. Raises LearnerDiedError when a broadcast that stands still cannot be aborted."""
        tensors = named_tensors(layout, buckets, digest)
        missing: Reasons = {}
        if self._group is None:
            for _ in tensors:
                pass
            return {}
        gate = Gate(self._group)
        sending = self._on_thread(
            lambda: packed_nccl_broadcast_producer(
                iterator=tensors,
                group=gate,
                src=0,
                post_iter_func=lambda item: item[1],
                buffer_size_bytes=layout.bucket_bytes,
            )
        )
        if not self._ends(sending):
            missing = self._reasons("take all tensors")
            gate.is_shut = True
            self.close()
            if not wait([sending], self._timeout_s).done:
                raise LearnerDiedError("; ".join(missing.values()))
        sending.result()
        if gate.error is not None:
            missing = self._reasons("take all tensors", gate.error)
            self.close()
        return missing

    def close(self) -> None:
        """End the group; a broadcast in it is aborted."""
        group, self._group = self._group, None
        if group is not None:
            group.destroy()

    def _on_thread(self, work: Callable[[], T]) -> "Future[T]":
        """What `work` gives, on a thread that may be left alone: NCCL waits for ever."""
        given: Future[T] = Future()

        def run() -> None:
            try:
                torch.cuda.set_device(self._device)
                given.set_result(work())
            except BaseException as error:
                given.set_exception(error)

        threading.Thread(target=run, name="alphadrive-nccl", daemon=True).start()
        return given

    def _ends(self, work: "Future[Any]") -> bool:
        """Whether it ends; not, once `timeout_s` have passed in which no engine came further."""
        told = self._told()
        while not wait([work], self._timeout_s).done:
            before, told = told, self._told()
            if told == before:
                return False
        return True

    def _told(self) -> dict[str, int]:
        notes = self._notes
        return {member: notes.progress(member) if notes else 0 for member in self._members}

    def _reasons(self, what: str, error: RuntimeError | None = None) -> Reasons:
        """For all members, as none has got them all: which are furthest behind."""
        told, size = self._told(), len(self._members) + 1
        behind = [
            f"{member} (rank {rank} of {size})"
            for rank, (member, progress) in enumerate(told.items(), start=1)
            if progress == min(told.values())
        ]
        words = f"{', '.join(behind)} did not {what} in rollout.sync_timeout_s={self._timeout_s:g}"
        words += f": {error}" if error is not None else ""
        return dict.fromkeys(self._members, words)


class Gate:
    """A group whose broadcasts come to nothing once it `is_shut`: an aborted one must not be used, nor one
    that NCCL has given up because a member is gone, which is then the `error`. The learner's other ranks go
    on with gathering, and the tensors with being taken."""

    def __init__(self, group: Any) -> None:
        self._group = group
        self.is_shut = False
        self.error: RuntimeError | None = None

    def broadcast(self, tensor: torch.Tensor, src: int) -> None:
        """As the group's."""
        if self.is_shut:
            return
        try:
            self._group.broadcast(tensor, src=src)
        except RuntimeError as error:
            if not is_of_nccl(error):
                raise
            self.error, self.is_shut = error, True


def is_of_nccl(error: RuntimeError) -> bool:
    """Whether NCCL has failed, as vLLM says it: most often because another member is gone."""
    return "NCCL error" in str(error)


def new_id() -> bytes:
    """What the members of a new group find each other by. Raises RuntimeError, OSError without NCCL."""
    return bytes(NCCLLibrary().ncclGetUniqueId())


class NcclInlet:
    """An engine's end: vLLM's engine of the backend, whose model is ours to load. An `Inlet`."""

    def __init__(self, owner: Any) -> None:
        self._owner = owner
        self._id = ""
        self._engine: NCCLWeightTransferEngine | None = None

    def receive(self, note: Note, layout: WeightLayout, notes: Round, member: str, load: Load) -> None:
        """As `Inlet`."""
        notes.report(member, 1)
        if self._engine is None or self._id != note["id"]:
            self.close()
            self._id, owner = note["id"], self._owner
            with cut_off():
                engine = NCCLWeightTransferEngine(owner.config, owner.vllm_config, owner.device, owner.model)
                engine.init_transfer_engine(
                    NCCLWeightTransferInitInfo(
                        nccl_unique_id_b64=note["id"],
                        rank_offset=note["rank"],
                        world_size=note["size"],
                        packed=True,
                        packed_buffer_size_bytes=layout.bucket_bytes,
                    )
                )
            self._engine = engine
        self._engine.model = Loading(load, notes, member)
        names, dtypes, shapes = zip(*layout.tensors, strict=True)
        update = NCCLWeightTransferUpdateInfo(
            names=list(names), dtype_names=list(dtypes), shapes=[list(shape) for shape in shapes]
        )
        try:
            self._engine.receive_weights(update)
        except RuntimeError as error:
            if is_of_nccl(error):
                raise TransferCutError(f"{TransferCutError.MARK}{error}") from error
            raise

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
