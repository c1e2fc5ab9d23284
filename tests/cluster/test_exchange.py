"""Orders and groups between the driver and an engine, in batches; no Ray is started, time is virtual."""

import asyncio

import pytest

pytest.importorskip("ray")
from fake_actors import SAMPLING, SETTINGS, query_of_row
from ray.exceptions import ActorDiedError

from alphadrive.errors import RolloutError
from cluster.batches import BatchItem, packed, unpacked
from cluster.exchange import Desk, Line
from cluster.headers import receipt_of
from cluster.remote import ActorGoneError
from cluster.virtual_time import run_virtual
from rollout.fake import FakeEngine


class DirectActor:
    """An engine's actor in this process: ticket t takes `seconds[t]` (1), raises `errors[t]`. After `kill` no
    call is answered but with its death."""

    def __init__(self, seconds=None, errors=None):
        self.seconds, self.errors = seconds or {}, errors or {}
        self.desk = Desk(self.generate)
        self.calls, self.begun, self.ended = [], [], []
        self.dead = asyncio.Event()

    async def generate(self, ticket, query, sampling):
        self.begun.append(ticket)
        await asyncio.sleep(self.seconds.get(ticket, 1.0))
        if ticket in self.errors:
            raise self.errors[ticket]
        group = await FakeEngine(SETTINGS, "engine-0").generate(ticket, query, sampling)
        self.ended.append(ticket)
        return receipt_of(group), group

    @property
    def exchange(self):
        return self

    def options(self, num_returns):
        assert num_returns == 2
        return self

    def remote(self, orders, dropped):
        self.calls.append([order.ticket for order in orders])
        answer = asyncio.ensure_future(self.answer(orders, dropped))

        async def part(index):
            return (await asyncio.shield(answer))[index]

        parts = asyncio.ensure_future(part(0)), asyncio.ensure_future(part(1))
        parts[1].add_done_callback(asyncio.Future.exception)  # nobody looks at it when it is an error
        return parts

    async def answer(self, orders, dropped):
        work = asyncio.ensure_future(self.desk.exchange(orders, dropped))
        death = asyncio.ensure_future(self.dead.wait())
        await asyncio.wait([work, death], return_when=asyncio.FIRST_COMPLETED)
        if self.dead.is_set():
            raise ActorDiedError()
        return work.result()


def run(main, timeout_s=100.0, period_s=0.1, **behaviour):
    """Run `main(line, actor)`."""

    async def whole():
        actor = DirectActor(**behaviour)
        async with asyncio.timeout(1000.0):
            return await main(Line(actor, timeout_s, lambda: period_s), actor)

    return run_virtual(whole())


def order(line, ticket):
    return line.order(ticket, query_of_row(ticket), SAMPLING)


def test_orders_of_one_moment_go_in_one_call_and_each_gets_its_own_group():
    async def main(line, actor):
        answers = [order(line, ticket) for ticket in (4, 2, 7)]
        drawn = await asyncio.gather(*answers)
        assert actor.calls == [[4, 2, 7]]
        assert [receipt.ticket for receipt, _ in drawn] == [4, 2, 7]
        assert [(await item).ticket for _, item in drawn] == [4, 2, 7]
        assert len({item.batch for _, item in drawn}) == 1

    run(main)


def test_what_has_ended_is_told_at_once_and_the_others_are_waited_for():
    async def main(line, actor):
        slow, quick = order(line, 1), order(line, 2)
        receipt, _ = await quick
        assert receipt.ticket == 2
        assert not slow.done()
        assert (await slow)[0].ticket == 1

    run(main, seconds={1: 50.0})


def test_an_order_that_comes_while_the_engine_draws_does_not_wait_for_it():
    async def main(line, actor):
        first = order(line, 1)
        await asyncio.sleep(5.0)
        second = order(line, 2)
        await second
        assert actor.begun == [1, 2]
        assert not first.done()
        await first

    run(main, seconds={1: 50.0})


