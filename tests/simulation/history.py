"""What has happened and counts, and what a checkpoint keeps of it: the oracle's records."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from cluster.loop import Outcome
from cluster.row_order import RowOrder

Draw = tuple[int, int]
"""Epoch, and number of the draw in it."""


@dataclass
class History:
    """What has happened and counts: a checkpoint keeps a copy, a rollback goes back to one."""

    ended: dict[Draw, Outcome] = field(default_factory=dict)
    trained: tuple[int, ...] = ()
    """Tickets, in the order in which they were trained."""
    without_update: tuple[int, ...] = ()
    """Tickets of steps that were not finite."""
    with_signal: set[Draw] = field(default_factory=set)
    """Draws that were trained on, with rewards that differ."""
    failed: set[Draw] = field(default_factory=set)
    """Draws that were given back once, and have not ended since."""

    def copy(self) -> "History":
        return History(
            dict(self.ended), self.trained, self.without_update, set(self.with_signal), set(self.failed)
        )

    def has_epoch_without_signal(self, num_rows: int) -> bool:
        """Whether some epoch has ended without one group to learn from."""
        num_ended = Counter(epoch for epoch, _ in self.ended)
        with_signal = {epoch for epoch, _ in self.with_signal}
        return any(num == num_rows and epoch not in with_signal for epoch, num in num_ended.items())

    def counts(self) -> dict[str, dict[str, int]]:
        """For every epoch: how many draws were issued, and how many ended how."""
        by_epoch: dict[int, Counter[str]] = defaultdict(Counter)
        for (epoch, _), outcome in self.ended.items():
            by_epoch[epoch] += Counter({"issued": 1, outcome.value: 1})
        for epoch, _ in self.failed:
            by_epoch[epoch]["issued"] += 1
        return {str(epoch): dict(counts) for epoch, counts in sorted(by_epoch.items())}

    def unfinished_epochs(self, num_rows: int) -> list[tuple[int, int]]:
        """Epochs before the newest of which not every draw was issued, and how many were."""
        issued = {int(epoch): counts["issued"] for epoch, counts in self.counts().items()}
        newest = max(issued, default=-1)
        return [(epoch, issued.get(epoch, 0)) for epoch in range(newest) if issued.get(epoch, 0) != num_rows]


@dataclass
class Saved:
    """A checkpoint: the learner's side is known when it is saved, the ledger's when it is written."""

    nonce: str
    trained: tuple[int, ...]
    weights: str
    step: int
    ledger: str = ""
    history: History = field(default_factory=History)
    was_committed: bool = False
    is_damaged: bool = False


def draws_of(order: RowOrder, num_rows: int, ended: set[Draw]) -> Iterator[tuple[Draw, int]]:
    """All draws that have not ended, in order, each with its row."""
    for epoch in itertools.count():
        times: Counter[int] = Counter()
        for row in order.epoch_rows(epoch):
            draw = (epoch, row + times[row] * num_rows)
            times[row] += 1
            if draw not in ended:
                yield draw, row
