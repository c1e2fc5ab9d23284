"""A cluster that outlives its driver, and a run that outlives nodes of its cluster.

Every node has room for two thirds of the run, so it lies on two, one of which has no rank of the learner.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from alphadrive.cli import run as run_command

pytest.importorskip("ray")
pytestmark = pytest.mark.ray

CPUS_OF_A_NODE = 2
STEPS = 1000
SIZES = [
    "rollout.num_workers=2",
    "rollout.cpus_per_worker=1",
    "rollout.max_restarts=9",
    "learner.cpus_per_rank=0.5",
]


def patiently(call, **options):
    """Ray gives its processes 30 s to start, which a busy machine may not make."""
    for _ in range(2):
        with suppress(Exception):
            return call(**options)
    return call(**options)


@contextmanager
def cluster_of(*node_options):
    """A cluster whose head takes no work, and these nodes that do; this process is in it."""
    import fake_actors
    import ray
    from ray.cluster_utils import Cluster

    from cluster.private_cluster import ask_for_token
    from cluster.processes import ProcessTree, end_processes

    ask_for_token()
    with ProcessTree() as tree:
        before = tree.descendants()
        cluster = patiently(Cluster, initialize_head=True, head_node_args={"num_cpus": 0})
        try:
            for options in node_options:
                patiently(cluster.add_node, **options)
            ray.init(address=cluster.address, namespace="alphadrive", log_to_driver=False)
            ray.cloudpickle.register_pickle_by_value(fake_actors)
            yield cluster
            ray.cloudpickle.unregister_pickle_by_value(fake_actors)
        finally:
            ray.shutdown()
            cluster.shutdown()
            end_processes(tree.descendants() - before)


@pytest.fixture(scope="module")
def nodes():
    options = {"num_cpus": CPUS_OF_A_NODE}
    with cluster_of(options, options) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "train"
    assert run_command(["data", "synth", "--out", str(folder), "--num", "48"]) == 0
    return folder


def living_actors():
    """The node and the class of every actor that lives."""
    from ray._private.state import actors

    return [
        (actor["Address"]["NodeID"], actor["ActorClassName"])
        for actor in actors().values()
        if actor["State"] == "ALIVE"
    ]


def workers_of_ray():
    """Processes that are actors, whether Ray knows of them or not."""
    import psutil

    names = [" ".join(each.info["cmdline"] or []) for each in psutil.process_iter(["cmdline"])]
    return [name for name in names if name.startswith(("ray::Slow", "ray::Fake", "ray::Reward"))]


async def until(condition, timeout_s=120):
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.2)


def node_of(cluster, condition):
    """The node, not the head, whose actors' classes meet the condition."""
    classes_of = {}
    for node, name in living_actors():
        classes_of.setdefault(node, set()).add(name)
    ids = {node.node_id for node in cluster.worker_nodes}
    (node_id,) = [node for node, classes in classes_of.items() if node in ids and condition(classes)]
    return node_id


def drain(cluster, node_id):
    """Say that a node goes away in a minute."""
    import ray
    from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION

    client = ray._raylet.GcsClient(address=cluster.address)
    deadline_ms = int((time.time() + 60) * 1000)
    accepted, reason = client.drain_node(node_id, DRAIN_NODE_REASON_PREEMPTION, "test", deadline_ms)
    assert accepted, reason


async def lose_node(cluster, condition):
    """Add a node, then kill the one whose actors' classes meet the condition."""
    node_id = node_of(cluster, condition)
    (node,) = [node for node in cluster.worker_nodes if node.node_id == node_id]
    patiently(cluster.add_node, num_cpus=CPUS_OF_A_NODE)  # sets signal handlers: in the main thread only
    await asyncio.to_thread(cluster.remove_node, node, False)


DRIVER = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import fake_actors, fake_runs, ray
import cluster.learner_group
from cluster.processes import ProcessTree
from cluster.ray_session import ray_session

