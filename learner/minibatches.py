"""Which groups of a step go into which optimizer step. Pure.

Groups are numbered over all ranks as they were dealt out: rank r of R holds the groups r, R + r, 2R + r ...

    4 minibatches of 12 groups     column 0  1  2
                                  block 0: 0  1  2       each column is shuffled by itself: a minibatch
                                        1: 3  4  5       takes one group of every column, say {9, 1, 5}
                                        2: 6  7  8
                                        3: 9 10 11

A shuffle within columns keeps what a full one would break: where R divides the number of columns, every rank
has the same number of groups in every minibatch; and since nothing here knows R, any number of ranks trains
on the same minibatches.
"""

from collections.abc import Sequence

import numpy as np


def dealt_groups(counts: Sequence[int]) -> list[tuple[int, int]]:
    """Every group of a step by its number, as (rank, place on it); `counts` are those of each rank.

    >>> dealt_groups([2, 1])
    [(0, 0), (1, 0), (0, 1)]
    """
    places = [(place, rank) for rank, count in enumerate(counts) for place in range(count)]
    return [(rank, place) for place, rank in sorted(places)]


def shuffled_minibatches(num_groups: int, num_minibatches: int, seed: tuple[int, ...]) -> list[list[int]]:
    """The numbers of the groups of each minibatch, ascending; every group is in one.

    The same seed (say of the run, the step and the epoch) gives the same minibatches. Where the number of
    groups does not divide, sizes differ and a minibatch may be empty.

    >>> shuffled_minibatches(4, 1, (0,))
    [[0, 1, 2, 3]]
    """
    num_columns = -(-num_groups // num_minibatches)
    random = np.random.default_rng(seed)
    minibatches: list[list[int]] = [[] for _ in range(num_minibatches)]
    for column in range(num_columns):
        for minibatch, block in zip(minibatches, random.permutation(num_minibatches), strict=True):
            number = int(block) * num_columns + column
            if number < num_groups:
                minibatch.append(number)
    return [sorted(minibatch) for minibatch in minibatches]
