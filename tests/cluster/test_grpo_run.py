"""Whole GRPO runs with real engines, rewards and learner on the shipped tiny model.

The reward is the random control, so that every group has signal whatever the model answers.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from alphadrive.cli import run as run_command
from alphadrive.config import load_config
from alphadrive.run_folder import read_metrics
from cluster.processes import is_alive

pytest.importorskip("vllm")
pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.e2e]

NUM_ROWS = 40


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    assert run_command(["data", "synth", "--out", str(folder / "train"), "--num", str(NUM_ROWS)]) == 0
    synth_eval = ["data", "synth", "--out", str(folder / "eval"), "--num", "8", "--seed", "9"]
    assert run_command([*synth_eval, "--split", "eval"]) == 0
    return folder


def overrides(scenes, root, *more):
    common = [
        f"data.train={scenes / 'train'}",
        f"data.eval={scenes / 'eval'}",
        f"run.root={root}",
        "run.name=r",
        "run.tensorboard=false",
        "rewards.variant=random",
        "grpo.group_size=4",
        "grpo.groups_per_step=4",
        "grpo.max_new_tokens=24",
        "eval.every_steps=0",
    ]
    return [*common, *more]


def status_of(folder):
    path = folder / "status.json"
    return json.loads(path.read_text()) if path.is_file() else {"status": "none", "step": 0}


def wait_for(condition, timeout_s=400.0):
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "waited too long"
        time.sleep(0.2)


def weights_in_shared_memory():
    return {path.name for path in Path("/dev/shm").glob("*alphadrive*")}


def test_ctrl_c_leaves_no_process_and_a_folder_from_which_the_run_goes_on(scenes, tmp_path):
    from cluster.launch import run_grpo

    shared_before = weights_in_shared_memory()
    command = [sys.executable, "-m", "alphadrive.cli", "grpo", "debug"]
    process = subprocess.Popen(
        [*command, *overrides(scenes, tmp_path, "grpo.steps=500")],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    folder = tmp_path / "r"
    try:
        wait_for(lambda: status_of(folder)["step"] >= 1 or process.poll() is not None)
        assert process.poll() is None, process.stderr.read()
        started = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        _, messages = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, messages
    assert "--resume" in messages
    time.sleep(1.0)
    assert [process.pid for process in started if is_alive(process)] == []
    assert len(started) > 5
    assert weights_in_shared_memory() <= shared_before
    stopped = status_of(folder)
    assert stopped["status"] == "interrupted"
    assert len(read_metrics(folder / "metrics.jsonl")) == stopped["step"]

    last = stopped["step"] + 2
    config = load_config("debug", overrides(scenes, tmp_path, f"grpo.steps={last}"))
    result = run_grpo(config, resume=True)
    assert (result.status, result.checkpoint.step) == ("finished", last)
    assert status_of(folder)["attempt"] == 1
    ledger = json.loads((result.checkpoint.path / "ledger.json").read_text())["queries"]
    ended = Counter(outcome for rows in ledger["open_epochs"].values() for outcome in rows.values())
    for counts in ledger["closed_epochs"].values():
        ended += Counter(counts)
    assert ended == {"trained": 4 * last}
    assert result.summary["grpo"]["max_policy_lag"] <= 1
    assert result.summary["canary"]["max_abs_diff"] < 1e-4


def test_two_engines_and_two_ranks_survive_the_kill_of_an_engine(scenes, tmp_path):
    from cluster.launch import run_grpo

    folder = tmp_path / "r"
    killed, seen = [], []

    def engine_cores():
        children = psutil.Process().children(recursive=True)
        seen[:] = [child.as_dict(["pid", "name", "cmdline"]) for child in children if is_alive(child)]
        return [child for child in seen if "EngineCore" in " ".join(child["cmdline"] or [])]

    def kill_an_engine():
        wait_for(lambda: status_of(folder)["step"] >= 1)
        wait_for(engine_cores, timeout_s=20)
        killed.append(engine_cores()[0]["pid"])
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_an_engine)
    killer.start()
    more = ["grpo.steps=8", "rollout.num_workers=2", "learner.num_ranks=2", "eval.every_steps=4"]
    config = load_config("debug", overrides(scenes, tmp_path, *more, "learner.zero_stage=2"))
    result = run_grpo(config)
    killer.join()
    assert killed, seen
    assert (result.status, result.checkpoint.step) == ("finished", 8)
    counts = result.summary["grpo"]["epochs"]["0"]
    assert counts == {"issued": 32, "trained": 32}
    assert "planning_accuracy" in result.summary["val"]
    assert result.summary["peak_rss_bytes"] > 1 << 30


def test_debug_mode_trains_in_this_one_process_and_a_breakpoint_in_a_reward_is_hit(scenes, tmp_path):
    program = (
        "import sys, rewards.score, alphadrive.cli\n"
        "inner = rewards.score.random_terms\n"
        "def stopping(num_texts, key):\n"
        "    breakpoint()\n"
        "    return inner(num_texts, key)\n"
        "rewards.score.random_terms = stopping\n"
        "sys.breakpointhook = lambda: print('BREAK', __import__('os').getpid())\n"
        "print('MAIN', __import__('os').getpid())\n"
        "sys.exit(alphadrive.cli.run(sys.argv[1:]))\n"
    )
    arguments = ["debug", "debug", *overrides(scenes, tmp_path, "grpo.steps=2")]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=400,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    (main,) = [line.split()[1] for line in lines if line.startswith("MAIN")]
    assert [line.split()[1] for line in lines if line.startswith("BREAK")] == [main] * 8
    assert "What stands in for what" in done.stderr
    assert status_of(tmp_path / "r")["status"] == "finished"
    assert (tmp_path / "r" / "checkpoints" / "step_000002" / "model" / "model.safetensors").is_file()