cluster.learner_group.LearnerActor = fake_actors.FakeLearnerActor
attempt = fake_runs.make_attempt(Path(sys.argv[2]), Path(sys.argv[3]), 1000, *sys.argv[4:])
with ProcessTree() as tree, ray_session(0, tree):
    ray.cloudpickle.register_pickle_by_value(fake_actors)
    fake_runs.train(attempt, fake_actors.SlowRolloutActor)
"""


def test_nothing_of_a_killed_driver_stays_in_a_cluster_that_goes_on(nodes, scenes, tmp_path):
    import ray

    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(Path(__file__).parent), str(scenes), str(tmp_path), *SIZES],
        env=os.environ | {"RAY_ADDRESS": nodes.address},
    )
    status = tmp_path / "debug" / "status.json"
    try:
        wait_until(lambda: status.is_file() and json.loads(status.read_text())["step"] >= 2)
        assert {name for _, name in living_actors()} == {
            "SlowRolloutActor",
            "FakeLearnerActor",
            "RewardActor",
        }
    finally:
        driver.kill()
        driver.wait()
    wait_until(lambda: not living_actors() and not workers_of_ray(), timeout_s=60)
    wait_until(lambda: ray.available_resources().get("CPU") == 2 * CPUS_OF_A_NODE, timeout_s=60)


def test_the_door_of_a_run_is_on_the_node_of_its_driver_whatever_room_others_have(nodes, scenes, tmp_path):
    import fake_runs
    import ray

    from cluster.control_room import control_room
    from cluster.packing import Node
    from cluster.placement import plan_placement

    attempt = fake_runs.make_attempt(scenes, tmp_path, STEPS)
    attempt.placement = plan_placement(attempt.config, "grpo", [Node(cpus=4)])

    async def visit():
        async with control_room(attempt):
            await until(lambda: "RunControl" in {name for _, name in living_actors()})
            return next(node for node, name in living_actors() if name == "RunControl")

    here = ray.get_runtime_context().get_node_id()
    assert [asyncio.run(visit()) for _ in range(5)] == [here] * 5
    attempt.run.close()


def wait_until(condition, timeout_s=120):
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "waited too long"
        time.sleep(0.2)


def test_a_run_outlives_the_nodes_of_its_engines_and_its_learner(nodes, scenes, tmp_path, monkeypatch):
    import fake_actors
    import fake_runs

    import cluster.learner_group
    from cluster.grpo import train_on_ray

    monkeypatch.setattr(cluster.learner_group, "LearnerActor", fake_actors.FakeLearnerActor)
    attempt = fake_runs.make_attempt(scenes, tmp_path, STEPS, *SIZES)

    def step():
        return attempt.status._fields["step"]

    async def main():
        training = asyncio.create_task(train_on_ray(attempt, fake_actors.SlowRolloutActor))
        await until(lambda: step() >= 4 or training.done())
        await lose_node(nodes, lambda classes: "FakeLearnerActor" not in classes)
        reached = step()
        await until(lambda: step() >= reached + 4 or training.done())
        assert attempt.version.attempt == 0
        await lose_node(nodes, lambda classes: "FakeLearnerActor" in classes)
        await until(lambda: attempt.version.attempt == 1 or training.done())
        await until(lambda: step() >= attempt.version.step + 4 or training.done())
        assert attempt.version.attempt == 1
        drained = node_of(nodes, lambda classes: "FakeLearnerActor" in classes)
        patiently(nodes.add_node, num_cpus=CPUS_OF_A_NODE)
        await asyncio.to_thread(drain, nodes, drained)
        await until(lambda: attempt.version.attempt == 2 or training.done())
        await until(lambda: step() >= attempt.version.step + 4 or training.done())
        assert not training.done(), training.exception()
        assert "FakeLearnerActor" not in {name for node, name in living_actors() if node == drained}
        attempt.stop.was_asked = True
        attempt.stop.on_stop()
        await training

    asyncio.run(main())
    attempt.run.close()
    assert fake_runs.ended_queries(attempt) == {"trained": step() * fake_runs.GROUPS_PER_STEP}
    assert [each["attempt"] for each in attempt.status.attempts] == [0, 1, 2]
    moved = attempt.status.attempts[2]
    assert moved["cause"].startswith("LearnerMovesError") and moved.get("lost_steps", 0) <= 1
