"""Several groups in one call of a reward worker: how many go, and what becomes of them when it is lost."""

import asyncio
import os
from types import SimpleNamespace

import pytest

pytest.importorskip("ray")
from fake_actors import SAMPLING, SETTINGS, query_of_row
from ray.exceptions import ActorDiedError

from alphadrive.config import RewardConfig
from alphadrive.errors import RewardError
from cluster import remote
from cluster.actors import Scores, scored_or_error
from cluster.batches import BatchItem, unpacked
from cluster.headers import header_of
from cluster.reward_pool import PERIOD_S, RewardPool
from cluster.virtual_time import run_virtual
from rollout.fake import FakeEngine

TIMEOUT_S = 5.0


class Scored(list):
    """As the reference to a call's second value."""

    def __await__(self):
        yield from ()
        return self


class DirectWorker:
    """A reward worker in this process: a group takes `seconds`; those of `bad` rows raise, those of `deadly`
    rows end the worker, those of `hanging` rows are never answered."""

    def __init__(self, calls, seconds, bad=(), deadly=(), hanging=()):
        self.calls, self.seconds = calls, seconds
        self.bad, self.deadly, self.hanging = bad, deadly, hanging
        self.where = self.flush = self.close = SimpleNamespace(remote=self.at_once)

    async def at_once(self):
        return os.getpid(), "node"

    @property
    def score(self):
        return self

    def options(self, num_returns):
        return self

    def remote(self, picks, *batches):
        groups = unpacked(picks, batches)
        rows = [group.query.row for group in groups]
        self.calls.append(rows)
        scored = Scored()
        return self.answer(groups, rows, scored), scored

    async def answer(self, groups, rows, scored):
        await asyncio.sleep(self.seconds * len(groups))
        if any(row in self.deadly for row in rows):
            raise ActorDiedError()
        if any(row in self.hanging for row in rows):
            await asyncio.sleep(1000.0)
        headers = []
        for group in groups:
            if group.query.row in self.bad:
                headers.append(RewardError("no finite number"))
                continue
            scored.append(scored_or_error(group, "paper", 0, (), "grpo"))
            headers.append(header_of(scored[-1], None))
        return Scores(headers, self.seconds * len(groups))


def run(monkeypatch, main, num_workers=1, seconds=0.001, **behaviour):
    """Run `main(pool, calls, groups)`; the pool has scored groups before, so it knows how long one takes."""
    monkeypatch.setattr(remote, "kill", lambda actor: None)
    calls = []

    async def whole():
        engine = FakeEngine(SETTINGS, "engine-0")
        batch = tuple([await engine.generate(row, query_of_row(row), SAMPLING) for row in range(40)])
        groups = [BatchItem(batch, row) for row in range(40)]
        config = RewardConfig(timeout_s=TIMEOUT_S, num_workers=num_workers)
        pool = RewardPool(config, lambda worker_id: DirectWorker(calls, seconds, **behaviour))
        try:
            await pool.start()
            for _ in range(20):
                await pool.score(groups[39])
            calls.clear()
            async with asyncio.timeout(1000.0):
                return await main(pool, calls, groups)
        finally:
            await pool.close()

    return run_virtual(whole())


async def score_all(pool, groups):
    return await asyncio.gather(*(pool.score(group) for group in groups), return_exceptions=True)


def test_quick_groups_that_wait_go_in_one_call_and_each_header_says_where_its_group_is(monkeypatch):
    async def main(pool, calls, groups):
        headers = await score_all(pool, groups[:30])
        assert [header.query_id for header in headers] == [f"q{row}" for row in range(30)]
        assert sorted(row for rows in calls for row in rows) == list(range(30))
        assert len(calls) == 2  # 20 ms of work in each at most
        for header in headers:
            scored = header.scored.batch[header.scored.index]
            assert (scored.group.ticket, scored.group.query.query_id) == (header.ticket, header.query_id)

    run(monkeypatch, main)


