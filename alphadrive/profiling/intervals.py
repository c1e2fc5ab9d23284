"""Sets of moments: sorted, disjoint, half-open intervals of nanoseconds."""

from collections.abc import Iterable, Sequence

Interval = tuple[int, int]
Intervals = list[Interval]


def union(intervals: Iterable[Interval]) -> Intervals:
    """The moments in any of them; they may overlap and come in any order.

    >>> union([(5, 7), (0, 2), (1, 3), (4, 4)])
    [(0, 3), (5, 7)]
    """
    merged: Intervals = []
    for start, end in sorted(intervals):
        if start >= end:
            continue
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def common(first: Sequence[Interval], second: Sequence[Interval]) -> Intervals:
    """The moments in both.

    >>> common([(0, 4), (6, 9)], [(3, 7)])
    [(3, 4), (6, 7)]
    """
    both: Intervals = []
    i = j = 0
    while i < len(first) and j < len(second):
        start, end = max(first[i][0], second[j][0]), min(first[i][1], second[j][1])
        if start < end:
            both.append((start, end))
        if first[i][1] < second[j][1]:
            i += 1
        else:
            j += 1
    return both


def without(whole: Sequence[Interval], part: Sequence[Interval]) -> Intervals:
    """The moments of `whole` that are not in `part`.

    >>> without([(0, 10)], [(2, 3), (9, 12)])
    [(0, 2), (3, 9)]
    """
    left: Intervals = []
    j = 0
    for start, end in whole:
        while j < len(part) and part[j][1] <= start:
            j += 1
        at, k = start, j
        while k < len(part) and part[k][0] < end:
            if part[k][0] > at:
                left.append((at, part[k][0]))
            at = max(at, part[k][1])
            k += 1
        if at < end:
            left.append((at, end))
    return left


def length_ns(intervals: Iterable[Interval]) -> int:
    """How long they are in all."""
    return sum(end - start for start, end in intervals)


def divided(
    whole: Sequence[Interval], layers: Iterable[tuple[str, Sequence[Interval]]], rest: str
) -> dict[str, Intervals]:
    """Every moment of `whole` under the name of the first layer that it is in, or of `rest`. Layers of the
    same name are one; nothing is kept under a name without moments.

    >>> divided([(0, 9)], [("a", [(1, 3)]), ("b", [(2, 5)])], "c")
    {'a': [(1, 3)], 'b': [(3, 5)], 'c': [(0, 1), (5, 9)]}
    """
    parts: dict[str, Intervals] = {}
    left = list(whole)
    for name, layer in layers:
        parts[name] = union([*parts.get(name, []), *common(left, layer)])
        left = without(left, layer)
    parts[rest] = union([*parts.get(rest, []), *left])
    return {name: part for name, part in parts.items() if part}
