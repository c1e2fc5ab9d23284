"""Runs placed by node pools, on a head that takes no work, a node for the learner and one for rollouts.

The nodes are on this machine and their GPUs are numbers, which is all that placement looks at.
"""

import asyncio
import json
import logging
import os
import re
import subprocess
import sys

import pytest
from test_node_loss import cluster_of, living_actors, patiently, until

from alphadrive.cli import run as run_command
from alphadrive.config import load_config
from alphadrive.errors import NodeError, ResourceError

pytest.importorskip("ray")
pytestmark = pytest.mark.ray

POOLS = ["cluster.learner_pool=pool=learner", "cluster.rollout_pool=pool=rollout"]
GPUS = [
    "learner.gpus_per_rank=1",
    "rollout.gpus_per_worker=1",
    "rollout.num_workers=2",
    "rollout.weight_transfer=file",
]


@pytest.fixture(scope="module")
def cache_of_nodes(tmp_path_factory):
    return tmp_path_factory.mktemp("cache of nodes")


@pytest.fixture(scope="module")
def nodes(cache_of_nodes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache_of_nodes))
        learner = {"num_cpus": 2, "num_gpus": 2, "labels": {"pool": "learner"}}
        rollout = {"num_cpus": 2, "num_gpus": 1, "labels": {"pool": "rollout"}}
        with cluster_of(learner, rollout) as cluster:
            yield cluster


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "train"
    assert run_command(["data", "synth", "--out", str(folder), "--num", "16"]) == 0
    return folder


def in_pools():
    """The classes of the actors that live, by the pool of their node; the head has none."""
    from cluster.inventory import live_nodes

    pool_of = {node.id: node.labels.get("pool", "head") for node in live_nodes()}
    found = {}
    for node, name in living_actors():
        found.setdefault(pool_of[node], []).append(name)
    return {pool: sorted(names) for pool, names in found.items()}


def test_learner_and_engines_land_in_their_pools_and_an_engine_without_room_joins_later(
    nodes, scenes, tmp_path, monkeypatch, caplog
):
    import fake_actors
    import fake_runs

    import cluster.learner_group
    from cluster.gang import reserve
    from cluster.grpo import train_on_ray
    from cluster.inventory import live_nodes

    monkeypatch.setattr(cluster.learner_group, "LearnerActor", fake_actors.FakeLearnerActor)
    monkeypatch.setattr("cluster.fleet.ROOM_NOTE_S", 8.0)
    keys = [*POOLS, *GPUS, "cluster.reward_pool=pool=learner"]
    attempt = fake_runs.make_attempt(scenes, tmp_path, 1000, *keys, nodes=live_nodes())
    placement = attempt.placement
    assert "room for 1 beside the learner" in placement.note

    def step():
        return attempt.status._fields["step"]

    async def second_gang():
        with pytest.raises(ResourceError) as refused:
            await reserve(1, {"GPU": 1.0}, placement.learner_pool, 2.0)
        assert "learner.num_ranks=1 bundles of 1 GPU (cluster.learner_pool: pool=learner)" in str(
            refused.value
        )
        assert "0 of 2 GPUs" in str(refused.value) and "held by 2 FakeLearnerActor" in str(refused.value)
        assert "SlowRolloutActor" not in str(refused.value)

    async def main():
        training = asyncio.create_task(train_on_ray(attempt, fake_actors.SlowRolloutActor))
        await until(lambda: step() >= 2 or training.done())
        assert in_pools() == {
            "learner": ["FakeLearnerActor", "FakeLearnerActor", "RewardActor"],
            "rollout": ["SlowRolloutActor"],
        }
        await second_gang()
        patiently(nodes.add_node, num_cpus=1, num_gpus=1, labels={"pool": "rollout"})
        await until(lambda: attempt.watched.rollouts.num_up == 2 or training.done())
        assert in_pools()["rollout"] == ["SlowRolloutActor"] * 2
        attempt.stop.was_asked = True
        attempt.stop.on_stop()
        await training

    with caplog.at_level(logging.WARNING, "cluster.fleet"):
        asyncio.run(main())
    attempt.run.close()
    reason = re.compile(r"waits for room .*1 of 2 are up\n.*0 of 1 GPUs.*held by 1 SlowRolloutActor")
    assert any(reason.search(text) for text in caplog.messages), caplog.messages


def test_a_run_whose_engines_have_no_room_ends_with_what_holds_it_and_gives_the_learners_back(
    nodes, scenes, tmp_path, monkeypatch
):
    import fake_actors
    import fake_runs
    import ray

    import cluster.learner_group
    from cluster.grpo import train_on_ray
    from cluster.inventory import live_nodes

    @ray.remote
    class Squatter:
        def ready(self):
            return True

    monkeypatch.setattr(cluster.learner_group, "LearnerActor", fake_actors.FakeLearnerActor)
    monkeypatch.setattr("cluster.grpo.LEAST_PLACING_S", 3.0)
    monkeypatch.setattr("cluster.placement.PLACING_S", 3.0)
    num_gpus = int(sum(node.gpus for node in live_nodes() if node.is_in({"pool": "rollout"})))
    squatter = Squatter.options(num_gpus=1, label_selector={"pool": "rollout"})
    held = [squatter.remote() for _ in range(num_gpus)]
    assert all(ray.get([each.ready.remote() for each in held]))
    attempt = fake_runs.make_attempt(scenes, tmp_path, 1000, *POOLS, *GPUS, nodes=live_nodes())
    with pytest.raises(ResourceError, match=r"no engine has a place after .*pool=rollout(.|\n)*1 Squatter"):
        asyncio.run(train_on_ray(attempt, fake_actors.SlowRolloutActor))
    attempt.run.close()
    for each in held:
        ray.kill(each)
    asyncio.run(until(lambda: ray.available_resources().get("GPU") == ray.cluster_resources()["GPU"]))