def test_groups_that_come_one_after_the_other_faster_than_the_period_share_calls(monkeypatch):
    async def main(pool, calls, groups):
        scoring = []
        for group in groups[:12]:
            scoring.append(asyncio.create_task(pool.score(group)))
            await asyncio.sleep(0.001)
        await asyncio.gather(*scoring)
        assert sorted(row for rows in calls for row in rows) == list(range(12))
        assert len(calls) <= 5

    run(monkeypatch, main, num_workers=4, seconds=0.0001)


def test_one_group_is_scored_at_once_and_slow_ones_are_spread_over_the_workers(monkeypatch):
    async def main(pool, calls, groups):
        await pool.score(groups[3])
        assert calls == [[3]]
        calls.clear()
        await score_all(pool, groups[:4])
        assert calls == [[0], [1], [2], [3]]

    run(monkeypatch, main, num_workers=4, seconds=0.5)


def test_a_group_that_raises_fails_alone_and_the_others_of_its_call_are_kept(monkeypatch):
    async def main(pool, calls, groups):
        outcomes = await score_all(pool, groups[:5])
        assert isinstance(outcomes[2], RewardError)
        assert "failed 2 times" in str(outcomes[2])
        others = [outcome for index, outcome in enumerate(outcomes) if index != 2]
        found = [header.scored.batch[header.scored.index].group.query.row for header in others]
        assert found == [0, 1, 3, 4]
        assert calls == [[0, 1, 2, 3, 4], [2]]

    run(monkeypatch, main, bad={2})


@pytest.mark.parametrize(("fault", "num_alone"), [("deadly", 3), ("hanging", 2)])
def test_when_a_worker_is_lost_with_several_groups_each_is_tried_alone_and_only_the_guilty_is_given_up(
    monkeypatch, fault, num_alone
):
    async def main(pool, calls, groups):
        outcomes = await score_all(pool, groups[:4])
        assert isinstance(outcomes[1], RewardError)
        assert f"failed {num_alone} times" in str(outcomes[1])
        assert [outcomes[row].query_id for row in (0, 2, 3)] == ["q0", "q2", "q3"]
        assert calls[0] == [0, 1, 2, 3]
        assert sorted(calls[1:]) == [[0], *[[1]] * num_alone, [2], [3]]

    run(monkeypatch, main, **{fault: {1}})


def test_a_group_that_nobody_waits_for_any_more_is_not_scored(monkeypatch):
    async def main(pool, calls, groups):
        await asyncio.sleep(PERIOD_S)
        first = asyncio.create_task(pool.score(groups[0]))
        await asyncio.sleep(0.0001)
        given_up, kept = (asyncio.create_task(pool.score(groups[row])) for row in (1, 2))
        await asyncio.sleep(0.0001)
        given_up.cancel()
        await asyncio.gather(first, kept)
        assert calls == [[0], [2]]

    run(monkeypatch, main)


@pytest.mark.ray
def test_of_a_call_in_which_a_worker_is_killed_nothing_is_written_twice_and_nothing_is_missing(
    small_ray, tmp_path
):
    import pyarrow.parquet as pq
    import ray
    from test_reward_pool import make_pool

    pool = make_pool(tmp_path, timeout_s=60.0)
    engine = FakeEngine(SETTINGS, "engine-0")

    async def main():
        rows = [10, 11, 12, 4, 13, 14]  # row 4 ends the process of the first worker
        made = [await engine.generate(ticket, query_of_row(row), SAMPLING) for ticket, row in enumerate(rows)]
        batch = ray.put(tuple(made))
        await pool.start()
        try:
            pool._group_s = 0.001  # as after many quick groups
            headers = await score_all(pool, [BatchItem(batch, index) for index in range(6)])
            groups = [(await header.scored).group for header in headers]
        finally:
            await pool.close()
        assert [header.ticket for header in headers] == [group.ticket for group in groups] == list(range(6))
        assert {worker.id: worker.groups_done for worker in pool.workers()} == {"w0": 0, "w0.1": 6}

    asyncio.run(main())
    tables = [pq.read_table(path) for path in tmp_path.glob("*.parquet")]
    assert sorted(ticket for table in tables for ticket in table["ticket"].to_pylist()) == list(range(6))
