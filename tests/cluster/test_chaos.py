"""Faults on real parts, one after another on one run (`make chaos` goes on with it for half an hour)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm")
pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.e2e]

ROOT = Path(__file__).resolve().parents[2]
FAULTS = ["engine-kill", "reward-kill", "learner-kill", "engine-stop", "driver-kill", "node-loss"]


def test_a_run_outlives_every_kind_of_fault_and_loses_and_repeats_no_group(tmp_path):
    """In a process of its own, which takes in all that it starts, so that nothing can stay behind unseen."""
    report_path = tmp_path / "chaos.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "chaos.py"), "--faults", ",".join(FAULTS)]
    options = ["--every=0", "--baseline=5", "--cap=300", "--seed=3", "--json", str(report_path)]
    done = subprocess.run(
        [*command, *options],
        capture_output=True,
        text=True,
        timeout=1500,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    report = json.loads(report_path.read_text())
    assert report["problems"] == []
    assert report["faults_by_kind"] == dict.fromkeys(FAULTS, 1)
    assert report["recovered"] == len(FAULTS)
    account = report["account"]
    assert (account["lost"], account["repeated"]) == (0, 0)
    assert account["trained"] == 4 * account["steps"] > 0
