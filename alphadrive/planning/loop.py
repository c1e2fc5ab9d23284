"""The loop and its slots, in virtual time, by the rules of `cluster/loop.py` and `cluster/buffer.py`.

A slot is held from the ticket of a group until it is left out for want of variance or its step's weights are
published. A step takes the groups of the oldest tickets, in order.
"""

from collections import Counter, deque
from collections.abc import Iterator
from itertools import islice

from alphadrive.planning.clock import Clock, SimulatedDriver
from alphadrive.planning.learner import SimulatedLearner
from alphadrive.planning.measured import Measured, Setup
from alphadrive.planning.pool import SimulatedPool
from alphadrive.planning.workload import SimulatedGroup


class SimulatedLoop:
    """Starts groups and makes steps until `setup.steps` were made after the warm-up."""

    def __init__(
        self,
        clock: Clock,
        driver: SimulatedDriver,
        measured: Measured,
        setup: Setup,
        groups: Iterator[SimulatedGroup],
    ) -> None:
        self.pool: SimulatedPool
        self.learner: SimulatedLearner
        self.num_issued = self.num_skipped = self.num_trained = self.num_steps = 0
        self.waited_s = 0.0
        """For so long the learner has waited for groups."""
        self.lags: Counter[int] = Counter()
        """How many trained groups were so many versions old."""
        self.step_ends_s: list[float] = []
        self._clock, self._driver, self._setup, self._groups = clock, driver, setup, groups
        self._order_s = measured.driver.group_s / 3
        self._num_slots = (setup.max_policy_lag + 1) * setup.groups_per_step
        self._num_held = 0
        self._pending: dict[int, SimulatedGroup | None] = {}
        self._unsettled: deque[int] = deque()
        self._num_ready = 0
        """Groups of the oldest tickets that are scored, without a gap."""
        self._waits_since_s: float | None = None

    @property
    def num_held(self) -> int:
        """Slots in use."""
        return self._num_held

    @property
    def is_over(self) -> bool:
        """Whether the last step was made."""
        return self.num_steps >= self._setup.warmup_steps + self._setup.steps

    def start(self) -> None:
        """Begin."""
        self._start_groups()
        self._wait_for_groups()

    def scored(self, group: SimulatedGroup) -> None:
        """A group's rewards are known."""
        if group.is_flat and self._setup.skips_flat_groups:
            del self._pending[group.ticket]
            self.num_skipped += 1
            self._num_held -= 1
            self._start_groups()
        else:
            self._pending[group.ticket] = group
            self.learner.expect(group)
        self._take()

    def _start_groups(self) -> None:
        while self._num_held < self._num_slots:
            group = next(self._groups)
            self._num_held += 1
            self.num_issued += 1
            self._pending[group.ticket] = None
            self._unsettled.append(group.ticket)
            self._driver.do(self._order_s, self.pool.draw, group)

    def _wait_for_groups(self) -> None:
        self._waits_since_s = self._clock.now_s
        self._take()

    def _take(self) -> None:
        while self._unsettled:
            ticket = self._unsettled[0]
            if ticket in self._pending:
                if self._pending[ticket] is None:
                    break
                self._num_ready += 1
            self._unsettled.popleft()
        if self._waits_since_s is None or self._num_ready < self._setup.groups_per_step:
            return
        self.waited_s += self._clock.now_s - self._waits_since_s
        self._waits_since_s = None
        oldest = list(islice(self._pending.values(), self._setup.groups_per_step))
        taken = [group for group in oldest if group is not None]
        for group in taken:
            del self._pending[group.ticket]
        self._num_ready -= len(taken)
        self._note_lags(taken)
        self.learner.step(taken, self._stepped)

    def _note_lags(self, groups: list[SimulatedGroup]) -> None:
        for group in groups:
            lag = self.learner.version - group.version
            if not 0 <= lag <= self._setup.lag_bound:
                bound = self._setup.lag_bound
                raise RuntimeError(f"ticket {group.ticket} is {lag} versions old, expected 0 to {bound}")
            self.lags[lag] += 1

    def _stepped(self) -> None:
        if self.learner.version % self._setup.sync_every == 0:
            self.learner.publish(self._published)
        else:
            self._published()

    def _published(self) -> None:
        self.num_steps += 1
        self.num_trained += self._setup.groups_per_step
        self._num_held -= self._setup.groups_per_step
        self.step_ends_s.append(self._clock.now_s)
        if not self.is_over:
            self._start_groups()
            self._wait_for_groups()
