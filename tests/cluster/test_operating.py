"""A real run on the shipped tiny model, looked at, grown and ended from another terminal."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from alphadrive.checkpoints import CheckpointStore
from alphadrive.cli import run as run_command
from cluster.processes import is_alive

pytest.importorskip("vllm")
pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.e2e]

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}


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
            env=ENVIRONMENT | {"OMP_NUM_THREADS": "1"},
            cwd=ROOT,
        )
    try:
        wait_for_first_step(folder, process, log)
        before = status_of(folder)
        scaled = alphadrive("scale", str(folder), "--rollout-workers", "2", "--wait")
        after = status_of(folder)
        standing = alphadrive("stack", str(folder))
        process.send_signal(signal.SIGSTOP)
        try:
            without_driver = alphadrive("stack", str(folder))
        finally:
            process.send_signal(signal.SIGCONT)
        started = psutil.Process(process.pid).children(recursive=True)
        stopped = alphadrive("stop", str(folder))
        process.wait(timeout=60)
    finally:
        process.kill()
    assert before["live"] and before["status"] == "running"
    assert {worker["kind"] for worker in before["workers"]} == {"rollout", "reward", "learner"}
    assert before["throughput"]["samples_per_s"] > 0
    assert "rollout workers 1 -> 2" in scaled and "2 rollout workers serving" in scaled
    engines = [worker for worker in after["workers"] if worker["kind"] == "rollout"]
    assert len(engines) == 2 and len({engine["pid"] for engine in engines}) == 2
    assert after["step"] > before["step"]
    workers = [worker["id"] for worker in after["workers"]]
    for shown in (standing, without_driver):
        places = [line.split()[1] for line in shown.splitlines() if line.startswith("== ")]
        assert places[0] == "driver" and {*workers, "control"} <= set(places)
        assert shown.count("VLLM::EngineCore") == 2 and "run_engine_core" in shown
        assert "rewards.variant=random" not in shown  # no arguments of commands: they may hold a key
    assert "asyncio" in standing and f"kill -CONT {process.pid}" not in standing
    assert f"kill -CONT {process.pid}" in without_driver
    assert "interrupted (stopped by `alphadrive stop`)" in stopped and "with a checkpoint" in stopped
    last = json.loads((folder / "status.json").read_text())
    assert CheckpointStore(folder / "checkpoints").latest().step == last["step"] >= after["step"]
    assert process.returncode == 130
    assert [child.pid for child in started if is_alive(child)] == []
