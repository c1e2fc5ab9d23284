"""Which tensors make up a set of weights, and how they are packed into buckets for the way to the engines.

Learner and engines compute the same packing from the same list, so that only the list has to be agreed on:

    bucket 0  |a.weight|a.bias|..pad..|b.weight|     at most `bucket_bytes`, each tensor at a multiple of 16
    bucket 1  |c.weight ......................|      one tensor larger than that is a bucket of its own

Plain values; the tensors themselves are the learner's and the engines' business.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

from alphadrive.errors import WeightSyncError
from alphadrive.types import WeightVersion

ALIGNMENT = 16
"""Bytes: a tensor of any dtype may be looked at where it lies in a bucket."""

ITEM_BYTES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}


class TensorMeta(NamedTuple):
    """One tensor: its name in a checkpoint, its dtype as torch calls it (`bfloat16`), its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


class Slot(NamedTuple):
    """Where a tensor lies in its bucket."""

    tensor: TensorMeta
    start: int

    @property
    def end(self) -> int:
        """The first byte behind it."""
        return self.start + self.tensor.num_bytes


@dataclass(frozen=True)
class WeightLayout:
    """The tensors of one version in ascending order of their names, and the size of the buckets.

    Raises WeightSyncError for names out of order or twice, a dtype that weights do not have, a size below 1.
    """

    version: WeightVersion
    tensors: tuple[TensorMeta, ...]
    bucket_bytes: int

    def __post_init__(self) -> None:
        if self.bucket_bytes < 1:
            raise WeightSyncError(f"buckets of {self.bucket_bytes} bytes; expected 1 or more")
        for name, dtype, _ in self.tensors:
            if dtype not in ITEM_BYTES:
                raise WeightSyncError(
                    f"{name}: weights of dtype {dtype}; expected one of {', '.join(ITEM_BYTES)}"
                )
        for before, after in pairwise(self.tensors):
            if after.name <= before.name:
                raise WeightSyncError(
                    f"weights out of order: {after.name!r} after {before.name!r}; sort them by name"
                )

    @property
    def num_bytes(self) -> int:
        """Of all tensors, without padding."""
        return sum(tensor.num_bytes for tensor in self.tensors)

    @cached_property
    def buckets(self) -> tuple[tuple[Slot, ...], ...]:
        """The tensors in their order, packed."""
        return tuple(self._packed())

    def _packed(self) -> Iterator[tuple[Slot, ...]]:
        slots: list[Slot] = []
        for tensor in self.tensors:
            start = -(-slots[-1].end // ALIGNMENT) * ALIGNMENT if slots else 0
            if slots and start + tensor.num_bytes > self.bucket_bytes:
                yield tuple(slots)
                slots, start = [], 0
            slots.append(Slot(tensor, start))
        if slots:
            yield tuple(slots)

    def to_json(self) -> str:
        """For the engines."""
        return json.dumps([*self.version, self.bucket_bytes, self.tensors])

    @classmethod
    def from_json(cls, text: str) -> "WeightLayout":
        """What the learner wrote. Raises WeightSyncError for anything else."""
        try:
            attempt, step, bucket_bytes, entries = json.loads(text)
            tensors = tuple(TensorMeta(str(name), str(dtype), tuple(shape)) for name, dtype, shape in entries)
            return cls(WeightVersion(int(attempt), int(step)), tensors, int(bucket_bytes))
        except (ValueError, TypeError) as error:
            raise WeightSyncError(f"not a list of tensors, from the learner: {error}") from error
