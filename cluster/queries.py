"""The order of the queries, and the ledger of how each ended.

An epoch has as many draws as the dataset has rows. Which rows it draws is told by a
`cluster.row_order.RowOrder`: each once in a seeded shuffle, or, balanced, some several times and some not;
then every *draw* is a query that ends exactly once. A step may hold groups of two epochs. The ledger goes
into every checkpoint: a run that resumes asks again for the queries that had not ended there, and for no
other. Called by `cluster.loop`; knows neither Ray nor pixels.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from alphadrive.errors import CheckpointError, DeadLetterError
from alphadrive.types import DrivingQuery
from cluster.loop import Outcome
from cluster.row_order import RowOrder, uniform_order

logger = logging.getLogger(__name__)


class QueryLedger:
    """Hands out queries in order and remembers how each ended.

    `query_of_row` reads a query; `order` is which rows each epoch draws (None: all in a shuffle by
    `seed`); `max_dead_letters` may be dead-lettered before DeadLetterError; `max_epochs` ends the stream
    (None: never); `state` is what `state()` gave at a checkpoint.

    A draw is known by its number: the row, plus `num_rows` for every time the row came before in the epoch.
    """

    def __init__(
        self,
        query_of_row: Callable[[int], DrivingQuery],
        num_rows: int,
        *,
        seed: int,
        order: RowOrder | None = None,
        max_dead_letters: int,
        max_epochs: int | None = None,
        state: dict[str, Any] | None = None,
    ) -> None:
        self._query_of_row = query_of_row
        self._num_rows = num_rows
        self._seed = seed
        self._order = order or uniform_order(num_rows, seed)
        self._max_dead_letters = max_dead_letters
        self._max_epochs = max_epochs
        self._open: dict[int, tuple[int, int, str]] = {}
        self._epochs: dict[int, dict[int, str]] = {}
        self._closed_epochs: dict[int, dict[str, int]] = {}
        self._signals: Counter[int] = Counter()
        self._issued: Counter[int] = Counter()
        self.dead_letters: list[dict[str, Any]] = []
        self.has_no_signal = False
        if state is not None:
            self._restore(state)
        self._stream = self._draws()

    def take(self, ticket: int) -> DrivingQuery | None:
        """The next query, known by `ticket` until it is settled; None at the end of the stream."""
        epoch_draw = next(self._stream, None)
        if epoch_draw is None:
            return None
        epoch, draw = epoch_draw
        query = self._query_of_row(draw % self._num_rows)
        self._open[ticket] = (epoch, draw, query.query_id)
        self._issued[epoch] += 1
        return query

    def settle(
        self, ticket: int, outcome: Outcome, *, has_signal: bool = False, error: Exception | None = None
    ) -> None:
        """Enter how the query of `ticket` ended.

        Raises KeyError for a ticket that is not open (a query would end twice), DeadLetterError when
        more were dead-lettered than allowed.
        """
        epoch, draw, query_id = self._open.pop(ticket)
        ended = self._epochs.setdefault(epoch, {})
        if draw in ended:
            raise KeyError(f"draw {draw} of epoch {epoch} has ended before, as {ended[draw]}")
        ended[draw] = outcome.value
        self._signals[epoch] += has_signal
        if len(ended) == self._num_rows:
            self.has_no_signal |= self._signals[epoch] == 0
            self._closed_epochs[epoch] = dict(Counter(ended.values()))
            del self._epochs[epoch]
        if outcome is Outcome.DEAD_LETTERED:
            self._dead_letter(epoch, draw % self._num_rows, query_id, error)

    def counts(self) -> dict[int, dict[str, int]]:
        """For every epoch: how many queries were issued in this attempt, and how many ended how."""
        ended = self._closed_epochs | {
            epoch: dict(Counter(rows.values())) for epoch, rows in self._epochs.items()
        }
        epochs = sorted(set(ended) | set(self._issued))
        return {epoch: {"issued": self._issued[epoch]} | ended.get(epoch, {}) for epoch in epochs}

    @property
    def num_ended(self) -> int:
        """Queries that have ended, over all epochs and attempts."""
        return sum(sum(counts.values()) - counts["issued"] for counts in self.counts().values())

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON: how every query ended, nothing of what is under way."""
        return {
            "num_rows": self._num_rows,
            "seed": self._seed,
            "sampling": self._order.sampling,
            "closed_epochs": {str(epoch): counts for epoch, counts in self._closed_epochs.items()},
            "open_epochs": {
                str(epoch): {str(draw): outcome for draw, outcome in draws.items()}
                for epoch, draws in self._epochs.items()
            },
            "signals": {str(epoch): self._signals[epoch] for epoch in self._epochs},
            "dead_letters": self.dead_letters,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        of_checkpoint = {"sampling": "uniform", **state}
        for key, mine in (
            ("num_rows", self._num_rows),
            ("seed", self._seed),
            ("sampling", self._order.sampling),
        ):
            if of_checkpoint[key] != mine:
                raise CheckpointError(
                    f"the checkpoint's ledger has {key}={of_checkpoint[key]}, this run {mine}: resume with "
                    "the configuration and the data that the run started with"
                )
        self._closed_epochs = {int(epoch): dict(counts) for epoch, counts in state["closed_epochs"].items()}
        self._epochs = {
            int(epoch): {int(draw): outcome for draw, outcome in draws.items()}
            for epoch, draws in state["open_epochs"].items()
        }
        self._signals.update({int(epoch): count for epoch, count in state["signals"].items()})
        self.dead_letters = list(state["dead_letters"])

    def _draws(self) -> Iterator[tuple[int, int]]:
        epoch = 0
        while self._max_epochs is None or epoch < self._max_epochs:
            if epoch not in self._closed_epochs:
                ended = set(self._epochs.get(epoch, ()))
                times: Counter[int] = Counter()
                for row in self._order.epoch_rows(epoch):
                    draw = row + times[row] * self._num_rows
                    times[row] += 1
                    if draw not in ended:
                        yield epoch, draw
            epoch += 1

    def _dead_letter(self, epoch: int, row: int, query_id: str, error: Exception | None) -> None:
        reason = f"{type(error).__name__}: {error}"
        logger.warning("dead-lettered query %s (row %d): %s", query_id, row, reason)
        self.dead_letters.append({"epoch": epoch, "row": row, "query_id": query_id, "reason": reason})
        if len(self.dead_letters) > self._max_dead_letters:
            raise DeadLetterError(
                f"{len(self.dead_letters)} groups were dead-lettered, {self._max_dead_letters} are allowed "
                f"(rewards.max_dead_letter_share of the run's groups); the last, {query_id}: {reason}"
            )
