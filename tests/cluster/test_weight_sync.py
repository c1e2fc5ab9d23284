"""Weight sync and its proof on a real Ray, with a fake learner and fake engines that agree with it or not."""

import asyncio
import os
import signal

import pytest

from alphadrive.config import Config
from alphadrive.errors import LearnerError, WeightSyncError
from alphadrive.types import WeightVersion

pytest.importorskip("ray")
pytestmark = pytest.mark.ray


def run_synchronised(
    tmp_path, monkeypatch, main, num_ranks=1, update_mode="keep", kind="file", **pool_options
):
    """Start two engines and a learner, calibrate, publish version 0, run `main(pool, learner, sync)`."""
    import fake_actors
    from test_pools import make_pool

    import cluster.learner_group
    from cluster.packing import Node
    from cluster.placement import plan_placement
    from cluster.proof import CanaryLimit
    from cluster.weight_sync import WeightSync

    monkeypatch.setattr(cluster.learner_group, "LearnerActor", fake_actors.FakeLearnerActor)
    config = Config()
    config.learner.num_ranks = num_ranks
    config.learner.cpus_per_rank = 0.1

    async def whole():
        pool = make_pool(**pool_options)
        await pool.start()
        learner = await cluster.learner_group.LearnerGroup.start(
            "grpo",
            config,
            plan_placement(config, "sft", [Node(cpus=2)]),
            model_folder=tmp_path,
            dataset_folder=tmp_path,
            version=WeightVersion(0, 0),
        )
        queries = [fake_actors.query_of_row(row) for row in range(2)]
        sync = WeightSync(
            pool,
            learner,
            queries,
            CanaryLimit("float32"),
            temperature=1.0,
            timeout_s=2.0,
            carrier=carrier_of(kind, pool, learner, tmp_path, update_mode),
            update_mode=update_mode,
        )
        try:
            await sync.calibrate()
            await sync.publish(learner.version)
            await main(pool, learner, sync)
        finally:
            learner.kill()
            await pool.close()
            assert list(tmp_path.glob("*weights*")) == []

    asyncio.run(whole())


def carrier_of(kind, pool, learner, folder, update_mode):
    from cluster.carriers import FileCarrier, StreamCarrier

    if kind == "file":
        return FileCarrier(learner, folder, "weights")
    waits = update_mode == "wait"
    return StreamCarrier(kind, pool, learner, bucket_bytes=1 << 20, timeout_s=6.0, waits=waits)


def test_every_engine_takes_every_version_and_no_file_stays(small_ray, tmp_path, monkeypatch):
    async def main(pool, learner, sync):
        for _ in range(2):
            await learner.step([])
            await sync.publish(learner.version)
        for engine in pool.engines:
            assert await engine.actor.updates_taken.remote() == [(0, 0), (0, 1), (0, 2)]
        assert len(sync.seconds) == 3
        assert sync.canary_differences == [0.0] * 3

    run_synchronised(tmp_path, monkeypatch, main)


def test_a_skipped_update_is_caught_by_the_digest(small_ray, tmp_path, monkeypatch):
    async def main(pool, learner, sync):
        raise AssertionError("version 0 was accepted")

    with pytest.raises(WeightSyncError, match="engine-0: received tensors with SHA-256"):
        run_synchronised(tmp_path, monkeypatch, main, options={"skips_update": True})


def test_an_engine_that_computes_with_other_weights_is_caught_by_the_canary(small_ray, tmp_path, monkeypatch):
    async def main(pool, learner, sync):
        raise AssertionError("the engine was accepted")

    with pytest.raises(WeightSyncError, match=r"engine-0: canary at version 0\.0.*differ.* by 0\.001"):
        run_synchronised(tmp_path, monkeypatch, main, options={"corrupt_logprobs": 1e-3})


def test_an_update_that_fails_stops_the_run(small_ray, tmp_path, monkeypatch):
    async def main(pool, learner, sync):
        raise AssertionError("the engine was accepted")

    with pytest.raises(WeightSyncError, match="update to version"):
        run_synchronised(tmp_path, monkeypatch, main, options={"failing_update": True})