def test_under_load_a_call_carries_what_has_gathered_since_the_one_before():
    async def draw_in_turn(line, tickets):
        for ticket in tickets:
            assert (await order(line, ticket))[0].ticket == ticket

    async def main(line, actor):
        await asyncio.gather(*(draw_in_turn(line, range(first, first + 20)) for first in range(0, 800, 20)))
        assert sorted(actor.ended) == list(range(800))
        return len(actor.calls)

    many = {ticket: 0.2 + ticket * 37 % 101 / 1000 for ticket in range(800)}
    assert run(main, seconds=many, period_s=0.1) < run(main, seconds=many, period_s=0.0) / 4


def test_what_was_ordered_before_an_engine_stops_serving_is_sent_before():
    async def main(line, actor):
        await order(line, 1)
        waiting = order(line, 2)
        await asyncio.sleep(0.0)
        assert actor.calls == [[1]]
        line.flush()
        assert actor.calls == [[1], [2]]
        await waiting
        line.flush()
        assert actor.calls == [[1], [2]]

    run(main, period_s=50.0)


@pytest.mark.parametrize("how", ["cancelled", "too late"])
def test_an_order_that_is_given_up_ends_in_the_engine_and_the_others_go_on(how):
    async def main(line, actor):
        given_up, kept = order(line, 1), order(line, 2)
        if how == "cancelled":
            await asyncio.sleep(5.0)
            given_up.cancel()
        with pytest.raises(asyncio.CancelledError if how == "cancelled" else TimeoutError):
            await given_up
        again = order(line, 2)
        assert (await again)[0].ticket == 2
        assert (await kept)[0].ticket == 2
        await asyncio.sleep(200.0)
        assert actor.ended == [2, 2]

    run(main, timeout_s=20.0, seconds={1: 100.0, 2: 15.0})


def test_a_group_that_ends_as_it_is_given_up_is_not_taken_for_the_next_order():
    async def main(line, actor):
        given_up = order(line, 1)
        await asyncio.sleep(1.05)
        given_up.cancel()
        drawn = await asyncio.gather(order(line, 2), order(line, 3))
        assert [(await item).ticket for _, item in drawn] == [2, 3]

    run(main, period_s=1.0, seconds={1: 1.1})


def test_an_order_that_fails_fails_alone():
    async def main(line, actor):
        one, other, third = (order(line, ticket) for ticket in range(3))
        with pytest.raises(RolloutError, match="refused"):
            await other
        assert [(await item).ticket for _, item in (await one, await third)] == [0, 2]

    run(main, errors={1: RolloutError("refused")})


def test_an_error_that_an_engine_must_not_raise_reaches_everybody():
    async def main(line, actor):
        answers = [order(line, ticket) for ticket in range(2)]
        for answer in answers:
            with pytest.raises(ValueError, match="odd"):
                await answer

    run(main, seconds={0: 50.0}, errors={1: ValueError("odd")})


def test_when_the_engine_is_gone_all_that_wait_learn_of_it_and_nothing_more_is_sent():
    async def main(line, actor):
        answers = [order(line, ticket) for ticket in range(3)]
        await asyncio.sleep(1.0)
        actor.dead.set()
        for answer in answers:
            with pytest.raises(ActorGoneError):
                await answer
        line.close()
        order(line, 9).cancel()
        await asyncio.sleep(1.0)
        assert actor.calls == [[0, 1, 2]]

    run(main, seconds={0: 50.0, 1: 50.0, 2: 50.0})


def test_items_are_packed_with_every_batch_once_and_come_back_in_their_order():
    batches = {"a": [10, 11], "b": [20, 21, 22]}
    items = [BatchItem("b", 2), BatchItem("a", 0), BatchItem("b", 0), BatchItem("a", 1)]
    picks, names = packed(items)
    assert names == ["b", "a"]
    assert unpacked(picks, [batches[name] for name in names]) == [22, 10, 20, 11]
    assert packed([]) == ([], [])
