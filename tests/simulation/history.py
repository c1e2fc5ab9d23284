"""What has happened and counts, and what a checkpoint keeps of it: the oracle's records."""

from collections import Counter
from dataclasses import dataclass, field

from cluster.loop import Outcome

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