@pytest.mark.parametrize("fault", ["hangs", "dies"])
def test_an_engine_that_hangs_or_dies_in_an_update_never_serves_and_its_successor_catches_up(
    small_ray, tmp_path, monkeypatch, fault
):
    from test_pools import draw, states, until

    async def main(pool, learner, sync):
        assert states(pool)["engine-0"] == "DEAD"
        await learner.step([])
        await sync.publish(learner.version)
        assert (await draw(pool, 0)).completions[0].oldest_version == WeightVersion(0, 1)
        await until(lambda: states(pool).get("engine-0.1") == "SERVING")
        (replaced,) = [engine for engine in pool.engines if engine.id == "engine-0.1"]
        assert (await replaced.actor.updates_taken.remote())[-1] == learner.version
        assert replaced.version == learner.version

    run_synchronised(tmp_path, monkeypatch, main, options={"update": fault})


def test_an_engine_is_opened_while_another_still_hangs_in_its_update(small_ray, tmp_path, monkeypatch):
    from test_pools import draw, states, until

    async def main(pool, learner, sync):
        await until(lambda: states(pool).get("engine-0.1") == "SERVING")
        stopped, other = pool.engines[::-1] if pool.engines[0].id == "engine-1" else pool.engines
        os.kill(stopped.pid, signal.SIGSTOP)
        await learner.step([])
        publishing = asyncio.create_task(sync.publish(learner.version))
        await asyncio.sleep(0)
        group = await draw(pool, 0)
        assert group.engine_id == other.id and not publishing.done()
        assert group.completions[0].oldest_version == learner.version
        await publishing
        assert states(pool)[stopped.id] == "DEAD"

    run_synchronised(tmp_path, monkeypatch, main, options={"update": "dies"})


def test_groups_under_way_change_versions_in_mode_keep_and_end_first_in_mode_wait(
    small_ray, tmp_path, monkeypatch
):
    from test_pools import draw

    async def drawn_meanwhile(pool, learner, sync):
        drawing = asyncio.create_task(draw(pool, 0))
        await asyncio.sleep(0.1)
        await learner.step([])
        await sync.publish(learner.version)
        group = await drawing
        return {span.version.step for one in group.completions for span in one.weight_versions}

    async def keep(pool, learner, sync):
        assert await drawn_meanwhile(pool, learner, sync) == {0, 1}

    async def wait(pool, learner, sync):
        assert await drawn_meanwhile(pool, learner, sync) == {0}

    run_synchronised(tmp_path, monkeypatch, keep, delay_s=0.4)
    run_synchronised(tmp_path, monkeypatch, wait, delay_s=0.4, update_mode="wait")


def test_a_publish_that_is_cut_off_leaves_no_engine_serving_and_the_next_one_opens_them_all(
    small_ray, tmp_path, monkeypatch
):
    from test_pools import states

    async def main(pool, learner, sync):
        await learner.step([])
        publishing = asyncio.create_task(sync.publish(learner.version))
        await asyncio.sleep(0.02)
        publishing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await publishing
        assert set(states(pool).values()) == {"STALE"}
        await sync.publish(learner.version)
        assert set(states(pool).values()) == {"SERVING"}
        assert pool.num_lost == 0

    run_synchronised(tmp_path, monkeypatch, main, delay_s=0.2)


def test_groups_are_dealt_out_to_the_ranks(small_ray, tmp_path, monkeypatch):
    from test_pools import draw

    async def main(pool, learner, sync):
        references = [await pool_reference(pool, ticket) for ticket in range(3)]
        for place in range(3):
            learner.expect(place, row=10 + place)
        await asyncio.sleep(0.1)
        learner.expect_rows([20, 21, 22])
        expected = [await rank.expected_rows.remote() for rank in learner._ranks]
        assert expected == [[10, 12, 20, 22], [11, 21]]
        result = await learner.step(references)
        assert result.metrics["groups"] == 2
        assert result.weight_version == learner.version == WeightVersion(0, 1)
        assert (await draw(pool, 9)).ticket == 9

    async def pool_reference(pool, ticket):
        import fake_actors

        return await pool.generate(ticket, fake_actors.query_of_row(ticket))

    run_synchronised(tmp_path, monkeypatch, main, num_ranks=2)


def test_a_dead_rank_is_a_learner_error_that_names_it(small_ray, tmp_path, monkeypatch):
    async def main(pool, learner, sync):
        await learner._ranks[1].make_die_at.remote(1)
        await learner.step([])

    with pytest.raises(LearnerError, match="learner rank 1 of 2 died in step"):
        run_synchronised(tmp_path, monkeypatch, main, num_ranks=2)
