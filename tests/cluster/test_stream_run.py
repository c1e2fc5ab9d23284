"""A whole GRPO run whose weights go by gloo: an engine is killed in the middle and another one joins."""

import os
import signal

import pytest

from alphadrive.cli import run as run_command
from alphadrive.run_folder import read_metrics

pytest.importorskip("vllm")
pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.e2e]


def test_a_run_by_gloo_goes_on_when_an_engine_is_killed_and_its_successor_joins(tmp_path):
    import test_grpo_run as runs

    for split in ("train", "eval"):
        folder = str(tmp_path / split)
        assert run_command(["data", "synth", "--out", folder, "--num", "8", "--split", split]) == 0
    before = runs.weights_in_shared_memory()
    more = ["rollout.num_workers=2", "learner.num_ranks=2", "learner.zero_stage=3", "grpo.steps=5000"]
    stream = ["rollout.weight_transfer=gloo", "rollout.weight_bucket_bytes=500000"]
    process = runs.started_run(runs.overrides(tmp_path, tmp_path, *more, *stream))
    folder = tmp_path / "r"

    def workers(status):
        return {each["id"]: each for each in status.get("workers", []) if each["kind"] == "rollout"}

    def has_joined(status):
        assert runs.weights_in_shared_memory() <= before
        successor = workers(status).get("engine-0.1")
        return successor is not None and successor["state"] == "SERVING" and successor["groups_done"] > 2

    try:
        runs.wait_for_status(process, folder, lambda status: status["step"] >= 2)
        os.kill(workers(runs.status_of(folder))["engine-0"]["pid"], signal.SIGKILL)
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
    differences = [
        line["rollout/canary_max_abs_diff"] for line in metrics if "rollout/canary_max_abs_diff" in line
    ]
    assert differences and max(differences) < 1e-4
