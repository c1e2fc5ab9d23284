"""Virtual time: what happens next, and a driver that does one thing after another."""

import heapq
import itertools
from collections.abc import Callable
from typing import Any


class Clock:
    """Calls functions at their time, those of one moment in the order in which they were asked for."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = itertools.count()

    def at(self, time_s: float, call: Callable[..., None], *arguments: Any) -> None:
        """Call at a time, not before now."""
        heapq.heappush(self._events, (max(time_s, self.now_s), next(self._numbers), call, arguments))

    def after(self, seconds: float, call: Callable[..., None], *arguments: Any) -> None:
        """Call so many seconds from now."""
        heapq.heappush(self._events, (self.now_s + seconds, next(self._numbers), call, arguments))

    def run_until(self, is_over: Callable[[], bool]) -> None:
        """Go on until `is_over`. Raises RuntimeError when nothing is left to happen before that."""
        while not is_over():
            if not self._events:
                raise RuntimeError(f"the simulation stands still at {self.now_s:.1f} s: every part waits")
            self.now_s, _, call, arguments = heapq.heappop(self._events)
            call(*arguments)


class SimulatedDriver:
    """The driver's event loop: one piece of work at a time, first come, first served.

    Of its time the share `background` goes to what it does beside the groups.
    """

    def __init__(self, clock: Clock, background: float) -> None:
        self.busy_s = 0.0
        self._clock, self._free_s = clock, 0.0
        self._slowness = 1.0 / (1.0 - min(background, 0.95))

    def do(self, cost_s: float, call: Callable[..., None], *arguments: Any) -> None:
        """Do something that costs so much, and then call."""
        cost_s *= self._slowness
        self._free_s = max(self._free_s, self._clock.now_s) + cost_s
        self.busy_s += cost_s
        self._clock.at(self._free_s, call, *arguments)
