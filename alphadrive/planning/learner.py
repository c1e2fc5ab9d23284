"""The learner and the weight sync, in virtual time, by the rules of the modules of these names in `cluster`.

Steps, publishes and the catching up of new engines exclude each other: one lock. The driver calls every rank
for a step, an export and a comparison, and tells ranks in between what they will be dealt.
"""

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from alphadrive.planning.clock import Clock, SimulatedDriver
from alphadrive.planning.exchange import SimulatedLine
from alphadrive.planning.measured import Measured, Setup
from alphadrive.planning.pool import SimulatedPool
from alphadrive.planning.workload import SimulatedGroup

Done = Callable[[], None]
EXPECT_DELAY_S, EXPECT_RANK_S, LONGEST_EXPECT_DELAY_S = 0.02, 0.004, 1.0
"""As `cluster.learner_group`."""


class SimulatedLearner:
    """Makes steps and brings weights to engines."""

    def __init__(
        self,
        clock: Clock,
        driver: SimulatedDriver,
        measured: Measured,
        setup: Setup,
        random: np.random.Generator,
        pool: SimulatedPool,
    ) -> None:
        self.version = 0
        self.sync_seconds: list[float] = []
        self._clock, self._driver, self._random, self._pool = clock, driver, random, pool
        self._measured, self._setup = measured, setup
        self._share = measured.num_ranks / setup.num_ranks
        self._call_all_s = setup.num_ranks * measured.driver.call_s
        self._expecting: set[int] = set()
        self._is_locked = False
        self._locking: deque[Done] = deque()
        self._updating: set[SimulatedLine] = set()
        self._waiting_for_empty: set[SimulatedLine] = set()
        self._arrived: list[SimulatedLine] = []
        self._is_comparing = False
        self._all_proved: Done
        pool.catch_up, pool.lost, pool.emptied = self.catch_up, self._lost, self._emptied

    def expect(self, group: SimulatedGroup) -> None:
        """Tell the rank that will be dealt a group, a moment later."""
        if not self._expecting:
            delay_s = max(EXPECT_DELAY_S, self._setup.num_ranks * EXPECT_RANK_S)
            self._clock.after(min(delay_s, LONGEST_EXPECT_DELAY_S), self._tell_expected)
        self._expecting.add(group.ticket % self._setup.num_ranks)

    def _tell_expected(self) -> None:
        self._driver.do(len(self._expecting) * self._measured.driver.call_s, lambda: None)
        self._expecting.clear()

    def step(self, groups: Sequence[SimulatedGroup], done: Done) -> None:
        """Make a step on groups."""

        def begin() -> None:
            tokens = sum(group.tokens for group in groups)
            seconds = self._measured.step_s + self._share * self._measured.token_s * tokens
            spread = float(self._random.choice(self._measured.step_spread))
            self._clock.after(seconds * spread + 2 * self._measured.hop_s, end)

        def end() -> None:
            self.version += 1
            self._release()
            done()

        self._acquire(lambda: self._driver.do(self._call_all_s, begin))

    def publish(self, done: Done) -> None:
        """Bring the weights to all engines that are up."""
        asked_s = self._clock.now_s

        def end() -> None:
            self.sync_seconds.append(self._clock.now_s - asked_s)
            self._release()
            done()

        self._acquire(lambda: self._bring(self._pool.begin_sync(), end))

    def catch_up(self, line: SimulatedLine) -> None:
        """Bring the weights to one new engine."""

        def end() -> None:
            line.is_catching_up = False
            self._release()

        self._acquire(lambda: self._bring([line], end))

    def _acquire(self, begin: Done) -> None:
        if self._is_locked:
            self._locking.append(begin)
        else:
            self._is_locked = True
            begin()

    def _release(self) -> None:
        self._is_locked = False
        if self._locking:
            self._acquire(self._locking.popleft())

    def _bring(self, lines: list[SimulatedLine], done: Done) -> None:
        self._updating = {line for line in lines if not line.is_dead}
        self._all_proved = done
        if not self._updating:
            done()
            return
        export_s = float(self._random.choice(self._measured.export_s))
        updated = [line for line in lines if not line.is_dead]
        self._driver.do(self._call_all_s, self._clock.after, export_s, self._send, updated)

    def _send(self, lines: list[SimulatedLine]) -> None:
        for line in lines:
            if self._setup.waits_for_groups and line.num_under_way and not line.is_dead:
                self._waiting_for_empty.add(line)
            else:
                self._driver.do(self._measured.driver.sync_engine_s, self._update, line)

    def _emptied(self, line: SimulatedLine) -> None:
        if line in self._waiting_for_empty:
            self._waiting_for_empty.remove(line)
            self._driver.do(self._measured.driver.sync_engine_s, self._update, line)

    def _update(self, line: SimulatedLine) -> None:
        if line.is_dead:
            return
        index = int(self._random.integers(len(self._measured.sync_engine_s)))
        engine_s, paused_s = self._measured.sync_engine_s[index], self._measured.paused_s[index]
        line.engine.pause(self._clock.now_s)
        line.changed()
        self._clock.after(float(min(paused_s, engine_s)), self._resume, line)
        self._clock.after(float(engine_s), self._arrive, line)

    def _resume(self, line: SimulatedLine) -> None:
        if not line.is_dead:
            line.engine.resume(self._clock.now_s, self.version)
            line.changed()

    def _arrive(self, line: SimulatedLine) -> None:
        if not line.is_dead:
            self._arrived.append(line)
            self._compare()

    def _compare(self) -> None:
        """Compare the canaries of all engines that have come, in one call."""
        if self._arrived and not self._is_comparing:
            self._is_comparing = True
            arrived, self._arrived = self._arrived, []
            seconds = len(arrived) * self._measured.canary_s * self._share
            self._driver.do(self._call_all_s, self._clock.after, seconds, self._prove, arrived)

    def _prove(self, lines: list[SimulatedLine]) -> None:
        self._is_comparing = False
        self._updating.difference_update(lines)
        for line in lines:
            self._pool.admit(line)
        self._compare()
        if not self._updating:
            self._all_proved()

    def _lost(self, line: SimulatedLine) -> None:
        self._waiting_for_empty.discard(line)
        if line in self._updating and line not in self._arrived:
            self._updating.remove(line)
            if not self._updating and not self._is_comparing:
                self._clock.after(0.0, self._all_proved)
