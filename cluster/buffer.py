"""Slots and tickets: what bounds the policy lag by construction.

A slot is the right to have one group under way; a ticket numbers the groups in the order in which
they were started. A slot is held from `acquire` until the group's ticket is voided or, after its step
and any weight sync, released. `take` hands out the oldest tickets that are not void, in order:

    acquire ──▶ (drawn, scored) ──▶ put ──▶ take ──▶ (step, publish) ──▶ release
        └────────── void: skipped or dead-lettered, the slot is free at once

Why the lag is bounded: when a ticket is given, at most `num_slots - 1` older ones hold slots, and every
group trained before it is one of those. With `num_slots = (lag + 1) * groups_per_step` it is in one of
the next `lag + 1` steps. Called by `cluster.loop`, from one event loop; nothing here blocks a thread.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from itertools import islice

from alphadrive.types import GroupHeader


class SlotBuffer:
    """A bounded buffer of groups, ordered by ticket.

    `num_groups` is how many groups the run will train in all: no more tickets than that are out or
    used at any time, so that a run that ends normally leaves no group behind.
    """

    def __init__(self, num_slots: int, num_groups: int, first_ticket: int = 0) -> None:
        self.num_slots = num_slots
        self.next_ticket = first_ticket
        self._tickets_left = num_groups
        self._waiting: deque[asyncio.Future[int | None]] = deque()
        self._pending: dict[int, GroupHeader | None] = {}
        self._taken: set[int] = set()
        self._unsettled: deque[int] = deque()
        """Tickets whose place is not certain yet, oldest first; void ones among them."""
        self._settled: list[tuple[int, GroupHeader]] = []
        """Those that are certain since `settled` was called."""
        self._num_taken = self._num_settled = 0
        self._is_closed = False
        self._is_stopped = False
        self._changed = asyncio.Event()
        self._waited_s = 0.0
        self._waits_since_s: float | None = None

    @property
    def waited_s(self) -> float:
        """Seconds that `take` has waited in all, by the event loop's clock, a wait under way included: for
        so long the learner was idle."""
        if self._waits_since_s is None:
            return self._waited_s
        return self._waited_s + asyncio.get_running_loop().time() - self._waits_since_s

    @property
    def num_held(self) -> int:
        """Slots in use."""
        return len(self._pending) + len(self._taken)

    @property
    def num_ready(self) -> int:
        """Scored groups that wait to be trained."""
        return sum(header is not None for header in self._pending.values())

    async def acquire(self) -> int | None:
        """Wait for a free slot and give its ticket; None once no more groups are to be started."""
        waiter: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        self._hand_out()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and (ticket := waiter.result()) is not None:
                self.void(ticket)
            raise

    def put(self, header: GroupHeader) -> None:
        """Add a scored group. Raises ValueError for a ticket that is not out."""
        if header.ticket not in self._pending or self._pending[header.ticket] is not None:
            raise ValueError(f"ticket {header.ticket} is not out: void, taken or put before")
        self._pending[header.ticket] = header
        self._changed.set()

    def void(self, ticket: int) -> None:
        """Give up a ticket before it is trained; its slot may be used again at once."""
        if ticket not in self._pending:
            raise ValueError(f"ticket {ticket} is not out: void, taken or never given")
        del self._pending[ticket]
        self._tickets_left += 1
        self._hand_out()
        self._changed.set()

    async def take(self, num_groups: int) -> list[GroupHeader]:
        """Wait for the groups of the `num_groups` oldest tickets and take them, oldest first.

        Fewer, at last none, when the buffer is closed and no more are out. None after `stop`.
        """
        while True:
            if self._is_stopped:
                return []
            self._settle()
            num_ready = self._num_settled - self._num_taken
            if num_ready >= num_groups or (self._is_closed and num_ready == len(self._pending)):
                oldest = list(islice(self._pending.values(), num_groups))
                ready = [header for header in oldest if header is not None]
                for header in ready:
                    del self._pending[header.ticket]
                    self._taken.add(header.ticket)
                self._num_taken += len(ready)
                return ready
            self._changed.clear()
            await self._wait_for_change()

    def settled(self) -> list[tuple[int, GroupHeader]]:
        """Groups whose place in the order of training (from 0) is certain since the last call: they are
        scored, and no older ticket is out any more."""
        self._settle()
        settled, self._settled = self._settled, []
        return [(place, header) for place, header in settled if place >= self._num_taken]

    def release(self, headers: Sequence[GroupHeader]) -> None:
        """Free the slots of trained groups, after the weights they led to are published."""
        for header in headers:
            self._taken.remove(header.ticket)
        self._hand_out()

    def close(self) -> None:
        """Give no more tickets; groups already under way are still taken."""
        self._is_closed = True
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
        self._changed.set()

    def stop(self) -> None:
        """Give no more tickets and hand out no more groups; a step under way may still end."""
        self._is_stopped = True
        self.close()

    def _settle(self) -> None:
        while self._unsettled:
            ticket = self._unsettled[0]
            if ticket in self._pending:
                header = self._pending[ticket]
                if header is None:
                    return
                self._settled.append((self._num_settled, header))
                self._num_settled += 1
            self._unsettled.popleft()

    async def _wait_for_change(self) -> None:
        self._waits_since_s = asyncio.get_running_loop().time()
        try:
            await self._changed.wait()
        finally:
            self._waited_s = self.waited_s
            self._waits_since_s = None

    def _hand_out(self) -> None:
        while self._waiting and (self._is_closed or (self.num_held < self.num_slots and self._tickets_left)):
            waiter = self._waiting.popleft()
            if waiter.done():
                continue
            if self._is_closed:
                waiter.set_result(None)
                continue
            waiter.set_result(self.next_ticket)
            self._pending[self.next_ticket] = None
            self._unsettled.append(self.next_ticket)
            self.next_ticket += 1
            self._tickets_left -= 1
