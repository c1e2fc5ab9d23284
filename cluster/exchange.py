"""How the driver and an engine talk: many orders out and many groups back in one call.

    driver                                        engine's actor
    Line.order ──┐                                ┌─▶ draw ─┐
    Line.order ──┼─ exchange(orders, dropped) ──▶ Desk      ├─▶ ended
    futures ◀────┴─ receipts, groups ◀────────────┴── draw ─┘

A call of `exchange` waits until a group has ended, or until the next call comes; it brings all that have
ended. An engine is not called more often than every `period_s`: with few engines that is nothing beside the
time of a group, with many each call carries more, and the driver's calls in a second are bounded. The groups
of one reply are one object behind one reference (`cluster.batches`); the driver sees their receipts.

An order has a number of its own: one that was given up is dropped, and what comes back for it is ignored.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from alphadrive.errors import AlphaDriveError
from alphadrive.types import DrivingQuery, RolloutGroup
from cluster import remote
from cluster.batches import BatchItem
from cluster.headers import GroupReceipt
from rollout.settings import Sampling

Reply = tuple[int, GroupReceipt | AlphaDriveError]
"""The number of an order, and how it ended."""
Drawn = tuple[GroupReceipt, BatchItem]


class Order(NamedTuple):
    """A group to draw."""

    number: int
    ticket: int
    query: DrivingQuery
    sampling: Sampling


class Desk:
    """The engine's side: draws what is ordered, all at once, and keeps what has ended until it is asked."""

    def __init__(
        self, draw: Callable[[int, DrivingQuery, Sampling], Awaitable[tuple[GroupReceipt, RolloutGroup]]]
    ) -> None:
        self._draw = draw
        self._drawing: dict[int, asyncio.Task[None]] = {}
        self._replies: list[Reply] = []
        self._groups: list[RolloutGroup] = []
        self._failure: Exception | None = None
        self._num_exchanges = 0
        self._changed = asyncio.Event()

    async def exchange(
        self, orders: Sequence[Order], dropped: Sequence[int]
    ) -> tuple[list[Reply], tuple[RolloutGroup, ...]]:
        """Begin with `orders`, give up those numbered `dropped`, wait until something has ended.

        Returns the replies, and the groups of those that have a receipt, in the same order. Returns with
        none when another exchange begins or nothing is left to draw. Raises what an engine must not raise.
        """
        for order in orders:
            self._drawing[order.number] = asyncio.get_running_loop().create_task(self._carry_out(order))
        for number in dropped:
            if (task := self._drawing.pop(number, None)) is not None:
                task.cancel()
        self._num_exchanges += 1
        number = self._num_exchanges
        self._changed.set()
        while not self._replies and self._drawing and number == self._num_exchanges:
            self._changed.clear()
            await self._changed.wait()
        if self._failure is not None:
            raise self._failure
        replies, self._replies = self._replies, []
        groups, self._groups = self._groups, []
        return replies, tuple(groups)

    async def _carry_out(self, order: Order) -> None:
        try:
            receipt, group = await self._draw(order.ticket, order.query, order.sampling)
            self._replies.append((order.number, receipt))
            self._groups.append(group)
        except AlphaDriveError as error:
            self._replies.append((order.number, error))
        except Exception as error:
            self._failure = error
        self._drawing.pop(order.number, None)
        self._changed.set()


class Line:
    """The driver's side, one for each engine. An order is given up after `timeout_s`."""

    def __init__(self, actor: Any, timeout_s: float, period_s: Callable[[], float]) -> None:
        self._actor, self._timeout_s, self._period_s = actor, timeout_s, period_s
        self._numbers = itertools.count()
        self._orders: list[Order] = []
        self._dropped: list[int] = []
        self._awaited: dict[int, tuple[asyncio.Future[Drawn], float]] = {}
        """Answers and their deadlines, the earliest first."""
        self._open: set[asyncio.Task[None]] = set()
        self._last_s = float("-inf")
        self._timer: asyncio.Handle | None = None
        self._alarm: asyncio.Handle | None = None
        self._is_closed = False

    def order(self, ticket: int, query: DrivingQuery, sampling: Sampling) -> asyncio.Future[Drawn]:
        """Have a group drawn. The future gives it, or raises what the engine raised, TimeoutError, or
        ActorGoneError; cancel it to give the order up."""
        loop = asyncio.get_running_loop()
        number = next(self._numbers)
        answer: asyncio.Future[Drawn] = loop.create_future()
        deadline_s = loop.time() + self._timeout_s
        self._awaited[number] = (answer, deadline_s)
        self._orders.append(Order(number, ticket, query, sampling))
        if self._alarm is None:
            self._alarm = loop.call_at(deadline_s, self._give_up_late)

        def settle(_: asyncio.Future[Drawn]) -> None:
            if self._awaited.pop(number, None) is not None:
                self._dropped.append(number)
                self._call_soon()

        answer.add_done_callback(settle)
        self._call_soon()
        return answer

    def flush(self) -> None:
        """Send what was ordered now: the engine serves no longer in a moment."""
        if self._orders and self._timer is not None:
            self._timer.cancel()
            self._call()

    def close(self) -> None:
        """The engine is gone: nothing more is sent."""
        self._is_closed = True
        for handle in (self._timer, self._alarm):
            if handle is not None:
                handle.cancel()

    def _give_up_late(self) -> None:
        loop = asyncio.get_running_loop()
        self._alarm = None
        for answer, deadline_s in list(self._awaited.values()):
            if deadline_s > loop.time():
                self._alarm = loop.call_at(deadline_s, self._give_up_late)
                return
            if not answer.done():
                answer.set_exception(TimeoutError())

    def _call_soon(self) -> None:
        if self._timer is not None or self._is_closed:
            return
        loop = asyncio.get_running_loop()
        self._timer = loop.call_at(max(loop.time(), self._last_s + self._period_s()), self._call)

    def _call(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer, self._last_s = None, loop.time()
        orders, self._orders = self._orders, []
        dropped, self._dropped = self._dropped, []
        replies, groups = self._actor.exchange.options(num_returns=2).remote(orders, dropped)
        task = loop.create_task(self._hear(replies, groups))
        self._open.add(task)
        task.add_done_callback(self._heard)

    async def _hear(self, replies: Any, groups: Any) -> None:
        index = 0
        try:
            for number, ended in await remote.fetch(replies):
                answer, _ = self._awaited.pop(number, (None, 0.0))
                if isinstance(ended, GroupReceipt):
                    if answer is not None and not answer.done():
                        answer.set_result((ended, BatchItem(groups, index)))
                    index += 1
                elif answer is not None and not answer.done():
                    answer.set_exception(ended)
        except Exception as error:
            remote.forget(groups)
            awaited, self._awaited = self._awaited, {}
            for answer, _ in awaited.values():
                if not answer.done():
                    answer.set_exception(error)

    def _heard(self, task: asyncio.Task[None]) -> None:
        self._open.discard(task)
        if self._awaited and not self._open and not task.cancelled():
            self._call_soon()
