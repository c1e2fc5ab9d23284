"""What has gone wrong with one group so far, and so how it is tried next. Pure.

    engine died, other groups on it  ──▶ suspect: from now on tried alone on an engine
    engine died, alone on it         ──▶ the same; at the second time the group is given up
    refused, timed out, garbage      ──▶ a failed attempt; `rollout.max_attempts` of them give it up
    engine fenced for another reason ──▶ tried again as if nothing had been

So a query that kills every engine that sees it costs three engines at most, and one that happened to be
on an engine when it died costs nobody anything but time.
"""

from alphadrive.errors import RolloutError

MAX_DEATHS_ALONE = 2


class Trials:
    """The record of one group. `label` names it in messages, `ticket` orders it among suspects."""

    def __init__(self, label: str, ticket: int, max_attempts: int) -> None:
        self.label = label
        self.ticket = ticket
        self.must_be_alone = False
        self.last_engine: object = None
        self._max_attempts = max_attempts
        self._num_failures = self._num_deaths_alone = 0
        self._last: object = None

    def failed(self, reason: object) -> None:
        """An engine that lives on refused it, did not answer in time, or returned garbage."""
        self._num_failures += 1
        self._last = reason

    def engine_died(self, reason: object, *, was_alone: bool) -> None:
        """The engine died while it drew this group; `was_alone`: and no other."""
        self.must_be_alone = True
        self._num_deaths_alone += was_alone
        self._last = reason

    def verdict(self) -> RolloutError | None:
        """Why the group is given up; None while it is to be tried again."""
        if self._num_deaths_alone >= MAX_DEATHS_ALONE:
            return RolloutError(
                f"{self.label}: given up: {self._num_deaths_alone} engines died while they drew this group "
                f"and no other; the last one: {self._last}"
            )
        if self._num_failures >= self._max_attempts:
            return RolloutError(
                f"{self.label}: given up after rollout.max_attempts={self._max_attempts}: {self._last}"
            )
        return None
