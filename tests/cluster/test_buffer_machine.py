"""The slot buffer under any order of calls, against a model of it in plain lists."""

import asyncio

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from alphadrive.types import GroupHeader, WeightVersion
from cluster.buffer import SlotBuffer
from cluster.virtual_time import VirtualTimeLoop


def header(ticket):
    return GroupHeader(
        ticket=ticket,
        query_id="q",
        row=ticket,
        weight_version=WeightVersion(0, 0),
        reward_mean=0.0,
        reward_std=1.0,
        reward_min=0.0,
        reward_max=1.0,
        term_means={},
        term_stds={},
        num_tokens=1,
        scored=None,
    )


class BufferMachine(RuleBasedStateMachine):
    """`out` are tickets under way or ready, oldest first; `waiting` are tasks that want a ticket."""

    @initialize(
        num_slots=st.integers(1, 5), num_groups=st.integers(0, 12), first_ticket=st.sampled_from([0, 40])
    )
    def start(self, num_slots, num_groups, first_ticket):
        self.loop = VirtualTimeLoop()
        self.buffer = SlotBuffer(num_slots, num_groups, first_ticket)
        self.num_slots, self.left, self.next_ticket = num_slots, num_groups, first_ticket
        self.out, self.ready, self.taken = [], set(), []
        self.waiting, self.taking, self.wanted = [], None, 0
        self.is_closed = self.is_stopped = False
        self.order, self.told = [], 0

    def teardown(self):
        for task in [
            *getattr(self, "waiting", []),
            *([self.taking] if getattr(self, "taking", None) else []),
        ]:
            task.cancel()
        if hasattr(self, "loop"):
            self.turn()
            self.loop.close()

    def turn(self):
        async def a_few_turns():
            for _ in range(6):
                await asyncio.sleep(0)

        self.loop.run_until_complete(a_few_turns())

    def settle(self):
        """Let the buffer act, and the model: hand out tickets, then give the taker what is due."""
        self.turn()
        while self.waiting and (self.is_closed or self.may_start()):
            task = self.waiting.pop(0)
            assert task.done(), "a ticket was due"
            if self.is_closed:
                assert task.result() is None
                continue
            assert task.result() == self.next_ticket
            self.out.append(self.next_ticket)
            self.next_ticket += 1
            self.left -= 1
        assert not any(task.done() for task in self.waiting), "a ticket was given that was not due"
        self.settle_taker()

    def may_start(self):
        return len(self.out) + len(self.taken) < self.num_slots and self.left > 0

    def settle_taker(self):
        if self.taking is None:
            return
        oldest = self.out[: self.wanted]
        are_ready = all(ticket in self.ready for ticket in oldest)
        if self.is_stopped:
            due = []
        elif are_ready and (len(oldest) == self.wanted or self.is_closed):
            due = oldest
        else:
            assert not self.taking.done(), "groups were handed out too early"
            return
        assert [each.ticket for each in self.taking.result()] == due
        self.taking = None
        del self.out[: len(due)]
        self.ready -= set(due)
        self.taken += due
        self.order += due

    @rule()
    def acquire(self):
        self.waiting.append(self.loop.create_task(self.buffer.acquire()))
        self.settle()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def give_up_waiting(self, data):
        task = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        task.cancel()
        self.settle()
        assert task.cancelled()

    @precondition(lambda self: self.waiting and set(self.out) - self.ready)
    @rule(data=st.data())
    def give_up_the_moment_a_ticket_comes(self, data):
        """A void gives the oldest waiter a ticket and it is cancelled before it runs: the ticket is void."""
        gives = not self.is_closed and self.left + 1 > 0 and len(self.out) + len(self.taken) <= self.num_slots
        ticket = data.draw(st.sampled_from(sorted(set(self.out) - self.ready)))
        self.buffer.void(ticket)
        self.out.remove(ticket)
        self.left += 1
        task = self.waiting.pop(0)
        task.cancel()
        if gives:
            self.next_ticket += 1
        self.settle()
        assert task.cancelled()

    @precondition(lambda self: set(self.out) - self.ready)
    @rule(data=st.data())
    def put(self, data):
        ticket = data.draw(st.sampled_from(sorted(set(self.out) - self.ready)))
        self.buffer.put(header(ticket))
        self.ready.add(ticket)
        self.settle()

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def void(self, data):
        ticket = data.draw(st.sampled_from(sorted(set(self.out) - self.ready) or self.out[-1:]))
        if ticket in self.ready:
            return
        self.buffer.void(ticket)
        self.out.remove(ticket)
        self.left += 1
        self.settle()

    @precondition(lambda self: self.taking is None)
    @rule(num=st.integers(1, 4))
    def take(self, num):
        self.wanted = num
        self.taking = self.loop.create_task(self.buffer.take(num))
        self.settle()

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def release(self, data):
        num = data.draw(st.integers(1, len(self.taken)))
        self.buffer.release([header(ticket) for ticket in self.taken[:num]])
        del self.taken[:num]
        self.settle()

    @rule(rarely=st.integers(0, 7))
    def close(self, rarely):
        if rarely:
            return
        self.is_closed = True
        self.buffer.close()
        self.settle()

    @rule(rarely=st.integers(0, 7))
    def stop(self, rarely):
        if rarely:
            return
        self.is_closed = self.is_stopped = True
        self.buffer.stop()
        self.settle()

    @rule()
    def ask_for_settled_places(self):
        certain = list(self.order)
        for ticket in self.out:
            if ticket not in self.ready:
                break
            certain.append(ticket)
        told = [(place, settled.ticket) for place, settled in self.buffer.settled()]
        first = max(self.told, len(self.order))
        assert told == [(place, certain[place]) for place in range(first, len(certain))]
        self.told = max(self.told, len(certain))

    @rule(data=st.data())
    def a_ticket_that_is_not_out_is_refused(self, data):
        ticket = data.draw(st.sampled_from([*sorted(self.ready), *self.taken, self.next_ticket]))
        with pytest.raises(ValueError, match="not out"):
            self.buffer.put(header(ticket))
        if ticket not in self.ready:
            with pytest.raises(ValueError, match="not out"):
                self.buffer.void(ticket)

    @invariant()
    def counts_agree(self):
        if not hasattr(self, "buffer"):
            return
        assert self.buffer.num_held == len(self.out) + len(self.taken) <= self.num_slots
        assert self.buffer.num_ready == len(self.ready)
        assert self.buffer.next_ticket == self.next_ticket


BufferMachine.TestCase.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
TestBuffer = BufferMachine.TestCase
