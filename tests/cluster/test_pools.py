"""The engine pool on a real Ray, with engines that fail on purpose."""

import asyncio
import os
import signal

import pytest

from alphadrive.config import RolloutConfig
from alphadrive.errors import EngineDiedError, RolloutError
from cluster.workers import WorkerState

pytest.importorskip("ray")
from fake_actors import run_with

pytestmark = pytest.mark.ray


def make_pool(num_workers=2, delay_s=0.0, options=None, **config):
    import fake_actors
    import ray

    from cluster.actors import CONTROL
    from cluster.rollout_pool import RolloutPool

    actor = ray.remote(concurrency_groups={CONTROL: 4})(fake_actors.FakeRolloutActor)
    patience = {"hang_timeout_s": 20.0, "request_timeout_s": 30.0}
    return RolloutPool(
        RolloutConfig(num_workers=num_workers, **(patience | config)),
        lambda index: actor.options(num_cpus=0).remote(delay_s=delay_s, **(options or {})),
        lambda index: fake_actors.SETTINGS,
        lambda query: fake_actors.SAMPLING,
        fake_actors.SAMPLING,
    )


async def draw(pool, ticket, row=None):
    import fake_actors

    return await (await pool.generate(ticket, fake_actors.query_of_row(ticket if row is None else row)))


def by_id(pool, engine_id):
    return next(worker for worker in pool.workers() if worker.id == engine_id)


def states(pool):
    return {worker.id: worker.state.value for worker in pool.workers()}


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.05)


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
        caught_up.append(engine.id)
        pool.admit(engine)

    async def main():
        pool.catch_up = catch_up
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


def test_an_engine_that_never_draws_a_group_is_given_up_and_with_the_last_one_the_run(small_ray):
    pool = make_pool(num_workers=1, options={"dies_after": 0}, max_restarts=0)
    with pytest.raises(EngineDiedError, match="max_restarts=0 is used up"):
        run_with(pool, lambda: draw(pool, 0))


def test_engines_that_cannot_start_end_the_run_with_a_named_error(small_ray):
    pool = make_pool(num_workers=1, options={"unstartable": ("engine-0", "engine-0.1")}, max_restarts=1)
    with pytest.raises(EngineDiedError, match=r"max_restarts=1 is used up.*engine-0\.1: injected"):
        run_with(pool, lambda: draw(pool, 0))


def test_an_engine_that_cannot_start_ends_nothing_while_another_serves(small_ray):
    names = ("engine-0", "engine-0.1", "engine-0.2")
    pool = make_pool(options={"unstartable": names}, max_restarts=1)

    async def main():
        await until(lambda: pool.num_lost == 2)
        return await draw(pool, 0)

    assert run_with(pool, main).engine_id == "engine-1"


def test_a_query_that_fails_on_every_engine_is_given_up_and_no_engine_with_it(small_ray):
    pool = make_pool(num_workers=1, options={"failing_rows": {7}})

    async def main():
        with pytest.raises(RolloutError, match="given up after rollout"):
            await draw(pool, 0, row=7)
        return await draw(pool, 1)

    assert run_with(pool, main).engine_id == "engine-0"


def test_an_engine_that_answers_but_draws_no_token_is_replaced(small_ray):
    pool = make_pool(num_workers=1, options={"hanging_rows": {7}}, hang_timeout_s=2.0)

    async def main():
        return await draw(pool, 0, row=7)

    assert run_with(pool, main).engine_id == "engine-0.1"


def test_a_stopped_engine_is_replaced_and_its_groups_are_drawn_elsewhere(small_ray):
    pool = make_pool(delay_s=0.5, hang_timeout_s=4.0)

    async def main():
        drawing = [asyncio.create_task(draw(pool, ticket)) for ticket in range(6)]
        await asyncio.sleep(0.1)
        os.kill(by_id(pool, "engine-0").pid, signal.SIGSTOP)
        return await asyncio.gather(*drawing)

    groups = run_with(pool, main)
    assert [group.ticket for group in groups] == list(range(6))
    assert pool.num_lost == 1


def test_the_death_of_an_idle_engine_is_noticed(small_ray):
    pool = make_pool(num_workers=1, hang_timeout_s=2.0)

    async def main():
        await draw(pool, 0)
        os.kill(by_id(pool, "engine-0").pid, signal.SIGKILL)
        await until(lambda: states(pool).get("engine-0.1") == "SERVING")
        dead = by_id(pool, "engine-0")
        assert (dead.state, dead.groups_done) == (WorkerState.DEAD, 1)
        assert dead.last_progress_s > 1e9 and dead.node

    run_with(pool, main)


def test_a_query_that_kills_every_engine_is_given_up_after_three_and_the_others_are_drawn(small_ray):
    pool = make_pool(delay_s=0.2, options={"poison_rows": (3,)}, max_restarts=0)

    async def main():
        return await asyncio.gather(*(draw(pool, ticket) for ticket in range(8)), return_exceptions=True)

    async def twice():
        return await main(), await draw(pool, 9)

    groups, later = run_with(pool, twice)
    assert isinstance(groups[3], RolloutError)
    assert "2 engines died while they drew this group and no other" in str(groups[3])
    assert [group.ticket for index, group in enumerate(groups) if index != 3] == [0, 1, 2, 4, 5, 6, 7]
    assert later.ticket == 9
    assert pool.num_lost == 3


