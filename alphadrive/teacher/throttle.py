"""How many requests are on the way, and when the next may start: one for all workers.

A server's "too many requests" halves the number and stops all of them for as long as the server asks;
every answer after that gives a little back (additive increase, multiplicative decrease, as TCP does).
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from alphadrive.teacher.stopping import StopSignal

MAX_PAUSE_S = 600.0
_SPREAD_S = 0.5


class Throttle:
    """At most `concurrency` requests at once, fewer after a refusal. `say` gets one line for each pause."""

    def __init__(self, concurrency: int, stop: StopSignal, say: Callable[[str], None]) -> None:
        self.limit = float(concurrency)
        self._concurrency = concurrency
        self._stop = stop
        self._say = say
        self._num_on_the_way = 0
        self._resume_at_s = 0.0
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a place and for the end of a pause, and hold the place. Raises StoppedError."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._num_on_the_way < int(self.limit))
            self._num_on_the_way += 1
        try:
            while (pause_s := self._resume_at_s - asyncio.get_running_loop().time()) > 0:
                await self._stop.sleep(pause_s + random.uniform(0, min(_SPREAD_S, pause_s)))
            self._stop.check()
            yield
        finally:
            self._num_on_the_way -= 1
            async with self._changed:
                self._changed.notify_all()

    def slow_down(self, pause_s: float) -> None:
        """Let nobody start for `pause_s`. Refusals that come in during a pause belong to it: the number of
        requests is halved once."""
        now = asyncio.get_running_loop().time()
        if now >= self._resume_at_s:
            self.limit = max(1.0, self.limit / 2)
            self._say(
                f"the endpoint asks to slow down: all requests wait {pause_s:.1f} s, "
                f"then at most {int(self.limit)} at once"
            )
        self._resume_at_s = max(self._resume_at_s, now + pause_s)

    def speed_up(self) -> None:
        """An answer came: after `limit` of them, one more request at once."""
        self.limit = min(float(self._concurrency), self.limit + 1 / self.limit)
