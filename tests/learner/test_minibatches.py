"""How a step's groups are cut into optimizer steps."""

from itertools import chain

import pytest

from learner.minibatches import dealt_groups, shuffled_minibatches


def test_groups_are_numbered_as_they_were_dealt() -> None:
    assert dealt_groups([2, 2]) == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert dealt_groups([1, 3, 0]) == [(0, 0), (1, 0), (1, 1), (1, 2)]
    assert dealt_groups([0, 0]) == []


@pytest.mark.parametrize(
    ("num_groups", "num_minibatches"), [(12, 4), (12, 1), (13, 4), (5, 4), (2, 4), (0, 2)]
)
def test_every_group_is_in_one_minibatch(num_groups: int, num_minibatches: int) -> None:
    minibatches = shuffled_minibatches(num_groups, num_minibatches, (0, 1, 0))
    assert len(minibatches) == num_minibatches
    assert sorted(chain(*minibatches)) == list(range(num_groups))
    assert all(minibatch == sorted(minibatch) for minibatch in minibatches)


def test_the_seed_decides_and_every_epoch_is_another() -> None:
    epochs = [shuffled_minibatches(32, 4, (0, 1, epoch)) for epoch in range(3)]
    assert epochs[0] == shuffled_minibatches(32, 4, (0, 1, 0))
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert len({tuple(minibatch) for epoch in epochs for minibatch in epoch}) == 12


@pytest.mark.parametrize("num_ranks", [1, 2, 4, 8])
def test_ranks_have_equal_shares_of_every_minibatch(num_ranks: int) -> None:
    for seed in range(5):
        for minibatch in shuffled_minibatches(32, 4, (seed,)):
            shares = [sum(number % num_ranks == rank for number in minibatch) for rank in range(num_ranks)]
            assert shares == [8 // num_ranks] * num_ranks
