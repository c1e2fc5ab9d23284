"""Nodes that join, and nodes that are drained, on a Ray cluster of several nodes on one machine."""

import asyncio
import time

import pytest

from alphadrive.config import RolloutConfig

pytest.importorskip("ray")
from fake_actors import SAMPLING, SETTINGS, query_of_row

pytestmark = pytest.mark.ray


@pytest.fixture
def cluster():
    import fake_actors
    import ray
    from ray.cluster_utils import Cluster

    from cluster.private_cluster import ask_for_token

    ask_for_token()
    memory = 200 << 20
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": memory, "num_gpus": 0}
    )
    ray.init(address=cluster.address, log_to_driver=False)
    ray.cloudpickle.register_pickle_by_value(fake_actors)
    yield cluster
    ray.cloudpickle.unregister_pickle_by_value(fake_actors)
    ray.shutdown()
    cluster.shutdown()


def test_a_node_that_joins_is_used_and_one_that_goes_away_is_emptied_before_its_deadline(
    cluster, monkeypatch
):
    import fake_actors
    import ray
    from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION

    from cluster.actors import CONTROL
    from cluster.nodes import watch_nodes
    from cluster.rollout_pool import RolloutPool

    monkeypatch.setattr("cluster.fleet.ROOM_NOTE_S", 1.0)
    actor = ray.remote(concurrency_groups={CONTROL: 4})(fake_actors.FakeRolloutActor)
    pool = RolloutPool(
        RolloutConfig(num_workers=1, hang_timeout_s=20.0, request_timeout_s=60.0),
        lambda index: actor.options(num_cpus=1).remote(delay_s=1.0),
        lambda index: SETTINGS,
        lambda query: SAMPLING,
        SAMPLING,
    )

    def worker(engine_id):
        return next(one for one in pool.workers() if one.id == engine_id)

    async def until(condition):
        async with asyncio.timeout(120):
            while not condition():
                await asyncio.sleep(0.1)

    async def draw(ticket):
        return await (await pool.generate(ticket, query_of_row(ticket)))

    async def main():
        await pool.start()
        watching = asyncio.create_task(watch_nodes([pool], period_s=0.5))
        pool.resize(2)
        await until(lambda: any(engine.is_waiting_for_room for engine in pool.engines))
        assert (worker("engine-1").state, worker("engine-1").node) == ("STARTING", None)

        node = cluster.add_node(num_cpus=1, object_store_memory=200 << 20)
        await until(lambda: worker("engine-1").state == "SERVING")
        assert worker("engine-1").node == node.node_id

        drawing = [asyncio.create_task(draw(ticket)) for ticket in range(4)]
        await asyncio.sleep(0.3)
        assert all(engine.num_under_way for engine in pool.engines)
        client = ray._raylet.GcsClient(address=cluster.address)
        deadline_ms = int((time.time() + 60) * 1000)
        accepted, reason = client.drain_node(node.node_id, DRAIN_NODE_REASON_PREEMPTION, "test", deadline_ms)
        assert accepted, reason
        await until(lambda: worker("engine-1").state == "DRAINING")
        groups = await asyncio.gather(*drawing)
        assert {group.engine_id for group in groups} == {"engine-0", "engine-1"}
        await until(lambda: worker("engine-1").state == "DEAD")
        assert time.time() * 1000 < deadline_ms
        assert (worker("engine-2").state, worker("engine-2").node) == ("STARTING", None)
        assert (await draw(9)).engine_id == "engine-0"
        assert pool.num_lost == 0
        watching.cancel()

    async def whole():
        try:
            await main()
        finally:
            await pool.close()

    asyncio.run(whole())
