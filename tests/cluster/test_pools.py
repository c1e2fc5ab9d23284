"""Engine and reward pools on a real Ray, with engines and rewards that fail on purpose."""

import asyncio

import pytest

from alphadrive.config import RewardConfig, RolloutConfig
from alphadrive.errors import EngineDiedError, RewardError, RolloutError

pytest.importorskip("ray")
pytestmark = pytest.mark.ray


def make_pool(num_workers=2, delay_s=0.0, options=None, **config):
    import fake_actors
    import ray

    from cluster.actors import CONTROL
    from cluster.rollout_pool import RolloutPool

    actor = ray.remote(concurrency_groups={CONTROL: 4})(fake_actors.FakeRolloutActor)
    return RolloutPool(
        RolloutConfig(num_workers=num_workers, **({"request_timeout_s": 30.0} | config)),
        lambda index: actor.options(num_cpus=0).remote(delay_s=delay_s, **(options or {})),
        lambda index: fake_actors.SETTINGS,
        lambda ticket: fake_actors.SAMPLING,
        fake_actors.SAMPLING,
    )


async def draw(pool, ticket, row=None):
    import fake_actors

    return await (await pool.generate(ticket, fake_actors.query_of_row(ticket if row is None else row)))


def run_with(pool, main):
    async def whole():
        await pool.start()
        try:
            return await main()
        finally:
            await pool.close()

    return asyncio.run(whole())


def test_groups_are_spread_over_the_engines(small_ray):
    pool = make_pool(delay_s=0.2)

    async def main():
        return await asyncio.gather(*(draw(pool, ticket) for ticket in range(8)))

    groups = run_with(pool, main)
    assert [group.ticket for group in groups] == list(range(8))
    assert sorted(group.engine_id for group in groups) == ["engine-0"] * 4 + ["engine-1"] * 4


def test_groups_of_an_engine_whose_process_is_killed_are_drawn_elsewhere_with_their_ticket(small_ray):
    pool = make_pool(delay_s=0.2, options={"kills_process_after": 1})
    caught_up = []

    async def catch_up(engine):
        caught_up.append(engine.engine_id)

    pool.catch_up = catch_up

    async def main():
        groups = await asyncio.gather(*(draw(pool, ticket) for ticket in range(8)))
        while not caught_up:
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.5)
        return groups, await asyncio.gather(*(draw(pool, ticket) for ticket in range(8, 12)))

    groups, later = run_with(pool, main)
    assert [group.ticket for group in groups] == list(range(8))
    assert caught_up == ["engine-0.1"]
    assert {group.engine_id for group in later} == {"engine-0.1", "engine-1"}


def test_an_engine_that_reports_its_death_is_replaced(small_ray):
    pool = make_pool(num_workers=1, options={"dies_after": 2})

    async def main():
        return [await draw(pool, ticket) for ticket in range(4)]

    groups = run_with(pool, main)
    assert [group.engine_id for group in groups] == ["engine-0", "engine-0", "engine-0.1", "engine-0.1"]


def test_the_run_ends_when_more_engines_die_than_allowed(small_ray):
    pool = make_pool(num_workers=1, options={"dies_after": 0}, max_restarts=0)
    with pytest.raises(EngineDiedError, match="max_restarts=0 is used up"):
        run_with(pool, lambda: draw(pool, 0))


def test_a_query_that_fails_on_every_engine_is_given_up_and_no_engine_with_it(small_ray):
    pool = make_pool(num_workers=1, options={"failing_rows": {7}})

    async def main():
        with pytest.raises(RolloutError, match="given up after rollout"):
            await draw(pool, 0, row=7)
        return await draw(pool, 1)

    assert run_with(pool, main).engine_id == "engine-0"


def test_an_engine_that_draws_nothing_is_fenced_after_the_timeout(small_ray, monkeypatch):
    import cluster.rollout_pool

    monkeypatch.setattr(cluster.rollout_pool, "PROGRESS_TIMEOUT_S", 0.5)
    pool = make_pool(num_workers=1, options={"hanging_rows": {7}}, request_timeout_s=0.5, sync_timeout_s=0.5)

    async def main():
        return await draw(pool, 0, row=7)

    assert run_with(pool, main).engine_id == "engine-0.1"


def test_what_an_engine_finishes_while_it_is_synchronised_waits_for_the_proof(small_ray):
    pool = make_pool(num_workers=1, delay_s=0.3)

    async def main():
        drawing = asyncio.create_task(draw(pool, 0))
        await asyncio.sleep(0.1)
        engines = pool.begin_sync()
        late = asyncio.create_task(draw(pool, 1))
        await asyncio.sleep(1.0)
        assert not drawing.done() and not late.done()
        for engine in engines:
            pool.admit(engine)
        await asyncio.gather(drawing, late)

    run_with(pool, main)


@pytest.fixture
def reward_pool(small_ray, tmp_path):
    import fake_actors
    import ray

    from cluster.reward_pool import RewardPool

    actor = ray.remote(fake_actors.MoodyRewardActor).options(num_cpus=0)
    return RewardPool(RewardConfig(timeout_s=2.0), lambda worker_id: actor.remote(str(tmp_path), worker_id))


def fake_group(row):
    import fake_actors
    import ray

    from rollout.fake import FakeEngine

    engine = FakeEngine(fake_actors.SETTINGS, "engine-0")
    group = asyncio.run(engine.generate(row, fake_actors.query_of_row(row), fake_actors.SAMPLING))
    return ray.put(group)


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
    assert isinstance(header.scored, ray.ObjectRef)
    totals = [reward.total for reward in scored.rewards]
    assert header.reward_mean == pytest.approx(sum(totals) / len(totals))
    assert header.num_tokens == sum(len(completion.token_ids) for completion in scored.group.completions)
    (file,) = tmp_path.glob("*.parquet")
    assert pq.read_table(file)["query_id"].to_pylist() == ["q0"]


def test_a_reward_that_raises_twice_is_an_error_and_never_a_number(reward_pool):
    group = fake_group(1)
    with pytest.raises(RewardError, match=r"failed 2 times.*no finite number"):
        run_with(reward_pool, lambda: reward_pool.score(group))


def test_a_reward_that_hangs_twice_is_given_up_in_time(reward_pool):
    group = fake_group(2)
    with pytest.raises(RewardError, match="no answer in rewards"):
        run_with(reward_pool, lambda: reward_pool.score(group))


@pytest.mark.parametrize("row", [3, 4])
def test_a_worker_that_hangs_or_dies_is_replaced_and_the_group_scored(reward_pool, row):
    group = fake_group(row)
    assert run_with(reward_pool, lambda: reward_pool.score(group)).query_id == f"q{row}"
