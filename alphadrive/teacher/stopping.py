"""How a run is told to end: nothing new is sent, what is on the way is waited for and kept."""

import asyncio
import contextlib


class StoppedError(Exception):
    """Raised where a request would have been sent after the run was told to end. Ends one worker."""


class StopSignal:
    """Whether the run shall end, and why. The first reason given is the one that counts."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.error: Exception | None = None
        self._event = asyncio.Event()

    @property
    def is_set(self) -> bool:
        return self._event.is_set()

    def set(self, reason: str, error: Exception | None = None) -> None:
        """Tell the run to end; `error` is raised once what is on the way has arrived."""
        if not self.is_set:
            self.reason, self.error = reason, error
            self._event.set()

    def check(self) -> None:
        """Raise StoppedError once the run shall end."""
        if self.is_set:
            raise StoppedError(self.reason)

    async def sleep(self, seconds: float) -> None:
        """Sleep, or raise StoppedError as soon as the run shall end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds)):
                await self._event.wait()
        self.check()
