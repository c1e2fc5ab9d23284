"""The engines, in virtual time: which one draws a group, by the rules of `cluster.dispatch`, and deaths.

A group goes to the engine with the fewest under way. What an engine drew when it died is drawn again, each
group alone on an engine; its successor serves when it has started and has the current weights.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Callable

import numpy as np

from alphadrive.planning.clock import Clock, SimulatedDriver
from alphadrive.planning.engine import SimulatedEngine
from alphadrive.planning.exchange import LONGEST_PERIOD_S, PERIOD_S, SimulatedLine
from alphadrive.planning.measured import Measured, Setup
from alphadrive.planning.workload import SimulatedGroup

HOUR_S = 3600.0


class SimulatedPool:
    """All engines. `accepted` is told of groups that may be scored, `catch_up` brings a new engine the
    weights, `lost` is told of a death, `emptied` of an engine that has nothing under way."""

    def __init__(
        self,
        clock: Clock,
        driver: SimulatedDriver,
        measured: Measured,
        setup: Setup,
        random: np.random.Generator,
        accepted: Callable[[SimulatedGroup], None],
    ) -> None:
        self.num_deaths = 0
        self.lines: list[SimulatedLine] = []
        self.catch_up: Callable[[SimulatedLine], None]
        self.lost: Callable[[SimulatedLine], None]
        self.emptied: Callable[[SimulatedLine], None]
        self._busy_s = 0.0
        self._clock, self._driver, self._random = clock, driver, random
        self._measured, self._setup, self._accepted = measured, setup, accepted
        self._by_load: list[tuple[int, int, int, SimulatedLine]] = []
        self._numbers = itertools.count()
        self._waiting: deque[SimulatedGroup] = deque()
        self._suspects: list[SimulatedGroup] = []
        self._reserved: set[SimulatedLine] = set()
        self._num_serving = 0
        for index in range(setup.num_engines):
            line = self._make(index)
            self._begin_life(line)
            self.admit(line)

    @property
    def busy_s(self) -> float:
        """For how long engines have drawn until now, summed up."""
        for line in self.lines:
            line.engine.advance(self._clock.now_s)
        return self._busy_s + sum(line.engine.busy_s for line in self.lines)

    def draw(self, group: SimulatedGroup) -> None:
        """Have a group drawn, now or as soon as an engine serves."""
        line = self._least_loaded()
        if line is None:
            self._waiting.append(group)
        else:
            self._order(line, group)

    def begin_sync(self) -> list[SimulatedLine]:
        """Close the engines to new groups; those that are to get new weights."""
        lines = [line for line in self.lines if line.is_up and not line.is_catching_up]
        for line in lines:
            if line.is_serving:
                line.is_serving = False
                self._num_serving -= 1
                line.flush()
            line.is_settled = self._setup.waits_for_groups
        return lines

    def admit(self, line: SimulatedLine) -> None:
        """Open an engine whose weights are proved."""
        if line.is_dead:
            return
        if not line.is_serving:
            line.is_serving = True
            self._num_serving += 1
        line.is_settled = True
        held, line.held = line.held, []
        for group in held:
            self._accepted(group)
        self._note_load(line)
        self._serve_waiting()

    def _make(self, index: int) -> SimulatedLine:
        engine = SimulatedEngine(self._measured.engine, self._setup.seats, self._clock.now_s)
        line = SimulatedLine(
            index,
            engine,
            self._clock,
            self._driver,
            self._measured.driver,
            self._measured.hop_s,
            self._period_s,
            self._answered,
        )
        self.lines.append(line)
        return line

    def _begin_life(self, line: SimulatedLine) -> None:
        line.is_up = True
        if self._setup.fail_rate:
            self._clock.after(self._random.exponential(HOUR_S / self._setup.fail_rate), self._die, line)

    def _period_s(self) -> float:
        return min(LONGEST_PERIOD_S, len(self.lines) * PERIOD_S)

    def _order(self, line: SimulatedLine, group: SimulatedGroup) -> None:
        line.order(group)
        self._note_load(line)

    def _answered(self, line: SimulatedLine, groups: list[SimulatedGroup]) -> None:
        if line.reserved_for in groups:
            line.reserved_for = None
            self._reserved.remove(line)
        for group in groups:
            group.is_suspect = False
            if line.is_settled:
                self._accepted(group)
            else:
                line.held.append(group)
        self._note_load(line)
        if not line.num_under_way:
            self._serve_waiting()
            self.emptied(line)

    def _note_load(self, line: SimulatedLine) -> None:
        if line.is_serving and line.reserved_for is None:
            entry = (line.num_under_way, line.index, next(self._numbers), line)
            heapq.heappush(self._by_load, entry)

    def _least_loaded(self) -> SimulatedLine | None:
        """The serving engine with the fewest groups that nothing is reserved for; old entries are dropped."""
        while self._by_load:
            load, _, _, line = self._by_load[0]
            if line.is_serving and line.reserved_for is None and load == line.num_under_way:
                return line
            heapq.heappop(self._by_load)
        return None

    def _serve_waiting(self) -> None:
        self._reserve()
        while self._waiting and (line := self._least_loaded()) is not None:
            self._order(line, self._waiting.popleft())

    def _reserve(self) -> None:
        """Give suspects engines of their own, all but one; a suspect starts when its engine is empty."""
        while self._suspects and len(self._reserved) < max(1, self._num_serving - 1):
            line = self._least_loaded()
            if line is None:
                break
            line.reserved_for = self._suspects.pop(0)
            self._reserved.add(line)
        for line in sorted(self._reserved, key=lambda line: line.index):
            if line.reserved_for and line.is_serving and not line.num_under_way:
                self._order(line, line.reserved_for)

    def _die(self, line: SimulatedLine) -> None:
        self.num_deaths += 1
        line.engine.advance(self._clock.now_s)
        self._busy_s += line.engine.busy_s
        line.is_dead, line.is_up = True, False
        self._num_serving -= line.is_serving
        line.is_serving = False
        self.lines.remove(line)
        if line.reserved_for is not None:
            self._reserved.remove(line)
            if line.reserved_for.ticket not in line.under_way:
                self._suspects.append(line.reserved_for)
        for group in line.under_way.values():
            group.is_suspect = True
            self._suspects.append(group)
        self._suspects.sort(key=lambda group: group.ticket)
        self._waiting.extend(line.held)
        successor = self._make(line.index)
        self._clock.after(self._measured.engine_start_s, self._start, successor)
        self.lost(line)
        self._serve_waiting()

    def _start(self, line: SimulatedLine) -> None:
        self._begin_life(line)
        line.is_catching_up, line.is_settled = True, False
        self.catch_up(line)
