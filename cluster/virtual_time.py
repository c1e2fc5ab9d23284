"""An event loop whose clock is virtual: sleeping costs nothing, the order of events is exact.

For tests and the simulation, which run the shipped `cluster.loop` on it. A program that waits for
something that can never happen ends with DeadlockError instead of hanging.
"""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class DeadlockError(Exception):
    """Every task waits and no timer is set."""


class _SkippingSelector(selectors.SelectSelector):
    def __init__(self, clock: "VirtualTimeLoop") -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[Any]:
        if self._clock.after_turn is not None:
            self._clock.after_turn()
        if timeout is None:
            raise DeadlockError("every task waits and no timer is set")
        self._clock.now_s += timeout
        return []


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop that jumps to the next timer instead of waiting for it. No input or output, no threads.

    `after_turn` is called whenever everything that was ready has run; what it raises ends the loop.
    """

    def __init__(self, after_turn: Callable[[], None] | None = None) -> None:
        self.now_s = 0.0
        self.after_turn = after_turn
        super().__init__(_SkippingSelector(self))

    def time(self) -> float:
        return self.now_s

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """Run `func` here and now: a thread would have no place in the order of events."""
        future: asyncio.Future[Any] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future


def run_virtual(main: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to its end in virtual time. Raises DeadlockError where it would hang."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
