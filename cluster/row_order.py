"""In which order the rows of a dataset are drawn: SFT and GRPO ask here, by epoch.

    uniform    an epoch is a shuffle of all rows: each once
    balanced   an epoch has as many draws as there are rows, and every recorded plan has an equal part of
               them. Rows of a rare plan come several times, those of a common one not in every epoch, but
               each plan's rows take turns over the epochs: none comes again before all the others have.

Everything follows from seed, epoch and the rows' plans, so a run that resumes goes on in the same order.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from alphadrive.data.scan import scan


@dataclass(frozen=True, slots=True)
class RowOrder:
    """`epoch_rows(epoch)` gives the rows of epoch 0, 1, … in the order in which they are drawn; `sampling`
    is the name under which the configuration knows it."""

    sampling: str
    epoch_rows: Callable[[int], Sequence[int]]


def row_order(sampling: str, folder: Path, num_rows: int, seed: int) -> RowOrder:
    """The order that the configuration asks for (`data.sampling`) over the first `num_rows` rows."""
    if sampling == "uniform":
        return uniform_order(num_rows, seed)
    plans = [row.values["plans"][0] for row in scan(folder, ("plans",), num_rows)]
    return balanced_order(plans, seed)


def uniform_order(num_rows: int, seed: int) -> RowOrder:
    """Every epoch a shuffle of all rows."""

    @lru_cache(maxsize=2)
    def epoch_rows(epoch: int) -> Sequence[int]:
        rows = list(range(num_rows))
        random.Random(f"{seed}/{epoch}").shuffle(rows)
        return rows

    return RowOrder("uniform", epoch_rows)


def balanced_order(plans: Sequence[str], seed: int) -> RowOrder:
    """Every recorded plan drawn equally often: `plans` has that of each row.

    Over any number of whole epochs the plans' counts differ by one at most, and so do those of the rows
    of one plan.

    >>> rows = balanced_order(["KEEP", "KEEP", "KEEP", "STOP"], seed=0).epoch_rows(0)
    >>> sorted("KEEP KEEP KEEP STOP".split()[row] for row in rows)
    ['KEEP', 'KEEP', 'STOP', 'STOP']
    """
    classes = {plan: [row for row, other in enumerate(plans) if other == plan] for plan in sorted(set(plans))}
    members = list(classes.values())

    @lru_cache(maxsize=2 * len(members))
    def turn(which: int, round_number: int) -> Sequence[int]:
        rows = list(members[which])
        random.Random(f"{seed}/balanced/{which}/{round_number}").shuffle(rows)
        return rows

    def drawn(position: int) -> int:
        """Row at a place of the endless stream that takes one row of each plan in turn."""
        which, place = position % len(members), position // len(members)
        return turn(which, place // len(members[which]))[place % len(members[which])]

    @lru_cache(maxsize=2)
    def epoch_rows(epoch: int) -> Sequence[int]:
        rows = [drawn(position) for position in range(epoch * len(plans), (epoch + 1) * len(plans))]
        random.Random(f"{seed}/{epoch}").shuffle(rows)
        return rows

    return RowOrder("balanced", epoch_rows)
