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
from openness import documented_processes, exposed, listeners

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


def started_run(arguments):
    """A run of the command line in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "alphadrive.cli", "grpo", "debug", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def wait_for_status(process, folder, condition):
    wait_for(lambda: condition(status_of(folder)) or process.poll() is not None)
    assert process.poll() is None, process.stderr.read()


def assert_gone(processes, weights_before, timeout_s):
    wait_for(lambda: not any(map(is_alive, processes)), timeout_s)
    assert len(processes) > 5
    assert weights_in_shared_memory() <= weights_before


def learner_pid(process):
    (rank,) = [
        child.pid
        for child in psutil.Process(process.pid).children(recursive=True)
        if "ray::LearnerActor" in " ".join(child.cmdline())
    ]
    return rank


def test_a_run_goes_on_after_the_kill_of_its_learner_ctrl_c_and_the_kill_of_its_driver(scenes, tmp_path):
    from cluster.launch import run_grpo

    weights_before = weights_in_shared_memory()
    folder = tmp_path / "r"
    endless = overrides(scenes, tmp_path, "grpo.steps=500", "checkpoint.every_steps=2")
    process = started_run(endless)
    try:
        wait_for_status(process, folder, lambda status: status["step"] >= 3)
        os.kill(learner_pid(process), signal.SIGKILL)
        wait_for_status(process, folder, lambda status: status["attempt"] == 1)
        restarted = status_of(folder)["attempts"][1]
        wait_for_status(process, folder, lambda status: status["step"] > restarted["from_step"])
        started = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        _, messages = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, messages
    assert "learner lost" in messages and "--resume" in messages
    assert restarted["from_step"] >= 2 and "died" in restarted["cause"]
    assert_gone(started, weights_before, timeout_s=2)
    stopped = status_of(folder)
    assert stopped["status"] == "interrupted"
    assert len(read_metrics(folder / "metrics.jsonl")) == stopped["step"]

    process = started_run([*endless, "--resume"])
    try:
        wait_for_status(process, folder, lambda status: status["step"] >= stopped["step"] + 3)
        started = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.kill()
    process.wait()
    assert_gone(started, weights_before, timeout_s=60)

    last = status_of(folder)["step"] + 2
    config = load_config("debug", overrides(scenes, tmp_path, f"grpo.steps={last}"))
    result = run_grpo(config, resume=True)
    assert (result.status, result.checkpoint.step) == ("finished", last)
    assert [each["attempt"] for each in result.summary["attempts"]] == [0, 1, 2, 3]
    assert [line["step"] for line in read_metrics(folder / "metrics.jsonl")] == list(range(1, last + 1))
    assert (folder / "metrics.jsonl").read_text().count("\n") == last
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
    killed, seen, opened = [], [], set()

    def engine_cores():
        children = psutil.Process().children(recursive=True)
        seen[:] = [child.as_dict(["pid", "name", "cmdline"]) for child in children if is_alive(child)]
        return [child for child in seen if "EngineCore" in " ".join(child["cmdline"] or [])]

    def kill_an_engine():
        wait_for(lambda: status_of(folder)["step"] >= 1)
        wait_for(engine_cores, timeout_s=20)
        opened.update(listeners(psutil.Process().children(recursive=True)))
        killed.append(engine_cores()[0]["pid"])
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_an_engine)
    killer.start()
    more = ["grpo.steps=8", "rollout.num_workers=2", "learner.num_ranks=2", "eval.every_steps=4"]
    config = load_config("debug", overrides(scenes, tmp_path, *more, "learner.zero_stage=2"))
    result = run_grpo(config)
    killer.join()
    assert killed, seen
    assert opened and exposed(opened) == []
    assert {each.process for each in opened} <= documented_processes()
    assert (result.status, result.checkpoint.step) == ("finished", 8)
    counts = result.summary["grpo"]["epochs"]["0"]
    assert counts == {"issued": 32, "trained": 32}
    assert "planning_accuracy" in result.summary["val"]
    assert result.summary["peak_rss_bytes"] > 1 << 30


def test_debug_mode_trains_in_this_one_process_and_a_breakpoint_in_a_reward_is_hit(scenes, tmp_path):
    program = (
        "import psutil, sys, rewards.score, alphadrive.cli\n"
        "me, listening = psutil.Process(), set()\n"
        "inner = rewards.score.random_terms\n"
        "def stopping(num_texts, key):\n"
        "    breakpoint()\n"
        "    listening.update(each.laddr.ip for each in me.net_connections('inet') if not each.raddr)\n"
        "    return inner(num_texts, key)\n"
        "rewards.score.random_terms = stopping\n"
        "sys.breakpointhook = lambda: print('BREAK', __import__('os').getpid())\n"
        "print('MAIN', __import__('os').getpid())\n"
        "code = alphadrive.cli.run(sys.argv[1:])\n"
        "print('LISTENING', *listening)\n"
        "sys.exit(code)\n"
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
    (listening,) = [line.split()[1:] for line in lines if line.startswith("LISTENING")]
    assert set(listening) <= {"127.0.0.1", "::1"}
    assert "What stands in for what" in done.stderr
    assert status_of(tmp_path / "r")["status"] == "finished"
    assert (tmp_path / "r" / "checkpoints" / "step_000002" / "model" / "model.safetensors").is_file()
