"""One pause and one purse for all workers."""

import asyncio

import pytest

from alphadrive.teacher.budget import CapReachedError, TokenBudget
from alphadrive.teacher.stopping import StoppedError, StopSignal
from alphadrive.teacher.throttle import Throttle


def test_never_more_than_the_limit_on_the_way():
    async def main():
        throttle = Throttle(3, StopSignal(), print)
        most = now = 0

        async def work():
            nonlocal most, now
            async with throttle.slot():
                now += 1
                most = max(most, now)
                await asyncio.sleep(0.001)
                now -= 1

        await asyncio.gather(*(work() for _ in range(10)))
        return most

    assert asyncio.run(main()) == 3


def test_pause_holds_everybody_halves_once_and_recovers():
    async def main():
        said = []
        throttle = Throttle(8, StopSignal(), said.append)
        loop = asyncio.get_running_loop()
        start = loop.time()
        for _ in range(5):
            throttle.slow_down(0.2)
        assert throttle.limit == 4
        starts = []

        async def work():
            async with throttle.slot():
                starts.append(loop.time() - start)

        await asyncio.gather(*(work() for _ in range(6)))
        assert len(said) == 1 and "wait 0.2 s, then at most 4 at once" in said[0]
        for _ in range(100):
            throttle.speed_up()
        return starts, throttle.limit

    starts, limit = asyncio.run(main())
    assert len(starts) == 6 and min(starts) >= 0.2
    assert limit == 8


def test_limit_never_falls_below_one():
    async def main():
        throttle = Throttle(2, StopSignal(), str)
        for _ in range(5):
            throttle.slow_down(0)
        return throttle.limit

    assert asyncio.run(main()) == 1


def test_stop_wakes_those_who_wait():
    async def main():
        stop = StopSignal()
        throttle = Throttle(1, stop, str)
        throttle.slow_down(500)

        async def work():
            async with throttle.slot():
                raise AssertionError("sent after the stop")

        tasks = [asyncio.create_task(work()) for _ in range(3)]
        await asyncio.sleep(0.01)
        stop.set("interrupted")
        stop.set("failed", ValueError("later"))
        results = await asyncio.gather(*tasks, return_exceptions=True)
        return [type(result) for result in results], stop.reason, stop.error

    assert asyncio.run(main()) == ([StoppedError] * 3, "interrupted", None)


def purse(limit, spent=0, longest_prompt=0):
    return TokenBudget(limit, spent=spent, longest_prompt=longest_prompt, max_answer_tokens=10)


def test_first_request_goes_alone_and_the_cap_holds():
    """Every request costs 20 and an answer of at most 10; 100 has room for three, whatever they turn out."""

    async def main():
        budget = purse(100)
        on_the_way = []
        sent = refused = 0

        async def work():
            nonlocal sent, refused
            try:
                async with budget.reserve():
                    sent += 1
                    on_the_way.append(sent)
                    if sent == 1:
                        await asyncio.sleep(0.01)
                        assert on_the_way == [1]
                    await asyncio.sleep(0.001)
                    budget.spend(20, 10)
            except CapReachedError:
                refused += 1

        await asyncio.gather(*(work() for _ in range(8)))
        return sent, refused

    assert asyncio.run(main()) == (3, 5)


def test_what_a_failed_request_set_aside_is_free_again():
    async def main():
        budget = purse(100, 20, 50)
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                async with budget.reserve():
                    _ = 1 / 0
        async with budget.reserve():
            budget.spend(50, 10)
        with pytest.raises(CapReachedError):
            async with budget.reserve():
                pass

    asyncio.run(main())


def test_spent_before_counts():
    async def main():
        with pytest.raises(CapReachedError):
            async with purse(100, 100).reserve():
                pass

    asyncio.run(main())
