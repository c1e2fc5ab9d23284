"""No run stands still unnoticed.

    Watchdog   in the event loop: nothing was done for a while ──▶ StalledError, which ends the run in order
    Deadman    a thread: the event loop itself stands still    ──▶ the process ends with exit code 1

What counts as done is what a run is for: groups scored, queries ended, steps, answers of an evaluation,
checkpoints. Every single wait has a shorter bound of its own, so these are for what nobody thought of.
"""

import asyncio
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar

from alphadrive.config import Config
from alphadrive.errors import LearnerDiedError, StalledError

POLL_S = 5.0
STALL_S = 600.0
EXIT_CODE = 1
NOTHING_DONE = "no group scored, no query ended, no step, no evaluation, no checkpoint"

Result = TypeVar("Result")


def stall_limit_s(config: Config) -> float:
    """How long nothing may be done: ten minutes, or twice the longest single wait that the user allows."""
    return max(STALL_S, 2 * config.learner.hang_timeout_s, 2 * config.rollout.request_timeout_s)


async def watch_progress(
    limit_s: float,
    done: Callable[[], object],
    describe: Callable[[], str],
    poll_s: float = POLL_S,
    what: str = NOTHING_DONE,
) -> NoReturn:
    """Raises StalledError when `done()` gives the same for `limit_s`; `describe()` says what waits for what,
    `what` is missing.

    Time is counted in polls: while the process is stopped or the event loop is busy, none passes.
    """
    before, num_polls = done(), 0
    while num_polls * poll_s < limit_s:
        await asyncio.sleep(poll_s)
        now = done()
        num_polls = num_polls + 1 if now == before else 0
        before = now
    raise StalledError(
        f"nothing was done for {limit_s:.0f} s: {what}. {describe()}. Go on from the last checkpoint with "
        "--resume"
    )


async def guarded(work: Coroutine[Any, Any, Result], *guards: Coroutine[Any, Any, Any]) -> Result:
    """The result of `work`; ended early by a guard that raises. Raises the first failure, LearnerDiedError
    before others, which it may have caused."""
    try:
        async with asyncio.TaskGroup() as tasks:
            watching = [tasks.create_task(guard) for guard in guards]
            try:
                return await work
            finally:
                for guard in watching:
                    guard.cancel()
    except BaseExceptionGroup as failures:
        deaths, _ = failures.split(LearnerDiedError)
        raise (deaths or failures).exceptions[0] from None


class Deadman:
    """Ends the process when its event loop does not turn for `limit_s`. Use as a context manager, and run
    `pulse` in the loop; from entering to the first pulse, and from the last one to leaving, counts too. What
    may take longer before the loop turns calls `touch` whenever it has got further.

    `report` is told in what the main thread stands; it has a few seconds.
    """

    def __init__(self, limit_s: float, report: Callable[[str], None]) -> None:
        self._limit_s, self._report = limit_s, report
        self._alive_s = time.monotonic()
        self._is_over = threading.Event()
        self._main = threading.get_ident()
        self._thread = threading.Thread(target=self._watch, name="deadman", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()

    def touch(self) -> None:
        """Show that something was done."""
        self._alive_s = time.monotonic()

    async def pulse(self) -> NoReturn:
        """Show that the event loop turns."""
        while True:
            self.touch()
            await asyncio.sleep(POLL_S)

    def _watch(self) -> None:
        seen_s, num_waits = self._alive_s, 0
        while not self._is_over.wait(POLL_S):
            num_waits = num_waits + 1 if seen_s == self._alive_s else 0
            seen_s = self._alive_s
            if num_waits * POLL_S >= self._limit_s:
                self._end()

    def _end(self) -> None:
        frame = sys._current_frames().get(self._main)
        stack = "".join(traceback.format_stack(frame)) if frame is not None else ""
        words = f"StalledError: the driver stands still for {self._limit_s:.0f} s, in\n{stack}"
        print(f"alphadrive: {words}", file=sys.stderr, flush=True)
        # What blocks the driver, a file system perhaps, may block the report, too.
        reporting = threading.Thread(target=self._report, args=(words,), daemon=True)
        reporting.start()
        reporting.join(POLL_S)
        os._exit(EXIT_CODE)
