"""One tiny real run that `alphadrive profile CONFIG` makes, with everything of `profile` on: its spans, its
timeline, its verdict, its figures at Ray's metrics endpoint, torch's trace of a step."""

import gzip
import http.client
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from alphadrive.cli import run as run_command
from alphadrive.profiling.span_file import read_spans
from alphadrive.run_folder import read_metrics
from cluster.live_metrics import METRICS

sys.path.insert(0, str(Path(__file__).parents[1] / "alphadrive"))

from test_live_metrics import exported_names
from trace_rules import assert_nested, lanes_of

pytest.importorskip("vllm")
pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.e2e]

STEPS = 6


@pytest.fixture(scope="module")
def profiled_run(tmp_path_factory):
    """A run's folder, the metrics of ours that Ray has served while it went on, and what was printed."""
    root = tmp_path_factory.mktemp("profiled")
    synth = ["data", "synth", "--out", str(root / "train"), "--num", "40"]
    assert run_command(synth) == 0
    keys = {
        "data.train": root / "train",
        "data.eval": "null",
        "eval.every_steps": 0,
        "run.root": root,
        "run.name": "r",
        "run.tensorboard": "false",
        "rewards.variant": "random",
        "grpo.group_size": 4,
        "grpo.groups_per_step": 4,
        "grpo.max_new_tokens": 24,
        "checkpoint.every_steps": 3,
        "profile.prometheus": "true",
        "profile.torch_steps": "[1]",
    }
    command = ["profile", "debug", f"--steps={STEPS}", *(f"{key}={value}" for key, value in keys.items())]
    served = {}
    with (root / "printed.txt").open("w") as printed, (root / "messages.txt").open("w") as messages:
        process = subprocess.Popen(
            [sys.executable, "-m", "alphadrive.cli", *command],
            stdout=printed,
            stderr=messages,
            env=os.environ | {"OMP_NUM_THREADS": "1", "RAY_metrics_report_interval_ms": "1000"},
        )
        try:
            while process.poll() is None:
                served |= served_by(process.pid)
                time.sleep(0.5)
        finally:
            process.kill()
    assert process.returncode == 0, (root / "messages.txt").read_text()
    return root / "r", served, (root / "printed.txt").read_text()


def served_by(pid):
    """What the metrics endpoint of a run's private Ray says of ours: value by name and tags."""
    text = "".join(answer_of(port) for port in agent_ports(pid))
    return {
        name: float(value)
        for name, value in re.findall(r"^(ray_alphadrive_\S+) (\S+)$", text, flags=re.MULTILINE)
    }


def agent_ports(pid):
    """Where the agent of a run's Ray node listens: its metrics, and what does not speak HTTP."""
    try:
        below = psutil.Process(pid).children(recursive=True)
        agents = [process for process in below if "DashboardAgent" in "".join(process.cmdline())]
        found = [each for agent in agents for each in agent.net_connections("tcp")]
    except psutil.Error:
        return []
    return [each.laddr.port for each in found if each.status == psutil.CONN_LISTEN]


def answer_of(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            return answer.read().decode()
    except (OSError, http.client.HTTPException):
        return ""


def test_the_timeline_has_every_lane_and_its_spans_are_apart_or_nested(profiled_run):
    folder, *_ = profiled_run
    lanes = lanes_of(json.loads((folder / "timeline.json").read_text()))
    for spans in lanes.values():
        assert_nested(spans)
    names = {lane: {name for name, *_ in spans} for lane, spans in lanes.items()}
    assert names["driver", "train loop"] == {"wait", "train", "sync", "checkpoint"}
    assert names["driver", "groups 1"] == {"generate", "reward", "ready", "trained"}
    rank = {"train", "data_wait", "forward", "backward", "step", "export", "canary", "checkpoint"}
    assert names["rank-0", "spans"] == rank | {"torch_trace"}
    assert names["rank-0", "reader"] == {"pack"}
    assert names["engine-0", "spans"] == {"sync", "paused"}
    assert names["engine-0", "groups 1"] >= {"generate"}
    assert names["w0", "spans"] == {"reward"}
    assert "generate" in names["engine-0", "state"] and "train" in names["rank-0", "state"]
    trains = [name for name, *_ in lanes["rank-0", "spans"] if name == "train"]
    assert len(trains) == STEPS


def test_spans_of_all_processes_are_on_one_clock(profiled_run):
    folder, *_ = profiled_run
    recording = read_spans(folder)
    driver = {each.args["step"]: each for each in recording.driver.named("train", lane="loop")}
    assert set(driver) == set(range(1, STEPS + 1))
    for each in recording.tracks["rank-0"].named("train"):
        around = driver[each.args["step"]]
        assert around.start_ns < each.start_ns and each.end_ns < around.end_ns
        assert each.args["flops"] > 0
    asked = {each.args["ticket"]: each for each in recording.driver.named("generate", lane="groups")}
    drawn = recording.tracks["engine-0"].named("generate", lane="groups")
    assert len(drawn) >= STEPS * 4
    for each in drawn:
        around = asked[each.args["ticket"]]
        assert around.start_ns < each.start_ns and each.end_ns < around.end_ns


def test_the_profile_ends_in_a_verdict_and_agrees_with_the_runs_own_metrics(profiled_run, tmp_path, capsys):
    folder, _, printed = profiled_run
    assert re.search(r"^verdict: \w+", printed, flags=re.MULTILINE)
    capsys.readouterr()
    assert run_command(["profile", str(folder), "--plot", str(tmp_path / "p.svg")]) == 0
    text = capsys.readouterr().out
    assert text in printed and (tmp_path / "p.svg").is_file()
    assert run_command(["profile", str(folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert sum(told["loop"].values()) == pytest.approx(1.0)
    for kind in ("rollout", "learner", "reward"):
        workers = told["kinds"][kind]
        assert workers["busy"] + sum(workers["idle"].values()) == pytest.approx(1.0)
    assert 0.0 < told["overlap"] <= 1.0
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if line["step"] >= told["first_step"]]
    lines = lines[: told["num_steps"]]
    updates_s = sum(line["timing_s/update_actor"] for line in lines)
    assert (
        updates_s
        <= told["kinds"]["learner"]["busy"] * told["wall_s"]
        <= told["loop"]["train"] * told["wall_s"]
    )
    syncs_s = sum(line["timing_s/weight_sync"] for line in lines)
    assert 0 < syncs_s <= told["sync_share"] * told["wall_s"]


def test_the_metrics_endpoint_has_served_the_runs_figures(profiled_run):
    _, served, _ = profiled_run
    names = {re.split(r"[{ ]", name)[0] for name in served}
    without = {"alphadrive_validation_accuracy"}
    missing = [name for name in METRICS if not exported_names(name) & names and name not in without]
    assert missing == []
    steps = next(value for name, value in served.items() if name.startswith("ray_alphadrive_steps_total"))
    assert 1 <= steps <= STEPS
    assert all('run="r"' in name for name in served)


def test_torch_has_traced_the_chosen_step(profiled_run):
    folder, *_ = profiled_run
    assert [path.name for path in (folder / "torch").iterdir()] == ["step_000001.json.gz"]
    with gzip.open(folder / "torch" / "step_000001.json.gz", "rt") as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert any(name and name.startswith("aten::") for name in names)
