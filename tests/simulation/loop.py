"""The event loop of the simulation: virtual time, and sets of tasks in an order that a seed decides."""

import asyncio
import contextvars
import functools
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from simulation.actors import CURRENT
from simulation.replacing import replaced

from cluster.virtual_time import VirtualTimeLoop

MAX_TURNS = 2_000_000
EPOCH_S = 1_000_000.0


class OrderedTask(asyncio.Task):  # type: ignore[type-arg]
    """A task whose place in a set does not depend on where it lies in memory: asyncio keeps tasks in sets,
    and cancels them in their order."""

    count = 0

    def __init__(self, *args: Any, context: contextvars.Context | None = None, **kwargs: Any) -> None:
        OrderedTask.count += 1
        self.number = OrderedTask.count
        self.owner = CURRENT.get(None) if context is None else context.get(CURRENT)
        """The process whose code this is."""
        super().__init__(*args, context=context, **kwargs)

    def __hash__(self) -> int:
        return self.number


class LivelockError(Exception):
    """The program runs on and on."""


class SimulationLoop(VirtualTimeLoop):
    """Virtual time that starts at `start_s`; signal handlers are kept, to be called as signals would."""

    def __init__(self, start_s: float, after_turn: Callable[[], None]) -> None:
        self.handlers: dict[int, Callable[..., object]] = {}
        self._turns = 0
        self._watch = after_turn
        super().__init__(self._after_turn)
        self.now_s = start_s
        self.set_task_factory(lambda loop, coro, **kwargs: OrderedTask(coro, loop=loop, **kwargs))

    def add_signal_handler(self, number: int, callback: Callable[..., object], *args: Any) -> None:
        self.handlers[number] = functools.partial(callback, *args)

    def remove_signal_handler(self, number: int) -> bool:
        return self.handlers.pop(number, None) is not None

    def signalled(self) -> None:
        """SIGTERM, where anybody listens."""
        handler = self.handlers.get(signal.SIGTERM)
        if handler is not None:
            handler()

    def _after_turn(self) -> None:
        self._turns += 1
        if self._turns > MAX_TURNS:
            raise LivelockError(f"no end after {MAX_TURNS} turns of the event loop")
        self._watch()


@contextmanager
def clock_of(now: Callable[[], float]) -> Iterator[None]:
    """The clocks of the module `time` show virtual time, while in the block."""

    def show() -> float:
        return now() + EPOCH_S

    with replaced([(time, "monotonic", show), (time, "time", show), (time, "perf_counter", show)]):
        yield
