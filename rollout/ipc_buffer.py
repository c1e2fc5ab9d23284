"""Weights within one GPU, by vLLM's own packed `ipc` transfer: the learner fills a buffer, the engine copies.

    rank 0   `packed_ipc_producer`: buffer filled ─▶ handle and tensors of the chunk into the store
    engine   `packed_ipc_consumer`: copies out ─▶ "taken" into the store ─▶ the buffer is filled again

vLLM would pickle a handle; here it is JSON. Has never run on a GPU: there was none where this was written.
"""

import base64
import json
from collections.abc import Sequence
from typing import Any

import torch
from vllm.distributed.weight_transfer.packed_tensor import (
    PackedBufferImporter,
    packed_ipc_consumer,
    packed_ipc_producer,
)

from alphadrive.errors import TransferCutError, WeightSyncError
from alphadrive.weight_layout import WeightLayout
from alphadrive.weights import WeightDigest
from rollout.weight_receiver import Load, cut_off
from rollout.weight_sender import Buckets, Reasons, named_tensors
from rollout.weight_store import Note, Round, read_note

Handle = tuple[Any, ...]
"""The arguments of torch's `rebuild_cuda_tensor`."""

_CLASSES = {0: torch.Tensor, 4: torch.UntypedStorage, 5: torch.uint8}
"""Those that are the same for every flat uint8 tensor, by place."""


def handle_to_json(handle: Handle) -> list[Any]:
    """A handle without what is always the same; bytes as text."""
    return [
        {"bytes": base64.b64encode(value).decode()} if isinstance(value, bytes) else _plain(value)
        for place, value in enumerate(handle)
        if place not in _CLASSES
    ]


def handle_from_json(values: Sequence[Any]) -> Handle:
    """The handle again."""
    rest = iter(base64.b64decode(value["bytes"]) if isinstance(value, dict) else value for value in values)
    return tuple(
        _CLASSES[place] if place in _CLASSES else next(rest) for place in range(len(values) + len(_CLASSES))
    )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


class IpcFabric:
    """The learner's end, on the current GPU of its only rank. A `Fabric`."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._members: list[str] = []
        self._notes: Round | None = None

    def connect(self, notes: Round, members: Sequence[str], living: Sequence[str]) -> Reasons:
        """As `Fabric`: nothing to connect."""
        self._notes, self._members = notes, list(members)
        for member in members:
            notes.call_up(member, {})
        return {}

    def send(self, layout: WeightLayout, buckets: Buckets, digest: WeightDigest) -> Reasons:
        """As `Fabric`. The buffer is filled again when every engine has taken what was in it."""
        notes = self._notes
        assert notes is not None
        missing: Reasons = {}
        largest = max((tensor.num_bytes for tensor in layout.tensors), default=1)
        chunks = packed_ipc_producer(
            iterator=named_tensors(layout, buckets, digest),
            gpu_uuid=str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid),
            post_iter_func=lambda item: item[1],
            buffer_size_bytes=max(layout.bucket_bytes, largest),
        )
        number = 0
        for number, chunk in enumerate(chunks, start=1):
            ((uuid, handle),) = chunk.ipc_handle.items()
            told = [uuid, handle_to_json(handle), chunk.names, chunk.shapes, chunk.dtype_names]
            notes.store.set(notes.key(f"chunk/{number}"), json.dumps([*told, chunk.tensor_sizes]))
            for member in [member for member in self._members if member not in missing]:
                try:
                    read_note(notes.store, notes.key(f"taken/{number}/{member}"), self._timeout_s, member)
                except TransferCutError as error:
                    rank = f"rank {self._members.index(member) + 1} of {len(self._members) + 1}"
                    missing[member] = f"{member} ({rank}) did not take chunk {number}: {error}"
            for name in (f"chunk/{number}", *(f"taken/{number}/{member}" for member in self._members)):
                notes.store.delete_key(notes.key(name))
        notes.store.set(notes.key(f"chunk/{number + 1}"), "null")
        torch.cuda.ipc_collect()
        return missing

    def close(self) -> None:
        """As `Fabric`."""


class IpcInlet:
    """An engine's end. An `Inlet`."""

    def __init__(self, owner: Any, timeout_s: float) -> None:
        self._device, self._timeout_s = owner.device, timeout_s
        self._importer = PackedBufferImporter()

    def receive(self, note: Note, layout: WeightLayout, notes: Round, member: str, load: Load) -> None:
        """As `Inlet`."""
        number = 1
        while chunk := json.loads(read_note(notes.store, notes.key(f"chunk/{number}"), self._timeout_s)):
            uuid, handle, names, shapes, dtype_names, sizes = chunk
            own_uuid = str(torch.cuda.get_device_properties(self._device.index).uuid)
            if uuid != own_uuid:
                raise WeightSyncError(
                    f"{member} is on GPU {own_uuid}, the learner on {uuid}: rollout.weight_transfer=ipc "
                    "needs both on one GPU; use nccl with whole GPUs, or file on one machine"
                )
            with cut_off():
                tensors = packed_ipc_consumer(
                    ipc_handle={uuid: handle_from_json(handle)},
                    names=names,
                    shapes=shapes,
                    dtype_names=dtype_names,
                    tensor_sizes=sizes,
                    device_index=self._device.index,
                    importer=self._importer,
                )
            load(tensors)
            torch.cuda.synchronize(self._device)
            notes.store.set(notes.key(f"taken/{number}/{member}"), "")
            number += 1
        self._importer.close()

    def close(self) -> None:
        """As `Inlet`."""
        self._importer.close()
