"""A whole GRPO run on two nodes: its weights go by gloo from the learner's to the engines' node, an engine is
killed in the middle and another one joins. Both nodes are on this machine.
"""

import os
import signal

import pytest

from alphadrive.cli import run as run_command
from alphadrive.metric_names import CANARY_DIFF
from alphadrive.run_folder import read_metrics

pytest.importorskip("vllm")
pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.e2e]

SIZES = ["rollout.num_workers=2", "learner.num_ranks=2", "learner.zero_stage=3", "grpo.steps=5000"]
POOLS = ["cluster.learner_pool=pool=learner", "cluster.rollout_pool=pool=rollout"]


@pytest.fixture
def address():
    """Of a cluster of two nodes."""
    from ray.cluster_utils import Cluster
    from test_node_loss import patiently

    from cluster.processes import ProcessTree, end_processes

    with ProcessTree() as tree:
        before = tree.descendants()
        head = {"num_cpus": 2, "labels": {"pool": "learner"}}
        cluster = patiently(Cluster, initialize_head=True, head_node_args=head)
        try:
            patiently(cluster.add_node, num_cpus=2, labels={"pool": "rollout"})
            yield cluster.address
        finally:
            cluster.shutdown()
            end_processes(tree.descendants() - before)


def test_a_run_on_two_nodes_goes_on_when_an_engine_is_killed_and_its_successor_joins(
    address, tmp_path, monkeypatch
):
    import test_grpo_run as runs

    from cluster.launch import WEIGHTS_FOLDER, scratch_prefix

    for split in ("train", "eval"):
        folder = str(tmp_path / split)
        assert run_command(["data", "synth", "--out", folder, "--num", "8", "--split", split]) == 0
    monkeypatch.setenv("RAY_ADDRESS", address)
    more = [*SIZES, *POOLS, "rollout.weight_bucket_bytes=500000"]
    process = runs.started_run(runs.overrides(tmp_path, tmp_path, *more))
    folder = tmp_path / "r"

    def workers(kind):
        listed = runs.status_of(folder).get("workers", [])
        return {each["id"]: each for each in listed if each["kind"] == kind}

    def has_joined(status):
        assert list(WEIGHTS_FOLDER.glob(f"*{scratch_prefix(folder)}*.safetensors")) == []
        successor = workers("rollout").get("engine-0.1")
        return successor is not None and successor["state"] == "SERVING" and successor["groups_done"] > 2

    try:
        runs.wait_for_status(process, folder, lambda status: status["step"] >= 2)
        engines = workers("rollout")
        (learner_node,) = {rank["node"] for rank in workers("learner").values()}
        assert learner_node not in {engine["node"] for engine in engines.values()}
        os.kill(engines["engine-0"]["pid"], signal.SIGKILL)
        runs.wait_for_status(process, folder, has_joined)
        joined = runs.status_of(folder)["step"]
        runs.wait_for_status(process, folder, lambda status: status["step"] >= joined + 3)
        process.send_signal(signal.SIGINT)
        _, messages = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, messages
    metrics = read_metrics(folder / "metrics.jsonl")
    assert len(metrics) >= joined + 3
    differences = [line[CANARY_DIFF] for line in metrics if CANARY_DIFF in line]
    assert differences and max(differences) < 1e-4
