"""An event loop whose clock is virtual: sleeping costs nothing, the order of events is exact.

For tests and the simulation, which run the shipped `cluster.loop` on it. A program that waits for
something that can never happen ends with DeadlockError instead of hanging.
"""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class DeadlockError(Exception):
    """Every task waits and no timer is set."""


class _SkippingSelector(selectors.SelectSelector):
    def __init__(self, clock: "VirtualTimeLoop") -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise DeadlockError("every task waits and no timer is set")
        self._clock.now_s += timeout
        return []


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop that jumps to the next timer instead of waiting for it. No input or output."""

    def __init__(self) -> None:
        self.now_s = 0.0
        super().__init__(_SkippingSelector(self))

    def time(self) -> float:
        return self.now_s


def run_virtual(main: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to its end in virtual time. Raises DeadlockError where it would hang."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
