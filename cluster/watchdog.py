"""Telling a slow worker from one that hangs, by its progress. Pure: the caller has the clock.

Progress is tokens drawn, never an answer to a ping alone: an engine whose process is stopped, or whose
scheduler is stuck, may still answer. An engine without groups under way has to answer only.
"""


class ProgressWatch:
    """Watches one engine. Times are in seconds of any one clock."""

    def __init__(self, limit_s: float, now_s: float) -> None:
        self.limit_s = limit_s
        self._tokens: int | None = None
        self._answered_s = self._advanced_s = now_s

    def answered(self, now_s: float, tokens: int) -> None:
        """The engine said how many tokens it has drawn so far."""
        self._answered_s = now_s
        if tokens != self._tokens:
            self._tokens, self._advanced_s = tokens, now_s

    def restart(self, now_s: float) -> None:
        """From now on it is to make progress: it was idle, or its weights were being updated."""
        self._answered_s = self._advanced_s = now_s

    def forgive(self, seconds: float) -> None:
        """We ourselves did not run for so long: the engine could not be heard."""
        self._answered_s += seconds
        self._advanced_s += seconds

    def complaint(self, now_s: float, num_under_way: int) -> str | None:
        """What is wrong with an engine that has so many groups under way; None if nothing."""
        silent_s, still_s = now_s - self._answered_s, now_s - self._advanced_s
        if silent_s >= self.limit_s:
            return f"hung: it has answered nothing for {silent_s:.0f} s"
        if num_under_way and still_s >= self.limit_s:
            return f"hung: it has drawn no token for {still_s:.0f} s with {num_under_way} groups under way"
        return None
