"""A real run on the shipped tiny model, looked at, grown and ended from another terminal.

What it opens to others meanwhile is compared with SECURITY.md.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from openness import command_lines, documented_processes, exposed, files_with, listeners

from alphadrive.checkpoints import CheckpointStore
from alphadrive.cli import run as run_command
from cluster.processes import is_alive

pytest.importorskip("vllm")
pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.e2e]

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
CANARY = "canary-of-a-secret-5d1b0c"
STRANGER = """
import sys, ray
from cluster.private_cluster import reaching
with reaching(sys.argv[1]):
    ray.init(address=sys.argv[1], log_to_driver=False)
print("inside")
"""


def alphadrive(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "alphadrive.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=400,
        env=ENVIRONMENT,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def status_of(folder):
    return json.loads(alphadrive("status", str(folder), "--json"))


def strangers(address):
    """Two on this machine who know the address: one has another token, one has none."""
    tokens = ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}, {"RAY_AUTH_MODE": "disabled"})
    return [
        subprocess.Popen(
            [sys.executable, "-c", STRANGER, address],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT | token,
            cwd=ROOT,
        )
        for token in tokens
    ]


def wait_for_first_step(folder, process, log):
    deadline_s = time.monotonic() + 400
    path = folder / "status.json"
    while not path.is_file() or json.loads(path.read_text())["step"] < 1:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline_s
        time.sleep(0.2)


def test_a_live_run_is_looked_at_grown_and_ended_with_a_checkpoint(tmp_path):
    data = tmp_path / "train"
    assert run_command(["data", "synth", "--out", str(data), "--num", "40"]) == 0
    folder = tmp_path / "r"
    overrides = [
        f"data.train={data}",
        "data.eval=null",
        f"run.root={tmp_path}",
        "run.name=r",
        "run.tensorboard=false",
        "rewards.variant=random",
        "grpo.steps=2000",
        "grpo.group_size=4",
        "grpo.groups_per_step=4",
        "grpo.max_new_tokens=24",
        "eval.every_steps=0",
        "rollout.cpus_per_worker=0.5",
    ]
    log = tmp_path / "log.txt"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "alphadrive.cli", "grpo", "debug", *overrides],
            stderr=stderr,
            env=ENVIRONMENT | {"OMP_NUM_THREADS": "1", "SOME_SERVICE_API_KEY": CANARY},
            cwd=ROOT,
        )
    refused = []
    try:
        wait_for_first_step(folder, process, log)
        before = status_of(folder)
        address = json.loads((folder / "cluster.json").read_text())["address"]
        refused = strangers(address)
        scaled = alphadrive("scale", str(folder), "--rollout-workers", "2", "--wait")
        after = status_of(folder)
        standing = alphadrive("stack", str(folder))
        process.send_signal(signal.SIGSTOP)
        try:
            without_driver = alphadrive("stack", str(folder))
        finally:
            process.send_signal(signal.SIGCONT)
        started = psutil.Process(process.pid).children(recursive=True)
        opened = listeners([psutil.Process(process.pid), *started])
        lines = command_lines([psutil.Process(process.pid), *started])
        said = [each.communicate(timeout=60) for each in refused]
        stopped = alphadrive("stop", str(folder))
        process.wait(timeout=60)
    finally:
        process.kill()
        for each in refused:
            each.kill()
    assert_closed_to_others(opened, address)
    assert [each.returncode for each in refused] == [1, 1]
    assert all("inside" not in out and "Failed to connect" in error for out, error in said), said
    token = (Path.home() / ".ray" / "auth_token").read_text()
    for secret in (CANARY, token):
        assert secret not in lines and secret not in log.read_text()
        assert files_with(folder, secret) == []
    assert before["live"] and before["status"] == "running"
    assert {worker["kind"] for worker in before["workers"]} == {"rollout", "reward", "learner"}
    assert after["throughput"]["samples_per_s"] > 0
    assert "rollout workers 1 -> 2" in scaled and "2 rollout workers serving" in scaled
    engines = [worker for worker in after["workers"] if worker["kind"] == "rollout"]
    assert len(engines) == 2 and len({engine["pid"] for engine in engines}) == 2
    assert after["step"] > before["step"]
    workers = [worker["id"] for worker in after["workers"]]
    for shown in (standing, without_driver):
        places = [line.split()[1] for line in shown.splitlines() if line.startswith("== ")]
        assert places[0] == "driver" and {*workers, "control"} <= set(places)
        assert shown.count("VLLM::EngineCore") == 2 and "run_engine_core" in shown, shown
        assert "rewards.variant=random" not in shown  # no arguments of commands: they may hold a key
    assert "asyncio" in standing and f"kill -CONT {process.pid}" not in standing
    assert f"kill -CONT {process.pid}" in without_driver
    assert "interrupted (stopped by `alphadrive stop`)" in stopped and "with a checkpoint" in stopped
    last = json.loads((folder / "status.json").read_text())
    assert CheckpointStore(folder / "checkpoints").latest().step == last["step"] >= after["step"]
    assert process.returncode == 130
    assert [child.pid for child in started if is_alive(child)] == []


def assert_closed_to_others(opened, address):
    """Whatever listens is on loopback, and in the table of SECURITY.md."""
    assert address.startswith("127.0.0.1:")
    assert exposed(opened) == []
    seen = {each.process for each in opened}
    assert seen - documented_processes() == set()
    assert {"gcs_server", "raylet", "ray::RolloutActor", "ray::LearnerActor", "VLLM::EngineCore"} <= seen