def test_a_node_that_sees_other_files_than_the_driver_is_named(nodes, scenes, tmp_path, monkeypatch):
    """All nodes of this cluster see the same disk, so the driver is shown another one."""
    from alphadrive.model_folder import resolve_model
    from cluster import node_paths
    from cluster.inventory import live_nodes
    from cluster.placement import plan_placement

    config = load_config("debug", [f"data.train={scenes}", "data.eval=null", *POOLS])
    placement = plan_placement(config, "grpo", live_nodes())
    arguments = (config, "grpo", placement, resolve_model("tiny"), tmp_path, live_nodes())
    node_paths.check_nodes(*arguments)
    assert list(tmp_path.iterdir()) == []
    config.data.eval = str(tmp_path / "none")
    node_paths.check_nodes(config, "sft", *arguments[2:])
    with pytest.raises(NodeError, match=r"data\.eval: .*/none is missing"):
        node_paths.check_nodes(*arguments)
    config.data.eval = None

    def of_the_driver(key, folder):
        return {"part-00000.parquet": "1-0"} if key == "data.train" else fingerprints(key, folder)

    fingerprints = node_paths.fingerprints
    monkeypatch.setattr(node_paths, "fingerprints", of_the_driver)
    with pytest.raises(NodeError) as refused:
        node_paths.check_nodes(*arguments)
    lines = str(refused.value).splitlines()[1:]
    others = [node for node in live_nodes() if node.cpus]
    assert len(lines) == len(others) >= 2
    for node in others:
        (line,) = [line for line in lines if node.id[:8] in line]
        assert f"data.train: {scenes}/part-00000.parquet is another file than the driver's" in line


def test_data_at_an_address_is_copied_to_every_node_before_anything_is_placed(
    nodes, cache_of_nodes, scenes, tmp_path, monkeypatch, caplog
):
    from alphadrive.data.fetching import local_folder, place_for_others
    from alphadrive.model_folder import resolve_model
    from cluster import node_paths
    from cluster.inventory import live_nodes
    from cluster.placement import plan_placement

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache of the driver"))
    monkeypatch.setattr(node_paths, "COPY_NEWS_S", 0.01)
    config = load_config("debug", [f"data.train=file://{scenes}", "data.eval=null", *POOLS])
    (tmp_path / "run").mkdir()
    placement = plan_placement(config, "grpo", live_nodes())
    noted = []

    def check():
        arguments = (config, "grpo", placement, resolve_model("tiny"), tmp_path / "run", live_nodes())
        node_paths.check_nodes(*arguments, lambda: noted.append(1))

    (cache_of_nodes / "alphadrive").write_text("no folder")
    with pytest.raises(NodeError) as refused:
        check()
    lines = str(refused.value).splitlines()[1:]
    assert len(lines) >= 2 and all(f"file://{scenes}: cannot be copied to" in line for line in lines)
    (cache_of_nodes / "alphadrive").unlink()
    with caplog.at_level(logging.INFO, "cluster.node_paths"):
        check()
    key = place_for_others(config.data.train).partition("#")[2]
    copied = (cache_of_nodes / "alphadrive" / "data" / key / "part-00000.parquet").read_bytes()
    assert copied == (scenes / "part-00000.parquet").read_bytes()
    assert f"{len(lines)} of {len(lines)} nodes have the data, 0.00 GB copied" in caplog.text and noted
    local_folder.cache_clear()


def alphadrive(nodes, scenes, root, *more):
    keys = [
        f"data.train={scenes}",
        "data.eval=null",
        f"run.root={root}",
        "run.name=r",
        "run.tensorboard=false",
    ]
    keys += [
        "rewards.variant=random",
        "grpo.group_size=4",
        "grpo.groups_per_step=4",
        "grpo.max_new_tokens=24",
    ]
    keys += ["eval.every_steps=0", "grpo.steps=2"]
    return subprocess.Popen(
        [sys.executable, "-m", "alphadrive.cli", "grpo", "debug", *keys, *more],
        env=os.environ | {"RAY_ADDRESS": nodes.address, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_what_can_never_fit_is_refused_by_the_command_before_anything_is_placed(nodes, scenes, tmp_path):
    command = alphadrive(nodes, scenes, tmp_path, *POOLS, "learner.num_ranks=4", "learner.gpus_per_rank=1")
    output, _ = command.communicate(timeout=120)
    assert command.returncode == 2, output
    assert "learner.num_ranks=4: only 2 ranks of 1 GPU and 1 CPU fit on the nodes" in output
    assert re.search(r"4 GPUs, 4 CPUs +2 GPUs, 2 CPUs on 1 of \d nodes +pool=learner", output), output


@pytest.mark.vllm
@pytest.mark.e2e
def test_a_real_run_is_placed_by_pools(nodes, scenes, tmp_path):
    pytest.importorskip("vllm")
    command = alphadrive(nodes, scenes, tmp_path, *POOLS, "cluster.reward_pool=pool=rollout")
    placed = {}

    async def watch():
        while command.poll() is None:
            for pool, names in in_pools().items():
                placed.setdefault(pool, set()).update(names)
            await asyncio.sleep(0.5)

    asyncio.run(asyncio.wait_for(watch(), 400))
    output, _ = command.communicate()
    assert command.returncode == 0, output
    assert json.loads((tmp_path / "r" / "status.json").read_text())["status"] == "finished"
    assert placed == {
        "head": {"RunControl"},
        "learner": {"LearnerActor"},
        "rollout": {"RewardActor", "RolloutActor"},
    }
