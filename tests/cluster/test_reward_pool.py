"""The reward pool on a real Ray, with rewards that raise, hang, kill their process or take their time."""

import asyncio
import os
import signal

import pytest

from alphadrive.config import RewardConfig
from alphadrive.errors import RewardError, RewardWorkerDiedError

pytest.importorskip("ray")
from fake_actors import run_with

pytestmark = pytest.mark.ray


def make_pool(folder, num_workers=1, unstartable=(), timeout_s=2.0):
    import fake_actors
    import ray

    from cluster.reward_pool import RewardPool

    actor = ray.remote(fake_actors.MoodyRewardActor).options(num_cpus=0)
    return RewardPool(
        RewardConfig(timeout_s=timeout_s, num_workers=num_workers),
        lambda worker_id: actor.remote(str(folder), worker_id, unstartable),
    )


@pytest.fixture
def reward_pool(small_ray, tmp_path):
    return make_pool(tmp_path)


def fake_group(row):
    import fake_actors
    import ray

    from cluster.batches import BatchItem
    from rollout.fake import FakeEngine

    engine = FakeEngine(fake_actors.SETTINGS, "engine-0")
    group = asyncio.run(engine.generate(row, fake_actors.query_of_row(row), fake_actors.SAMPLING))
    return BatchItem(ray.put((group,)), 0)


def test_a_header_says_what_the_scored_group_holds_and_the_group_stays_behind_its_reference(
    reward_pool, tmp_path
):
    import pyarrow.parquet as pq
    import ray

    group = fake_group(0)

    async def main():
        header = await reward_pool.score(group)
        return header, await header.scored

    header, scored = run_with(reward_pool, main)
    assert isinstance(header.scored.batch, ray.ObjectRef)
    totals = [reward.total for reward in scored.rewards]
    assert header.reward_mean == pytest.approx(sum(totals) / len(totals))
    assert header.num_tokens == sum(len(completion.token_ids) for completion in scored.group.completions)
    (file,) = tmp_path.glob("*.parquet")
    assert pq.read_table(file)["query_id"].to_pylist() == ["q0"]


def test_a_reward_that_raises_twice_is_an_error_and_never_a_number(reward_pool):
    group = fake_group(1)
    with pytest.raises(RewardError, match=r"failed 2 times.*no finite number"):
        run_with(reward_pool, lambda: reward_pool.score(group))


def test_an_error_of_the_pool_itself_is_raised_to_all_that_wait(reward_pool):
    group = fake_group(0)

    async def main():
        return await asyncio.gather(
            reward_pool.score(group.batch), reward_pool.score(group), return_exceptions=True
        )

    assert {type(result) for result in run_with(reward_pool, main)} == {AttributeError}


def test_a_reward_that_hangs_twice_is_given_up_in_time(reward_pool):
    group = fake_group(2)
    with pytest.raises(RewardError, match="no answer in rewards"):
        run_with(reward_pool, lambda: reward_pool.score(group))


@pytest.mark.parametrize("row", [3, 4])
def test_a_worker_that_hangs_or_dies_is_replaced_and_the_group_scored(reward_pool, row):
    group = fake_group(row)
    assert run_with(reward_pool, lambda: reward_pool.score(group)).query_id == f"q{row}"


def test_a_group_that_kills_every_worker_is_given_up_after_three_and_the_next_is_scored(reward_pool):
    poison, fine = fake_group(5), fake_group(0)

    async def main():
        with pytest.raises(RewardError, match="failed 3 times") as failed:
            await reward_pool.score(poison)
        assert not isinstance(failed.value, RewardWorkerDiedError)
        return await reward_pool.score(fine)

    assert run_with(reward_pool, main).query_id == "q0"


def test_a_slow_worker_holds_nobody_up(small_ray, tmp_path):
    pool = make_pool(tmp_path, num_workers=2, timeout_s=60.0)
    slow, quick = fake_group(6), fake_group(0)

    async def main():
        scoring = asyncio.create_task(pool.score(slow))
        await asyncio.sleep(0.1)
        for _ in range(5):
            await pool.score(quick)
        assert not scoring.done()
        await scoring
        return {worker.id: worker.groups_done for worker in pool.workers()}

    assert sorted(run_with(pool, main).values()) == [1, 5]


def test_a_worker_that_does_not_come_back_at_once_is_tried_again_and_the_run_goes_on(small_ray, tmp_path):
    pool = make_pool(tmp_path, unstartable=("w0.1", "w0.2"))
    group = fake_group(4)
    assert run_with(pool, lambda: pool.score(group)).query_id == "q4"


def test_a_pool_whose_workers_never_start_ends_with_a_named_error(small_ray, tmp_path, monkeypatch):
    import cluster.reward_pool

    monkeypatch.setattr(cluster.reward_pool, "MAX_RESTARTS", 1)
    pool = make_pool(tmp_path, unstartable=("w0.1", "w0.2"))
    group = fake_group(2)
    with pytest.raises(RewardWorkerDiedError, match="no reward worker is left"):
        run_with(pool, lambda: pool.score(group))


def test_the_death_of_an_idle_worker_is_noticed(reward_pool, monkeypatch):
    import cluster.reward_pool

    monkeypatch.setattr(cluster.reward_pool, "HEALTH_PERIOD_S", 0.3)

    async def main():
        (worker,) = reward_pool.workers()
        os.kill(worker.pid, signal.SIGKILL)
        async with asyncio.timeout(30):
            while len(reward_pool.workers()) < 2 or reward_pool.workers()[0].state != "SERVING":
                await asyncio.sleep(0.1)
        return [(worker.id, worker.state.value) for worker in reward_pool.workers()]

    assert run_with(reward_pool, main) == [("w0.1", "SERVING"), ("w0", "DEAD")]


def test_a_pool_grows_and_shrinks_and_what_a_leaving_worker_scored_is_on_disk(small_ray, tmp_path):
    import pyarrow.parquet as pq

    pool = make_pool(tmp_path, timeout_s=60.0)
    slow = fake_group(6)

    async def until(num_serving, num_dead):
        async with asyncio.timeout(120):
            expected = ["DEAD"] * num_dead + ["SERVING"] * num_serving
            while sorted(worker.state.value for worker in pool.workers()) != expected:
                await asyncio.sleep(0.1)

    async def main():
        pool.resize(3)
        await until(num_serving=3, num_dead=0)
        await asyncio.gather(*(pool.score(slow) for _ in range(6)))
        assert all(worker.groups_done for worker in pool.workers())
        scoring = asyncio.create_task(pool.score(slow))
        await asyncio.sleep(0.1)
        pool.resize(1)
        await scoring
        await until(num_serving=1, num_dead=2)

    run_with(pool, main)
    assert sum(pq.read_metadata(path).num_rows for path in tmp_path.glob("*.parquet")) == 7
