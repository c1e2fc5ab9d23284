"""Groups go to the ranks that have their images, and every rank gets as many."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.dealing import dealt_by_wish


def test_wishes_are_granted_while_there_is_room() -> None:
    assert dealt_by_wish("abcd", [1, 1, 1, None], 2) == [["c", "d"], ["a", "b"]]
    assert dealt_by_wish("abcde", [1, 0, 1, 0, 0], 2) == [["b", "d", "e"], ["a", "c"]]
    assert dealt_by_wish("abc", [2, 2, 2], 3) == [["b"], ["c"], ["a"]]
    assert dealt_by_wish("", [], 2) == [[], []]


@given(st.integers(1, 5), st.data())
def test_shares_are_those_of_dealing_in_turn(num_ranks: int, data: st.DataObject) -> None:
    wishes = data.draw(st.lists(st.none() | st.integers(0, num_ranks - 1), max_size=20))
    items = list(range(len(wishes)))
    shares = dealt_by_wish(items, wishes, num_ranks)
    assert sorted(item for share in shares for item in share) == items
    assert [len(share) for share in shares] == [len(items[rank::num_ranks]) for rank in range(num_ranks)]
    assert all(share == sorted(share) for share in shares)
