"""The spending cap: tokens as the server reports them, over all runs on one folder.

What a request costs is known only afterwards, so the longest prompt seen so far and the longest answer
allowed are set aside for each request on the way. Before the first answer there is no such prompt, and
requests go one at a time.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class CapReachedError(Exception):
    """The next request may take the total over the cap."""


class TokenBudget:
    """Sets tokens aside for requests. `limit` None sets no bound. The total passes the limit only by as much
    as prompts turn out longer than the longest before them."""

    def __init__(self, limit: int | None, *, spent: int, longest_prompt: int, max_answer_tokens: int) -> None:
        self._limit = limit
        self._spent = spent
        self._longest_prompt = longest_prompt
        self._max_answer_tokens = max_answer_tokens
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
                estimate = max(1, left)
                if self._longest_prompt:
                    estimate = self._longest_prompt + self._max_answer_tokens
                if estimate <= left:
                    self._set_aside += estimate
                    return estimate
                if not self._set_aside:
                    raise CapReachedError
                await self._changed.wait()

    def spend(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Count an answer's tokens."""
        self._spent += prompt_tokens + completion_tokens
        self._longest_prompt = max(self._longest_prompt, prompt_tokens)
