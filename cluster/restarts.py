"""When a worker that died is started again, and when there is no use in it any more.

Pure: the caller has the clock. Deaths are counted for each place (a worker's index), in a row: work done
between two deaths sets the count back. So a worker that dies once an hour is always replaced, and one
that can never start is not tried for ever.
"""

from collections import Counter

SLOWEST_RETRY_S = 60.0


class RestartPolicy:
    """Counts deaths in a row; up to `max_restarts` of them at one place are answered by a restart."""

    def __init__(self, max_restarts: int) -> None:
        self._max_restarts = max_restarts
        self._in_a_row: Counter[int] = Counter()

    def died(self, place: int, *, had_worked: bool, counts: bool = True) -> None:
        """A worker died. `had_worked`: it had done something since its start. `counts` is False for a
        death that is somebody else's fault."""
        if had_worked:
            self._in_a_row[place] = 0
        self._in_a_row[place] += counts

    def cannot_start(self, place: int) -> None:
        """A worker will not start here however often it is tried."""
        self._in_a_row[place] = self._max_restarts + 1

    def is_used_up(self, place: int) -> bool:
        """Whether more workers died in a row than restarts are allowed."""
        return self._in_a_row[place] > self._max_restarts

    def deaths(self, place: int) -> int:
        """Deaths in a row."""
        return self._in_a_row[place]

    def delay_s(self, place: int) -> float:
        """How long to wait before the next start: not at all after the first death, then ever longer.

        A place that is used up is still tried, rarely, while others serve: the cause may pass.
        """
        deaths = self._in_a_row[place]
        if self.is_used_up(place) and deaths:
            return SLOWEST_RETRY_S
        return min(SLOWEST_RETRY_S, 2.0 ** (deaths - 2)) if deaths > 1 else 0.0
