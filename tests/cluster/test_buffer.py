"""Slots, tickets and their order."""

import asyncio

import pytest

from alphadrive.types import GroupHeader, WeightVersion
from cluster.buffer import SlotBuffer
from cluster.virtual_time import run_virtual


def header(ticket):
    return GroupHeader(
        ticket=ticket,
        query_id="q",
        row=100 + ticket,
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


async def tickets_of(buffer, num):
    return [await buffer.acquire() for _ in range(num)]


def test_take_gives_the_oldest_tickets_in_order_whatever_came_first():
    async def main():
        buffer = SlotBuffer(4, 100)
        assert await tickets_of(buffer, 4) == [0, 1, 2, 3]
        for ticket in (3, 1, 2):
            buffer.put(header(ticket))
        taking = asyncio.create_task(buffer.take(2))
        await asyncio.sleep(1)
        assert not taking.done()
        buffer.put(header(0))
        assert [taken.ticket for taken in await taking] == [0, 1]

    run_virtual(main())


def test_take_passes_over_void_tickets():
    async def main():
        buffer = SlotBuffer(4, 100)
        await tickets_of(buffer, 4)
        for ticket in (1, 3):
            buffer.put(header(ticket))
        buffer.void(0)
        buffer.void(2)
        assert [taken.ticket for taken in await buffer.take(2)] == [1, 3]

    run_virtual(main())


def test_a_place_is_settled_once_no_older_ticket_is_out():
    def told(buffer):
        return [(place, settled.ticket) for place, settled in buffer.settled()]

    async def main():
        buffer = SlotBuffer(6, 100)
        await tickets_of(buffer, 6)
        buffer.put(header(1))
        buffer.put(header(2))
        assert told(buffer) == []
        buffer.void(0)
        assert told(buffer) == [(0, 1), (1, 2)]
        assert told(buffer) == []
        await buffer.take(1)
        buffer.put(header(4))
        assert told(buffer) == []
        buffer.put(header(3))
        assert told(buffer) == [(2, 3), (3, 4)]
        await buffer.take(3)
        buffer.put(header(5))
        assert told(buffer) == [(4, 5)]

    run_virtual(main())


def test_a_slot_is_free_after_release_and_not_after_take():
    async def main():
        buffer = SlotBuffer(2, 100)
        await tickets_of(buffer, 2)
        waiting = asyncio.create_task(buffer.acquire())
        buffer.put(header(0))
        taken = await buffer.take(1)
        await asyncio.sleep(1)
        assert not waiting.done()
        buffer.release(taken)
        assert await waiting == 2

    run_virtual(main())


def test_no_more_tickets_are_out_than_the_run_will_train_unless_one_is_voided():
    async def main():
        buffer = SlotBuffer(8, 3)
        await tickets_of(buffer, 3)
        waiting = asyncio.create_task(buffer.acquire())
        await asyncio.sleep(1)
        assert not waiting.done()
        buffer.void(1)
        assert await waiting == 3

    run_virtual(main())


def test_a_closed_buffer_gives_what_is_left_and_then_nothing():
    async def main():
        buffer = SlotBuffer(4, 100)
        await tickets_of(buffer, 3)
        waiting = [asyncio.create_task(buffer.acquire()) for _ in range(2)]
        await asyncio.sleep(1)
        buffer.close()
        assert [await waiter for waiter in waiting] == [3, None]
        for ticket in (0, 1, 2, 3):
            buffer.put(header(ticket))
        assert len(await buffer.take(3)) == 3
        assert len(await buffer.take(3)) == 1
        assert await buffer.take(3) == []
        assert await buffer.acquire() is None

    run_virtual(main())


def test_stop_wakes_everyone_and_hands_out_nothing():
    async def main():
        buffer = SlotBuffer(1, 100)
        await tickets_of(buffer, 1)
        taking, acquiring = asyncio.create_task(buffer.take(1)), asyncio.create_task(buffer.acquire())
        await asyncio.sleep(1)
        buffer.stop()
        assert (await taking, await acquiring) == ([], None)

    run_virtual(main())


def test_a_cancelled_waiter_costs_no_slot():
    async def main():
        buffer = SlotBuffer(1, 100)
        await buffer.acquire()
        waiting = asyncio.create_task(buffer.acquire())
        await asyncio.sleep(0)
        buffer.void(0)
        waiting.cancel()
        assert await buffer.acquire() == 2
        assert buffer.num_held == 1

    run_virtual(main())


def test_misuse_is_refused():
    async def main():
        buffer = SlotBuffer(2, 100)
        await buffer.acquire()
        buffer.put(header(0))
        with pytest.raises(ValueError, match="put before"):
            buffer.put(header(0))
        await buffer.take(1)
        with pytest.raises(ValueError, match="not out"):
            buffer.void(0)
        with pytest.raises(ValueError, match="not out"):
            buffer.put(header(7))

    run_virtual(main())


def test_the_seconds_that_take_has_waited_are_counted_the_wait_under_way_included():
    async def main():
        buffer = SlotBuffer(4, 100)
        await tickets_of(buffer, 3)
        taking = asyncio.create_task(buffer.take(2))
        await asyncio.sleep(3)
        assert buffer.waited_s == 3
        buffer.put(header(1))  # wakes it, but the oldest is not there yet
        await asyncio.sleep(2)
        assert buffer.waited_s == 5
        buffer.put(header(0))
        await taking
        await asyncio.sleep(10)  # a step
        assert buffer.waited_s == 5
        buffer.put(header(2))
        await buffer.take(1)
        assert buffer.waited_s == 5
        cancelled = asyncio.create_task(buffer.take(1))
        await asyncio.sleep(4)
        cancelled.cancel()
        await asyncio.sleep(1)
        assert buffer.waited_s == 9

    run_virtual(main())
