"""The order of the queries, and the ledger of how each ended.

An epoch has as many draws as the dataset has rows. Which rows it draws is told by a
`cluster.row_order.RowOrder`: each once in a seeded shuffle, or, balanced, some several times and some not;
then every *draw* is a query that ends exactly once. A step may hold groups of two epochs.

    take ──▶ open ──▶ settle: trained, skipped or dead-lettered
      ▲        └────▶ give_back: its step was not applied; asked once more, then dead-lettered
      └───────────────────┘

The ledger goes into every checkpoint: a run that resumes asks again for the queries that had not ended
there, and for no other. Called by `cluster.loop`; knows neither Ray nor pixels.
"""

import hashlib
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from alphadrive.errors import CheckpointError, DeadLetterError
from alphadrive.types import DrivingQuery
from cluster.loop import Outcome
from cluster.row_order import RowOrder, uniform_order

logger = logging.getLogger(__name__)

MAX_TRIES = 2


class Draw(NamedTuple):
    """A query of an epoch: `number` is its row, plus the number of rows for every time that the row came
    before in the epoch."""

    epoch: int
    number: int


class Issue(NamedTuple):
    """A draw that is under way, for the `tries`-th time."""

    draw: Draw
    query_id: str
    tries: int


class QueryLedger:
    """Hands out queries in order and remembers how each ended.

    `query_of_row` reads a query; `order` is which rows each epoch draws (None: all in a shuffle by
    `seed`); `max_dead_letters` may be dead-lettered before DeadLetterError; `max_epochs` ends the stream
    (None: never); `state` is what `state()` gave at a checkpoint.

    `next_ticket` is one more than the highest ticket that has ended, from which a run that resumes goes on.
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
        self._open: dict[int, Issue] = {}
        self._given_back: deque[Draw] = deque()
        self._failed: set[Draw] = set()
        self._epochs: dict[int, dict[int, str]] = {}
        self._closed_epochs: dict[int, dict[str, int]] = {}
        self._signals: Counter[int] = Counter()
        self._issued: Counter[int] = Counter()
        self.next_ticket = 0
        self.dead_letters: list[dict[str, Any]] = []
        self.has_no_signal = False
        self._is_over = False
        if state is not None:
            self._restore(state)
        self._stream = self._draws()

    def take(self, ticket: int) -> DrivingQuery | None:
        """The next query, known by `ticket` until it is settled or given back; None at the end of the stream.

        Its `seed` follows from the run's seed, epoch, query and try, so that it does not depend on which
        ticket the query gets.
        """
        draw = self._given_back.popleft() if self._given_back else next(self._stream, None)
        if draw is None:
            self._is_over = True
            return None
        query = self._query_of_row(draw.number % self._num_rows)
        tries = MAX_TRIES if draw in self._failed else 1
        self._open[ticket] = Issue(draw, query.query_id, tries)
        self._issued[draw.epoch] += tries == 1
        turn = draw.number // self._num_rows
        return replace(query, seed=sampling_seed(self._seed, draw.epoch, query.query_id, turn, tries))

    def settle(
        self, ticket: int, outcome: Outcome, *, has_signal: bool = False, error: Exception | None = None
    ) -> None:
        """Enter how the query of `ticket` ended.

        Raises KeyError for a ticket that is not open (a query would end twice), DeadLetterError when
        more were dead-lettered than allowed.
        """
        draw, query_id, _ = self._close(ticket)
        ended = self._epochs.setdefault(draw.epoch, {})
        if draw.epoch in self._closed_epochs or draw.number in ended:
            raise KeyError(f"draw {draw.number} of epoch {draw.epoch} has ended before")
        ended[draw.number] = outcome.value
        self._failed.discard(draw)
        self._signals[draw.epoch] += has_signal
        if len(ended) == self._num_rows:
            self.has_no_signal |= self._signals[draw.epoch] == 0
            self._closed_epochs[draw.epoch] = dict(Counter(ended.values()))
            del self._epochs[draw.epoch]
        if outcome is Outcome.DEAD_LETTERED:
            self._dead_letter(draw, query_id, error)

    def give_back(self, ticket: int, error: Exception) -> None:
        """The step on this group was not applied: ask for its query once more, before any new one; the
        second time, or when nobody asks any more, dead-letter it.

        Raises as `settle`.
        """
        issue = self._open[ticket]
        if issue.tries == MAX_TRIES or self._is_over:
            return self.settle(ticket, Outcome.DEAD_LETTERED, error=error)
        self._close(ticket)
        self._failed.add(issue.draw)
        self._given_back.append(issue.draw)
        logger.warning("query %s is asked once more: %s", issue.query_id, error)

    @property
    def open_tickets(self) -> list[int]:
        """Tickets whose queries are under way."""
        return sorted(self._open)

    def counts(self) -> dict[int, dict[str, int]]:
        """For every epoch: how many queries were issued (each once, however often tried), and how many
        ended how; over all attempts."""
        ended = self._closed_epochs | {
            epoch: dict(Counter(draws.values())) for epoch, draws in self._epochs.items()
        }
        epochs = sorted(set(ended) | {epoch for epoch, count in self._issued.items() if count})
        return {epoch: {"issued": self._issued[epoch]} | ended.get(epoch, {}) for epoch in epochs}

    @property
    def num_ended(self) -> int:
        """Queries that have ended, over all epochs and attempts."""
        return sum(sum(counts.values()) - counts["issued"] for counts in self.counts().values())

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON: what was issued, how every query ended, which had a try that
        failed. What is under way is asked again."""
        return {
            "num_rows": self._num_rows,
            "seed": self._seed,
            "sampling": self._order.sampling,
            "closed_epochs": {str(epoch): counts for epoch, counts in self._closed_epochs.items()},
            "open_epochs": {
                str(epoch): {str(number): outcome for number, outcome in draws.items()}
                for epoch, draws in self._epochs.items()
            },
            "signals": {str(epoch): self._signals[epoch] for epoch in self._epochs},
            "issued": {str(epoch): count for epoch, count in sorted(self._issued.items())},
            "under_way": [[ticket, *issue.draw] for ticket, issue in sorted(self._open.items())],
            "failed": sorted(self._failed),
            "next_ticket": self.next_ticket,
            "dead_letters": self.dead_letters,
        }

    def _close(self, ticket: int) -> Issue:
        issue = self._open.pop(ticket)
        self.next_ticket = max(self.next_ticket, ticket + 1)
        return issue

    def _restore(self, state: dict[str, Any]) -> None:
        for key, mine in (
            ("num_rows", self._num_rows),
            ("seed", self._seed),
            ("sampling", self._order.sampling),
        ):
            if state[key] != mine:
                raise CheckpointError(
                    f"the checkpoint's ledger has {key}={state[key]}, this run {mine}: resume with the "
                    "configuration and the data that the run started with"
                )
        self._closed_epochs = {int(epoch): dict(counts) for epoch, counts in state["closed_epochs"].items()}
        self._epochs = {
            int(epoch): {int(number): outcome for number, outcome in draws.items()}
            for epoch, draws in state["open_epochs"].items()
        }
        self._signals.update({int(epoch): count for epoch, count in state["signals"].items()})
        self._failed = {Draw(*draw) for draw in state["failed"]}
        self.next_ticket = state["next_ticket"]
        self.dead_letters = list(state["dead_letters"])
        again = [Draw(epoch, number) for _, epoch, number in state["under_way"]]
        again_by_epoch = Counter(draw.epoch for draw in again if draw not in self._failed)
        self._issued.update(
            {int(epoch): count - again_by_epoch[int(epoch)] for epoch, count in state["issued"].items()}
        )
        self._check_sums()

    def _check_sums(self) -> None:
        """What was issued and is not under way has ended or was given back. Raises CheckpointError."""
        waiting = Counter(draw.epoch for draw in self._failed)
        for epoch, counts in self.counts().items():
            ended = sum(counts.values()) - counts["issued"]
            if counts["issued"] != ended + waiting[epoch]:
                raise CheckpointError(
                    f"the checkpoint's ledger does not add up in epoch {epoch}: {counts['issued']} queries "
                    f"issued that are not under way, but {ended} ended and {waiting[epoch]} given back"
                )

    def _draws(self) -> Iterator[Draw]:
        epoch = 0
        while self._max_epochs is None or epoch < self._max_epochs:
            if epoch not in self._closed_epochs:
                ended = set(self._epochs.get(epoch, ()))
                times: Counter[int] = Counter()
                for row in self._order.epoch_rows(epoch):
                    number = row + times[row] * self._num_rows
                    times[row] += 1
                    if number not in ended:
                        yield Draw(epoch, number)
            epoch += 1

    def _dead_letter(self, draw: Draw, query_id: str, error: Exception | None) -> None:
        row, reason = draw.number % self._num_rows, f"{type(error).__name__}: {error}"
        logger.warning("dead-lettered query %s (row %d): %s", query_id, row, reason)
        self.dead_letters.append({"epoch": draw.epoch, "row": row, "query_id": query_id, "reason": reason})
        if len(self.dead_letters) > self._max_dead_letters:
            raise DeadLetterError(
                f"{len(self.dead_letters)} groups were dead-lettered, {self._max_dead_letters} are allowed "
                f"(rewards.max_dead_letter_share of the run's groups); the last, {query_id}: {reason}"
            )


def sampling_seed(seed: int, epoch: int, query_id: str, turn: int, tries: int) -> int:
    """Where the sampling of a query's completions starts; completion i takes the seed plus i.

    `turn` tells the draws of one row in one epoch apart, `tries` a second try from the first.
    """
    digest = hashlib.sha256(f"{seed}/{epoch}/{query_id}/{turn}/{tries}".encode()).digest()
    return int.from_bytes(digest[:6], "big")
