"""How the driver and a simulated engine talk, by the rules of `cluster.exchange`.

An engine is not called more often than every `period_s`. A call brings the orders that wait and stays open
until a group has ended or the next call comes.
"""

from collections.abc import Callable
from typing import Protocol

from alphadrive.planning.clock import Clock, SimulatedDriver
from alphadrive.planning.engine import SimulatedEngine
from alphadrive.planning.measured import DriverCosts
from alphadrive.planning.workload import SimulatedGroup

PERIOD_S = 0.004
LONGEST_PERIOD_S = 1.0
"""Both as `cluster.rollout_pool`."""


class Answered(Protocol):
    """Told of the groups that an engine has drawn."""

    def __call__(self, line: "SimulatedLine", groups: list[SimulatedGroup]) -> None: ...


class SimulatedLine:
    """The driver's handle on one engine, and the way between the two."""

    def __init__(
        self,
        index: int,
        engine: SimulatedEngine,
        clock: Clock,
        driver: SimulatedDriver,
        costs: DriverCosts,
        hop_s: float,
        period_s: Callable[[], float],
        answered: Answered,
    ) -> None:
        self.index, self.engine = index, engine
        self.num_under_way = 0
        """Groups ordered and not answered yet."""
        self.is_serving = False
        self.is_settled = True
        """Not while what it draws waits for the proof of its weights."""
        self.is_dead = self.is_up = self.is_catching_up = False
        self.held: list[SimulatedGroup] = []
        self.reserved_for: SimulatedGroup | None = None
        self.under_way: dict[int, SimulatedGroup] = {}
        self._clock, self._driver, self._costs, self._hop_s = clock, driver, costs, hop_s
        self._period_s, self._answered = period_s, answered
        self._orders: list[SimulatedGroup] = []
        self._ended: list[SimulatedGroup] = []
        self._last_s = float("-inf")
        self._has_timer = self._is_open = self._waits_at_desk = False
        self._stamp = 0

    def order(self, group: SimulatedGroup) -> None:
        """Have a group drawn."""
        self.num_under_way += 1
        self.under_way[group.ticket] = group
        self._orders.append(group)
        self._call_soon()

    def flush(self) -> None:
        """Send what was ordered now: the engine serves no longer in a moment."""
        if self._orders:
            self._call()

    def changed(self) -> None:
        """The engine was paused, or goes on: its next end is another."""
        self._stamp += 1
        end_s = self.engine.next_end_s()
        if end_s is not None:
            self._clock.at(end_s, self._look, self._stamp)

    def _call_soon(self) -> None:
        if not self._has_timer:
            self._has_timer = True
            self._clock.at(self._last_s + self._period_s(), self._call_if_due)

    def _call_if_due(self) -> None:
        if self._has_timer and not self.is_dead:
            self._call()

    def _call(self) -> None:
        self._has_timer, self._last_s = False, self._clock.now_s
        orders, self._orders = self._orders, []
        self._is_open = True
        self._driver.do(self._costs.call_s, self._send, orders)

    def _send(self, orders: list[SimulatedGroup]) -> None:
        self._clock.after(self._hop_s, self._arrive, orders)

    def _arrive(self, orders: list[SimulatedGroup]) -> None:
        if self.is_dead:
            return
        for group in orders:
            self.engine.begin(self._clock.now_s, group.ticket, group.steps)
        self._waits_at_desk = True
        self._reply(even_none=not self.engine.has_work)
        self.changed()

    def _look(self, stamp: int) -> None:
        if stamp != self._stamp or self.is_dead:
            return
        for ticket in self.engine.ended(self._clock.now_s):
            group = self.under_way[ticket]
            group.version = self.engine.drawn_with.pop(ticket)
            self._ended.append(group)
        self._reply(even_none=False)
        self.changed()

    def _reply(self, *, even_none: bool) -> None:
        if self._waits_at_desk and (self._ended or even_none):
            self._waits_at_desk = False
            ended, self._ended = self._ended, []
            self._clock.after(self._hop_s, self._heard, ended)

    def _heard(self, groups: list[SimulatedGroup]) -> None:
        if self.is_dead:
            return
        self._is_open = False
        self._driver.do(self._costs.group_s / 3 * len(groups), self._tell, groups)

    def _tell(self, groups: list[SimulatedGroup]) -> None:
        if self.is_dead:
            return
        self.num_under_way -= len(groups)
        for group in groups:
            del self.under_way[group.ticket]
        if self.num_under_way and not self._is_open:
            self._call_soon()
        self._answered(self, groups)
