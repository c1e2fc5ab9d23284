"""Which rank of the learner trains on which group."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def dealt_by_wish(items: Sequence[T], wishes: Sequence[int | None], num_ranks: int) -> list[list[T]]:
    """The items dealt out to ranks, the shares as even as can be, the first ranks' the larger ones. An item
    goes to the rank it wishes while that has room, the others in order to the first rank that has some.

    >>> dealt_by_wish("abcd", [1, 1, 1, None], 2)
    [['c', 'd'], ['a', 'b']]
    """
    room = [len(items[rank::num_ranks]) for rank in range(num_ranks)]
    ranks: list[int | None] = []
    for wish in wishes:
        granted = wish if wish is not None and room[wish] else None
        if granted is not None:
            room[granted] -= 1
        ranks.append(granted)
    left = iter([rank for rank, places in enumerate(room) for _ in range(places)])
    shares: list[list[T]] = [[] for _ in range(num_ranks)]
    for item, rank in zip(items, ranks, strict=True):
        shares[next(left) if rank is None else rank].append(item)
    return shares
