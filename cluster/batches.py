"""Groups that travel in batches: one reference for many, so that each costs the driver little.

driver:  packed([item, item, ...]) ─▶ picks, batches ─▶ actor.method(picks, *batches)
actor:   unpacked(picks, batches)  ─▶ the groups, in the order of the items
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, eq=False)
class BatchItem:
    """A group: at `index` of the tuple behind the reference `batch`. Awaited, it gives the group."""

    batch: Any
    index: int

    def __await__(self) -> Generator[Any, None, Any]:
        batch = yield from self.batch.__await__()
        return batch[self.index]


Pick = tuple[int, int]
"""Which batch, and the index in it."""


def packed(items: Sequence[BatchItem]) -> tuple[list[Pick], list[Any]]:
    """Where each item is, and every batch once."""
    batches: list[Any] = []
    numbers: dict[Any, int] = {}
    picks: list[Pick] = []
    for item in items:
        number = numbers.get(item.batch)
        if number is None:
            number = numbers[item.batch] = len(batches)
            batches.append(item.batch)
        picks.append((number, item.index))
    return picks, batches


def unpacked(picks: Sequence[Pick], batches: Sequence[Sequence[Any]]) -> list[Any]:
    """The items that were packed, as values."""
    return [batches[number][index] for number, index in picks]
