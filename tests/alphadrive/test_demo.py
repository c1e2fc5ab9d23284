"""`alphadrive demo` and its controls, on a handful of scenes; and Ctrl-C in the middle of it."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from omegaconf import OmegaConf

from alphadrive import demo
from alphadrive.cli import run as run_command
from alphadrive.config import load_config, save_config

pytestmark = [pytest.mark.e2e, pytest.mark.ray, pytest.mark.vllm]

SUMMARY_KEYS = [
    "sft.planning_accuracy",
    "grpo.planning_accuracy",
    "grpo.gain",
    "grpo.gain_ci95",
    "grpo.steps",
    "grpo.samples_per_s",
    "grpo.rollout_tokens_per_s",
    "weight_sync.median_s",
    "canary.max_abs_diff",
    "seconds.data",
    "seconds.sft",
    "seconds.eval",
    "seconds.grpo",
    "seconds.total",
    "peak_rss_bytes",
]
CONTROLS = {
    "sft-equal-prompts",
    "sft-equal-time",
    "sft-recorded",
    "random-reward",
    "blank-image",
    "shuffle-image",
    "majority",
}


@pytest.fixture
def small_demo(tmp_path, monkeypatch):
    """The demo's configuration and data, cut to what takes a minute."""
    small = load_config("demo", ["sft.steps=2", "sft.batch_size=4"])
    small.grpo.steps, small.grpo.groups_per_step = 2, 4
    small.eval.every_steps = 0
    save_config(small, tmp_path / "small.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "CONFIG", str(tmp_path / "small.yaml"))
    monkeypatch.setattr(demo, "NUM_TRAIN", 40)
    monkeypatch.setattr(demo, "NUM_EVAL", 12)
    return tmp_path


def test_demo_and_controls_report_every_figure(small_demo, capfd):
    assert run_command(["demo"]) == 0
    shown = capfd.readouterr().out
    assert "Planning accuracy on 12 held-out scenes" in shown
    summary = OmegaConf.create(json.loads((small_demo / "runs/demo/summary.json").read_text()))
    missing = [key for key in SUMMARY_KEYS if OmegaConf.select(summary, key) is None]
    assert not missing
    assert run_command(["demo", "--controls"]) == 0
    controls = json.loads((small_demo / "runs/demo/controls.json").read_text())
    assert set(controls) == CONTROLS
    drawn = json.loads((small_demo / "runs/demo-random-reward/summary.json").read_text())
    assert controls["random-reward"]["samples"] == drawn["grpo"]["samples"]


def test_ctrl_c_to_the_demo_alone_ends_everything_in_order(small_demo):
    start = (
        "import sys; from alphadrive import demo, cli\n"
        "demo.CONFIG, demo.NUM_TRAIN, demo.NUM_EVAL = sys.argv[1], 40, 12; cli.main(['demo'])"
    )
    command = [sys.executable, "-c", start, demo.CONFIG]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    status = small_demo / "runs/demo-sft/status.json"
    deadline_s = time.monotonic() + 120
    while not status.is_file() and time.monotonic() < deadline_s:
        time.sleep(0.2)
    time.sleep(3)
    started = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert json.loads(status.read_text())["status"] == "interrupted"
    assert not [child for child in started if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
