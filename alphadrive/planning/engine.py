"""An engine with continuous batching, in virtual time.

Up to `seats` sequences are drawn at once, each by one token in every step; more wait, first come, first
served. A step takes the longer the more sequences it has. A group has ended when its last completion has.
"""

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

ROUNDING = 1e-6
"""Of a step: what adding up seconds may leave."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpeed:
    """A step with n sequences takes `token_s + n * sequence_token_s`; a prompt is worth `prompt_tokens` steps
    of every completion's sequence."""

    token_s: float
    sequence_token_s: float
    prompt_tokens: float

    def step_s(self, num_sequences: int) -> float:
        """Seconds of a step."""
        return self.token_s + num_sequences * self.sequence_token_s


class SimulatedEngine:
    """One engine. Whoever has it asks when the next completion ends, and tells it the time."""

    def __init__(self, speed: EngineSpeed, seats: int, now_s: float = 0.0) -> None:
        self.busy_s = 0.0
        """For so long it has drawn."""
        self.version = 0
        """Of the weights it has."""
        self.drawn_with: dict[int, int] = {}
        """The version that a group under way was begun with."""
        self.is_paused = False
        self._speed, self._seats = speed, seats
        self._at_s, self._done = now_s, 0.0
        self._running: list[tuple[float, int]] = []
        self._queue: deque[tuple[float, int]] = deque()
        self._left: dict[int, int] = {}

    @property
    def has_work(self) -> bool:
        """Whether any group is under way."""
        return bool(self._left)

    def begin(self, now_s: float, number: int, steps: Sequence[float]) -> None:
        """Take a group: `steps` of each of its completions, the prompt's included."""
        self.advance(now_s)
        self._left[number] = len(steps)
        for each in steps:
            self._queue.append((each, number))
        self._fill()

    def next_end_s(self) -> float | None:
        """When the next completion ends, if nothing happens before."""
        if not self._running or self.is_paused:
            return None
        left = max(0.0, self._running[0][0] - self._done)
        return self._at_s + left * self._speed.step_s(len(self._running))

    def ended(self, now_s: float) -> list[int]:
        """The groups that have ended by now."""
        self.advance(now_s)
        numbers = []
        running, left = self._running, self._left
        while running and running[0][0] <= self._done + ROUNDING:
            number = heapq.heappop(running)[1]
            left[number] -= 1
            if not left[number]:
                del left[number]
                numbers.append(number)
        self._fill()
        return numbers

    def pause(self, now_s: float) -> None:
        """Draw nothing until `resume`."""
        self.advance(now_s)
        self.is_paused = True

    def resume(self, now_s: float, version: int) -> None:
        """Go on, with the weights of `version`."""
        self.advance(now_s)
        self.is_paused, self.version = False, version

    def advance(self, now_s: float) -> None:
        """Draw until now."""
        seconds = now_s - self._at_s
        self._at_s = now_s
        if self._running and not self.is_paused:
            self.busy_s += seconds
            self._done += seconds / self._speed.step_s(len(self._running))

    def _fill(self) -> None:
        if not self._running:
            self._done = 0.0
        while self._queue and len(self._running) < self._seats:
            steps, number = self._queue.popleft()
            self.drawn_with.setdefault(number, self.version)
            heapq.heappush(self._running, (self._done + steps, number))
