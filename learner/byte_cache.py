"""Values by dataset row within a byte budget: the least recently used ones make room.

Holds fitted images (`learner.images`) and vision features (`learner.vision`).
"""

import threading
from collections import OrderedDict
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """What says how much memory it takes: an array, a tensor."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""


Value = TypeVar("Value", bound=Sized)


class ByteCache(Generic[Value]):
    """At most `budget_bytes` of values; one that is larger than that is not kept. Safe to use from several
    threads."""

    def __init__(self, budget_bytes: int) -> None:
        self.num_bytes = 0
        self._budget_bytes = budget_bytes
        self._values: OrderedDict[int, Value] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, row: int) -> bool:
        return row in self._values

    def get(self, row: int) -> Value | None:
        """The value of a row, now the most recently used."""
        with self._lock:
            value = self._values.get(row)
            if value is not None:
                self._values.move_to_end(row)
            return value

    def put(self, row: int, value: Value) -> None:
        """Keep a value as the most recently used."""
        with self._lock:
            self._forget(row)
            if value.nbytes <= self._budget_bytes:
                self._values[row] = value
                self.num_bytes += value.nbytes
                self._shrink()

    def set_budget(self, budget_bytes: int) -> None:
        """Keep at most so much from now on."""
        with self._lock:
            self._budget_bytes = budget_bytes
            self._shrink()

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._values.clear()
            self.num_bytes = 0

    def _shrink(self) -> None:
        while self.num_bytes > self._budget_bytes:
            self._forget(next(iter(self._values)))

    def _forget(self, row: int) -> None:
        value = self._values.pop(row, None)
        if value is not None:
            self.num_bytes -= value.nbytes
