"""The way to the server: one request in, one answer out, paid for once.

    answer() ─▶ cache? ─▶ throttle ─▶ budget ─▶ POST /chat/completions ─▶ cache (fsync) ─▶ Answer
                              ▲                      │
                              └──── backoff ◀── a failure that may pass, up to MAX_ATTEMPTS

Retries are made here and not by the client library, so that all workers share one pause.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self
from weakref import WeakValueDictionary

from openai import AsyncOpenAI

from alphadrive.errors import TeacherError
from alphadrive.teacher.answer_cache import AnswerCache
from alphadrive.teacher.api_key import ApiKey
from alphadrive.teacher.budget import CapReachedError, TokenBudget
from alphadrive.teacher.failures import FAILURES, Fatal, InvalidReplyError, Refused, Retry, failure_of
from alphadrive.teacher.request import Answer, TeacherRequest
from alphadrive.teacher.settings import DistillSettings
from alphadrive.teacher.stopping import StoppedError, StopSignal
from alphadrive.teacher.throttle import MAX_PAUSE_S, Throttle

MAX_ATTEMPTS = 6
MAX_UNANSWERED_IN_A_ROW = 8
CAPPED = "capped"
_MAX_BACKOFF_S = 30.0


class UnansweredError(Exception):
    """A request that got no answer in all its attempts, or that the server refuses. Ends one row."""


class Endpoint:
    """Use as an async context manager. Safe to share between workers of one event loop."""

    def __init__(
        self,
        settings: DistillSettings,
        key: ApiKey,
        cache: AnswerCache,
        stop: StopSignal,
        say: Callable[[str], None],
        backoff_s: float = 1.0,
    ) -> None:
        """`backoff_s` is the wait after a first failure, doubled after each; `say` gets what a user should
        know while it happens."""
        for name in ("openai", "httpx2", "httpcore2"):
            # They print a line a request, and in detail what was sent.
            logging.getLogger(name).setLevel(logging.WARNING)
        self.num_sent = 0
        self._settings = settings
        self._key = key
        self._cache = cache
        self._stop = stop
        self._backoff_s = backoff_s
        self._throttle = Throttle(settings.concurrency, stop, say)
        self._budget = TokenBudget(
            settings.max_tokens_total,
            spent=cache.num_tokens,
            longest_prompt=cache.longest_prompt,
            max_answer_tokens=settings.max_answer_tokens,
        )
        self._same: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._unanswered_in_a_row = 0
        self._client = AsyncOpenAI(
            base_url=settings.base_url,
            api_key=key.for_header(),
            timeout=settings.request_timeout_s,
            max_retries=0,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()

    async def answer(self, request: TeacherRequest) -> Answer:
        """The answer to a request, from the cache when it was ever given.

        Raises UnansweredError when there is none to be had, StoppedError when the run shall end; what
        ends the run (a refused key, the spending cap) is told to its StopSignal.
        """
        key = request.key
        # Two rows may ask the same at once.
        async with self._same.setdefault(key, asyncio.Lock()):
            cached = self._cache.get(key)
            if cached is not None:
                return cached
            try:
                answer = await self._ask(key, request)
            except UnansweredError as error:
                self._count_unanswered(error)
                raise
            self._unanswered_in_a_row = 0
            return answer

    async def _ask(self, key: str, request: TeacherRequest) -> Answer:
        for attempt in range(1, MAX_ATTEMPTS + 1):
            found = await self._attempt(key, request)
            if isinstance(found, Answer):
                return found
            if isinstance(found, Fatal):
                raise self._failed(found.problem)
            if isinstance(found, Refused) or attempt == MAX_ATTEMPTS:
                raise UnansweredError(found.problem)
            await self._wait(found, attempt)
        raise AssertionError("unreachable")

    async def _attempt(self, key: str, request: TeacherRequest) -> Answer | Retry | Refused | Fatal:
        """One attempt, sent when there is a place and tokens for it. Raises StoppedError."""
        try:
            async with self._throttle.slot(), self._budget.reserve():
                # The wait for the budget may have been long.
                self._stop.check()
                return await self._send(key, request)
        except FAILURES as error:
            return failure_of(error, self._key)
        except CapReachedError:
            self._stop.set(CAPPED)
            raise StoppedError(CAPPED) from None
        except TeacherError as error:
            self._stop.set("failed", error)
            raise StoppedError("failed") from None

    async def _wait(self, failure: Retry, attempt: int) -> None:
        """Wait after a failure that may pass: this worker alone, or all where the server asks for it."""
        backoff_s = min(_MAX_BACKOFF_S, self._backoff_s * 2.0 ** (attempt - 1)) * random.uniform(0.5, 1.0)
        if not failure.is_rate_limit:
            await self._stop.sleep(backoff_s)
            return
        pause_s = max(backoff_s, failure.retry_after_s or 0.0)
        if pause_s > MAX_PAUSE_S:
            raise self._failed(f"asks to wait {pause_s:.0f} s; run the same command again then")
        self._throttle.slow_down(pause_s)

    async def _send(self, key: str, request: TeacherRequest) -> Answer:
        """One attempt, with one deadline for all of it: the client's own timeout is for each read."""
        self.num_sent += 1
        async with asyncio.timeout(self._settings.request_timeout_s):
            reply = await self._client.chat.completions.create(**request.body())
        answer = self._answer_in(reply)
        self._cache.add(key, request, answer)
        self._budget.spend(answer.prompt_tokens or 0, answer.completion_tokens or 0)
        self._throttle.speed_up()
        if self._settings.max_tokens_total is not None and answer.prompt_tokens is None:
            raise TeacherError(
                f"{self._settings.base_url}: reports no token counts (usage), so --max-tokens-total cannot "
                "be kept; leave the option out"
            )
        return answer

    def _answer_in(self, reply: Any) -> Answer:
        """The answer in a reply, whose fields the client does not check. Raises InvalidReplyError."""
        try:
            choice = reply.choices[0]
            text, finish_reason = choice.message.content, choice.finish_reason
        except (AttributeError, IndexError, TypeError):
            raise InvalidReplyError("no choices with a message in it") from None
        if not isinstance(text, str | None):
            raise InvalidReplyError(f"the message's content is a {type(text).__name__}, expected a text")
        usage = getattr(reply, "usage", None)
        counts = [getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
        if not all(isinstance(count, int) and count >= 0 for count in counts):
            counts = [None, None]
        return Answer(
            text=self._key.redact(text or ""),
            finish_reason=self._key.redact(str(finish_reason)),
            prompt_tokens=counts[0],
            completion_tokens=counts[1],
        )

    def _count_unanswered(self, error: UnansweredError) -> None:
        self._unanswered_in_a_row += 1
        if self._unanswered_in_a_row >= MAX_UNANSWERED_IN_A_ROW:
            message = (
                f"{self._settings.base_url}: {self._unanswered_in_a_row} requests in a row got no answer, "
                f"the last: {error}; see that the server is well, then run the same command again"
            )
            self._stop.set("failed", TeacherError(message))

    def _failed(self, problem: str) -> StoppedError:
        """End the run with a problem of the endpoint; the error to raise here."""
        self._stop.set("failed", TeacherError(f"{self._settings.base_url}: {problem}"))
        return StoppedError("failed")
