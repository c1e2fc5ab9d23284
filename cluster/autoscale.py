"""How many rollout workers a run should have: a pure controller. Observations in, decisions with reasons out.

The signal is the learner's idle share: the part of the loop's seconds in which it waited for groups. It is
measured over whole steps, and only over those in which as many workers served as are wanted, so that nothing
is decided while a worker starts, drains or is replaced.

    share > grow_above     over grow_after_s     one worker more
    share < shrink_below   over shrink_after_s   one worker fewer
    a growth that did not lower the share        one worker fewer, and none more for retry_after_s
    the share was too high with one fewer        none fewer for retry_after_s

Growing soon and shrinking late, with a gap between the thresholds, is what Ray Serve (`upscale_delay_s`
30, `downscale_delay_s` 600) and Kubernetes' HorizontalPodAutoscaler (a stabilization window of 300 s,
downwards only) do against flapping. Those scale for a load from outside; here more workers may also be of no
use (a synchronous run waits for its longest answer, engines share cores), so growth is judged by its effect.
No clock, no Ray. Called by `cluster.control_room`.
"""

import sys
from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoscaleRule:
    """The constants. Shares are of the loop's seconds, in [0, 1]."""

    grow_above: float = 0.10
    shrink_below: float = 0.02
    grow_after_s: float = 30.0
    shrink_after_s: float = 300.0
    min_steps: int = 2
    """Whole steps that a share is measured over at least."""
    least_effect: float = 0.25
    """Part of the fall that N + 1 workers instead of N promise which a growth must bring to be kept."""
    retry_after_s: float = 1800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """A run at the time `now_s` (any clock that does not go back).

    `steps` counts the steps done; `loop_s` and `waited_s` are the seconds of the loop and those the learner
    waited for groups, in all, up to the end of the last of them. All three start again from a lower
    value when the learner was restarted.
    """

    now_s: float
    steps: int
    loop_s: float
    waited_s: float
    num_wanted: int
    num_serving: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """How many workers there should be from now on, and why."""

    num_workers: int
    reason: str


@dataclass(frozen=True, slots=True)
class _Growth:
    num_before: int
    share_before: float


class Autoscaler:
    """Keeps the learner's idle share low with between `low` and `high` workers, one step at a time.

    >>> scaler = Autoscaler(1, 4)
    >>> def at(second):
    ...     waits = {"loop_s": second, "waited_s": second / 2, "num_wanted": 1, "num_serving": 1}
    ...     return scaler.observe(Observation(now_s=second, steps=second // 10, **waits))
    >>> [at(second) for second in (0, 10, 20, 30)]
    [None, None, None, None]
    >>> at(40).reason
    'the learner waited 50% of the last 30 s (3 steps), more than 10%'
    """

    def __init__(self, low: int, high: int, rule: AutoscaleRule | None = None) -> None:
        self.low, self.high = low, high
        self.num_ups = self.num_downs = 0
        self._rule = rule or AutoscaleRule()
        self._window: deque[Observation] = deque()
        self._skipped_step = sys.maxsize
        self._growth: _Growth | None = None
        self._in_vain: dict[int, float] = {}
        """When a growth from so many workers was found to be of no use."""
        self._starved: dict[int, float] = {}
        """When so many workers were last found to be too few."""

    def observe(self, seen: Observation) -> Decision | None:
        """What to do now; None for nothing. A decision is taken to be carried out."""
        decision = self._out_of_bounds(seen) or self._by_share(seen)
        if decision is not None:
            self.num_ups += decision.num_workers > seen.num_wanted
            self.num_downs += decision.num_workers < seen.num_wanted
            self._start_again(seen)
        return decision

    def _out_of_bounds(self, seen: Observation) -> Decision | None:
        inside = min(max(seen.num_wanted, self.low), self.high)
        if inside == seen.num_wanted:
            return None
        return Decision(
            num_workers=inside, reason=f"{seen.num_wanted} is outside of {self.low} to {self.high}"
        )

    def _by_share(self, seen: Observation) -> Decision | None:
        if not self._is_new_step(seen):
            return None
        self._remember(seen)
        measured = self._measured(self._rule.grow_after_s)
        if measured is None:
            return None
        share, words = measured
        growth, self._growth = self._growth, None
        if growth is not None and not self._helped(growth, share):
            self._in_vain[growth.num_before] = seen.now_s
            return Decision(
                num_workers=growth.num_before,
                reason=f"{words}, {growth.share_before:.0%} before the last worker came: it was of no use",
            )
        if share > self._rule.grow_above:
            return self._grown(seen, share, words)
        return self._shrunk(seen)

    def _is_new_step(self, seen: Observation) -> bool:
        """Whether a whole step has ended since the last observation, all workers serving."""
        if seen.num_serving != seen.num_wanted:
            self._start_again(seen)
        last = self._window[-1] if self._window else None
        if last is not None and (seen.steps < last.steps or seen.loop_s < last.loop_s):
            self._start_again(seen)
        self._skipped_step = min(self._skipped_step, seen.steps)
        return seen.steps > (self._window[-1].steps if self._window else self._skipped_step)

    def _start_again(self, seen: Observation) -> None:
        """Measure from the end of the step under way on."""
        self._window.clear()
        self._skipped_step = seen.steps

    def _remember(self, seen: Observation) -> None:
        self._window.append(seen)
        while (
            len(self._window) > self._rule.min_steps + 1
            and seen.loop_s - self._window[1].loop_s >= self._rule.shrink_after_s
        ):
            self._window.popleft()

    def _measured(self, seconds: float) -> tuple[float, str] | None:
        """The idle share over the last `seconds` or a little more, in words too; None when the window is too
        short for it."""
        last = self._window[-1]
        for first in reversed(self._window):
            long_s, steps = last.loop_s - first.loop_s, last.steps - first.steps
            if long_s >= seconds and steps >= self._rule.min_steps:
                share = (last.waited_s - first.waited_s) / long_s
                return share, f"the learner waited {share:.0%} of the last {long_s:.0f} s ({steps} steps)"
        return None

    def _helped(self, growth: _Growth, share: float) -> bool:
        """A step is `1 / N` shorter by each further worker while the workers are what it waits for: the busy
        share 1 - s becomes (1 - s)(N + 1) / N, so s falls by (1 - s) / N."""
        promised = min(growth.share_before, (1 - growth.share_before) / growth.num_before)
        fallen = growth.share_before - share
        return share <= self._rule.grow_above or fallen >= self._rule.least_effect * promised

    def _grown(self, seen: Observation, share: float, words: str) -> Decision | None:
        self._starved[seen.num_wanted] = seen.now_s
        if seen.num_wanted == self.high or self._is_recent(self._in_vain.get(seen.num_wanted), seen):
            return None
        self._growth = _Growth(seen.num_wanted, share)
        return Decision(
            num_workers=seen.num_wanted + 1, reason=f"{words}, more than {self._rule.grow_above:.0%}"
        )

    def _shrunk(self, seen: Observation) -> Decision | None:
        measured = self._measured(self._rule.shrink_after_s)
        if measured is None or measured[0] >= self._rule.shrink_below or seen.num_wanted == self.low:
            return None
        if self._is_recent(self._starved.get(seen.num_wanted - 1), seen):
            return None
        return Decision(
            num_workers=seen.num_wanted - 1,
            reason=f"{measured[1]}, less than {self._rule.shrink_below:.0%}",
        )

    def _is_recent(self, when_s: float | None, seen: Observation) -> bool:
        return when_s is not None and seen.now_s - when_s < self._rule.retry_after_s
