"""Sets of moments, compared with sets of integers."""

from hypothesis import given
from hypothesis import strategies as st

from alphadrive.profiling.intervals import common, divided, length_ns, union, without

PIECES = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=8)


def moments(intervals):
    return {moment for start, end in intervals for moment in range(start, end)}


def is_normal(intervals):
    flat = [moment for interval in intervals for moment in interval]
    return flat == sorted(set(flat))


@given(PIECES, PIECES)
def test_operations_are_those_of_sets(first, second):
    a, b = union(first), union(second)
    assert moments(a) == moments(first) and length_ns(a) == len(moments(first))
    assert moments(common(a, b)) == moments(a) & moments(b)
    assert moments(without(a, b)) == moments(a) - moments(b)
    assert all(map(is_normal, (a, common(a, b), without(a, b))))


@given(PIECES, PIECES, PIECES)
def test_every_moment_is_under_one_name(whole, first, second):
    whole, first, second = union(whole), union(first), union(second)
    parts = divided(whole, [("a", first), ("b", second), ("a", [(0, 3)])], "rest")
    assert sum(map(length_ns, parts.values())) == length_ns(whole)
    assert moments([piece for part in parts.values() for piece in part]) == moments(whole)
    assert moments(parts.get("b", [])) == (moments(whole) & moments(second)) - moments(first)
    assert all(parts.values())
