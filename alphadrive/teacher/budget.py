"""The spending cap: tokens as the server reports them, over all runs on one folder.

What a request costs is known only afterwards, so the largest seen so far is set aside for each request on
the way. Before the first answer there is no such figure, and requests go one at a time.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class CapReachedError(Exception):
    """The next request may take the total over the cap."""


class TokenBudget:
    """Sets tokens aside for requests. `limit` None sets no bound. The total can pass the limit only by how
    much a request costs more than the largest before it."""

    def __init__(self, limit: int | None, spent: int, largest: int) -> None:
        self._limit = limit
        self._spent = spent
        self._largest = largest
        self._set_aside = 0
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def reserve(self) -> AsyncIterator[None]:
        """Hold tokens for one request, waiting for those on the way to turn out cheaper. Raises
        CapReachedError when none is on the way and there is still too little left."""
        estimate = await self._take()
        try:
            yield
        finally:
            self._set_aside -= estimate
            async with self._changed:
                self._changed.notify_all()

    async def _take(self) -> int:
        async with self._changed:
            while True:
                if self._limit is None:
                    return 0
                left = self._limit - self._spent - self._set_aside
                estimate = self._largest or max(1, left)
                if estimate <= left:
                    self._set_aside += estimate
                    return estimate
                if not self._set_aside:
                    raise CapReachedError
                await self._changed.wait()

    def spend(self, num_tokens: int) -> None:
        """Count an answer's tokens."""
        self._spent += num_tokens
        self._largest = max(self._largest, num_tokens)
