"""Runs that were killed and resumed, held against runs that were not (`make resume-test` does more of it)."""

import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from alphadrive.run_folder import read_metrics

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def resume_kills(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return import_module("resume_kills")


def test_runs_on_fakes_killed_at_random_moments_lose_and_repeat_nothing(tmp_path):
    """In a process of its own: what is forked must not have the threads of other tests."""
    command = [sys.executable, str(ROOT / "benchmarks" / "resume_kills.py"), "--kills=6", "--real-kills=0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "resume-test: 6 kills on fakes" in done.stdout and "; 0 problems;" in done.stdout


def debug(resume_kills, folder, name, hash_seed, *more):
    done = subprocess.run(
        [*resume_kills.real_command(folder, name), *more],
        capture_output=True,
        text=True,
        timeout=400,
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@pytest.mark.vllm
@pytest.mark.e2e
def test_a_debug_run_that_resumes_makes_the_same_weights_optimizer_ledger_and_metrics(resume_kills, tmp_path):
    """Four steps at once; then what a kill after the second checkpoint would have left, with the records of
    the later steps still there, and the last two steps again."""
    from resume_compare import learner_differences, rollouts_of, run_differences

    pytest.importorskip("vllm")
    resume_kills.make_data(tmp_path)
    debug(resume_kills, tmp_path, "whole", "1")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    shutil.copytree(whole, killed, symlinks=True)
    for step in (3, 4):
        shutil.rmtree(killed / "checkpoints" / f"step_00000{step}")
    told = debug(resume_kills, tmp_path, "killed", "2", "--resume")
    assert "resuming with another run.name: it was 'whole', now 'killed'" in told
    assert list(run_differences(whole, killed, 4)) == []
    name = "checkpoints/step_000004"
    assert list(learner_differences(whole / name, killed / name)) == []
    assert [line["step"] for line in read_metrics(killed / "metrics.jsonl")] == [1, 2, 3, 4]
    assert [row["ticket"] for row in rollouts_of(killed)] == list(range(8))

    again = debug(resume_kills, tmp_path, "killed", "3", "--resume")
    assert "nothing is left to do" in again
    assert list(run_differences(whole, killed, 4)) == []