def test_garbage_is_drawn_again_elsewhere_and_an_engine_that_repeats_it_is_replaced(small_ray):
    pool = make_pool(options={"garbage": "nan"})

    async def main():
        groups = [await draw(pool, ticket) for ticket in range(4)]
        await until(lambda: states(pool).get("engine-0.1") == "SERVING")
        return groups

    groups = run_with(pool, main)
    assert [(group.ticket, group.engine_id) for group in groups] == [(i, "engine-1") for i in range(4)]
    assert pool.num_lost == 1


def test_one_garbled_group_is_forgiven(small_ray):
    pool = make_pool(num_workers=1, options={"garbage": "ticket", "num_garbage": 1})

    async def main():
        return [await draw(pool, ticket) for ticket in range(3)]

    assert {group.engine_id for group in run_with(pool, main)} == {"engine-0"}


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


def test_a_pool_grows_in_the_background_and_shrinks_when_its_groups_have_ended(small_ray):
    pool = make_pool(num_workers=1, delay_s=0.5)
    caught_up = []

    async def catch_up(engine):
        assert engine.state is WorkerState.STALE
        caught_up.append(engine.id)
        pool.admit(engine)

    async def main():
        pool.catch_up = catch_up
        pool.resize(2)
        assert pool.num_wanted == 2
        assert states(pool) == {"engine-0": "SERVING", "engine-1": "STARTING"}
        await until(lambda: states(pool)["engine-1"] == "SERVING")
        drawing = [asyncio.create_task(draw(pool, ticket)) for ticket in range(4)]
        await asyncio.sleep(0.1)
        pool.resize(1)
        await asyncio.sleep(0.1)
        (draining,) = [name for name, state in states(pool).items() if state == "DRAINING"]
        groups = await asyncio.gather(*drawing)
        assert {group.engine_id for group in groups} == {"engine-0", "engine-1"}
        await until(lambda: states(pool)[draining] == "DEAD")
        assert (await draw(pool, 9)).engine_id != draining

    run_with(pool, main)
    assert caught_up == ["engine-1"]
    assert pool.num_lost == 0


def test_a_draining_engine_that_is_wanted_again_proves_its_weights_and_serves(small_ray):
    pool = make_pool(delay_s=0.5)
    caught_up = []

    async def catch_up(engine):
        caught_up.append(engine.id)
        pool.admit(engine)

    async def main():
        pool.catch_up = catch_up
        drawing = [asyncio.create_task(draw(pool, ticket)) for ticket in range(4)]
        await asyncio.sleep(0.1)
        pool.resize(1)
        (draining,) = [name for name, state in states(pool).items() if state == "DRAINING"]
        pool.resize(2)
        await asyncio.gather(*drawing)
        assert caught_up == [draining]
        assert states(pool) == {"engine-0": "SERVING", "engine-1": "SERVING"}

    run_with(pool, main)


def test_what_a_draining_engine_has_not_ended_in_time_is_drawn_elsewhere_with_its_ticket(small_ray):
    pool = make_pool(options={"hanging_rows": {7}})

    async def main():
        drawing = asyncio.create_task(draw(pool, 0, row=7))
        await until(lambda: any(engine.num_under_way for engine in pool.engines))
        (engine,) = [engine for engine in pool.engines if engine.num_under_way]
        assert engine.id == "engine-0"
        for other in pool.engines:
            other.node = other.id
        pool.drain_node("engine-0", deadline_s=1.0)
        assert states(pool)["engine-0"] == "DRAINING"
        group = await drawing
        await until(lambda: states(pool).get("engine-2") == "SERVING")
        return group

    group = run_with(pool, main)
    assert (group.ticket, group.engine_id) == (0, "engine-1")


def test_an_engine_that_has_no_room_waits_as_demand_on_the_cluster_and_the_others_go_on(small_ray, caplog):
    import fake_actors
    import ray
    from ray.autoscaler.v2.sdk import get_cluster_status

    pool = make_pool(num_workers=1)
    roomy = pool._spawn
    huge = ray.remote(concurrency_groups={"control": 4})(fake_actors.FakeRolloutActor)
    pool._spawn = lambda index: huge.options(num_cpus=999).remote() if index else roomy(index)

    def demanded():
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
        demands = status.resource_demands.ray_task_actor_demand
        return [bundle.bundle for demand in demands for bundle in demand.bundles_by_count]

    async def main():
        pool.resize(2)
        group = await draw(pool, 0)
        waiting = by_id(pool, "engine-1")
        assert (waiting.state, waiting.pid, waiting.node) == (WorkerState.STARTING, None, None)
        while {"CPU": 999.0} not in await asyncio.to_thread(demanded):
            await asyncio.sleep(0.2)
        pool.resize(1)
        await until(lambda: "engine-1" not in states(pool))
        return group

    assert run_with(pool, main).engine_id == "engine-0"
    assert pool.num_lost == 0
