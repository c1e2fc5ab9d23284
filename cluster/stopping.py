"""Ctrl-C and SIGTERM: the first asks, the second (or the end of the grace time) insists."""

import asyncio
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)

REPEAT_S = 0.5
"""Signals closer together than this are one: `timeout` and terminals signal a process and its group."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """Stopped by SIGTERM. Ends a run as Ctrl-C does."""


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM raise Terminated, so that what was started is ended, where nothing else handles it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def signals_deferred() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait until the block has ended: for calls that must not be cut in half.

    The handlers are then as before, whatever the block has set (Ray sets one for SIGTERM).
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        came.append(number)

    before = {number: signal.signal(number, remember) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt if came[0] == signal.SIGINT else Terminated


class StopSignals:
    """Turns signals into an orderly end, while in a `with` block inside the running event loop.

    Until `on_stop` is set (start-up) a signal cancels the task at once. Afterwards the first signal
    calls it: the step under way ends and a checkpoint is written; a second one, or `grace_s`
    later, cancels.
    """

    def __init__(self, grace_s: float) -> None:
        self.was_asked = False
        self.reason = "stopped"
        self._grace_s = grace_s
        self._asked_s = 0.0
        self._is_terminated = False
        self.on_stop: Callable[[], None] | None = None
        self._task: asyncio.Task[object] | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopSignals":
        self._task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            self._before[number] = signal.getsignal(number)
            loop.add_signal_handler(number, self._receive, number)
        return self

    def __exit__(self, *exc_info: object) -> None:
        loop = asyncio.get_running_loop()
        if self._deadline is not None:
            self._deadline.cancel()
        for number in SIGNALS:
            loop.remove_signal_handler(number)
            signal.signal(number, _restorable(self._before[number]))

    def ask(self, reason: str) -> None:
        """Ask for an end, as a signal does; the first reason is kept."""
        assert self._task is not None
        if not self.was_asked:
            self.reason = reason
        now_s = asyncio.get_running_loop().time()
        if self.was_asked and now_s - self._asked_s < REPEAT_S:
            return
        self._asked_s = now_s
        if self.was_asked or self.on_stop is None:
            logger.warning("stopping now")
            self.was_asked = True
            self._task.cancel()
            return
        self.was_asked = True
        logger.warning("stopping after the step under way; once more to stop now")
        self._deadline = asyncio.get_running_loop().call_later(self._grace_s, self._insist)
        self.on_stop()

    def interrupt(self) -> KeyboardInterrupt:
        """What to raise when all is closed."""
        return (Terminated if self._is_terminated else KeyboardInterrupt)(self.reason)

    def _receive(self, number: signal.Signals) -> None:
        if not self.was_asked:
            self._is_terminated = number == signal.SIGTERM
        self.ask(f"stopped by {'SIGTERM' if number == signal.SIGTERM else 'Ctrl-C'}")

    def _insist(self) -> None:
        assert self._task is not None
        logger.warning("the step and its checkpoint took longer than checkpoint.stop_grace_s; stopping now")
        self._task.cancel()


def _restorable(handler: object) -> Callable[[int, FrameType | None], object] | signal.Handlers:
    return handler if callable(handler) or isinstance(handler, signal.Handlers) else signal.SIG_DFL


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated("stopped by SIGTERM")
