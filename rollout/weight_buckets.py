"""Tensors into buckets and out of them, and their digest. A bucket is a flat uint8 tensor on the CPU."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from alphadrive.weight_layout import Slot
from alphadrive.weights import WeightDigest, dtype_name

Named = tuple[str, Tensor]


def as_bytes(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, flat; a copy only where it is not contiguous."""
    return tensor.detach().contiguous().flatten().view(torch.uint8)


def pack(bucket: Sequence[Slot], tensors: Sequence[Tensor], buffer: Tensor) -> Tensor:
    """Copy the tensors of a bucket into `buffer`; the part of it that they fill."""
    for slot, tensor in zip(bucket, tensors, strict=True):
        buffer[slot.start : slot.end].copy_(as_bytes(tensor))
    return buffer[: bucket[-1].end]


def unpack(bucket: Sequence[Slot], buffer: Tensor) -> Iterator[Named]:
    """The tensors of a bucket, looked at where they lie."""
    for slot in bucket:
        dtype: torch.dtype = getattr(torch, slot.tensor.dtype)
        flat = buffer[slot.start : slot.end].view(dtype)
        yield slot.tensor.name, flat.view(slot.tensor.shape)


def add_to_digest(digest: WeightDigest, name: str, tensor: Tensor) -> None:
    """Add a tensor, of any device, to a digest."""
    data = as_bytes(tensor).cpu().numpy()
    digest.add(name, dtype_name(tensor.dtype), tuple(tensor.shape), data)
