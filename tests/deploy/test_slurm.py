"""The Slurm script on nodes that are none: programs stand in for Slurm's own, for Ray and for the run."""

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

from alphadrive.cli import parse_arguments
from alphadrive.config import load_config

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"

SLURM = {
    "scontrol": 'if [ "$1" = show ]; then printf "nodeA\\nnodeB\\n"; else echo "$*" >>"$LOG"; fi',
    "getent": "echo 10.0.0.1 STREAM nodeA",
    "srun": 'echo "srun $*" >>"$LOG"; trap "exit 0" TERM; while :; do sleep 0.05; done',
    "python": "echo ${NODES_UP:-2}",
    "alphadrive": """\
{ echo "alphadrive $*"; stat -c "token %a" "$RAY_AUTH_TOKEN_PATH"; wc -c <"$RAY_AUTH_TOKEN_PATH"
  echo "$RAY_ADDRESS $RAY_AUTH_MODE"; echo up; } >>"$LOG"
trap 'sleep 0.3; echo checkpoint >>"$LOG"; exit 143' TERM
while [ ! -e "$LOG.finish" ]; do sleep 0.05; done
exit "$(cat "$LOG.finish")" """,
}


@pytest.fixture
def slurm(tmp_path):
    """Starts the script on two nodes that are none; gives the process and the file of what was called."""
    programs = tmp_path / "venv" / "bin"
    programs.mkdir(parents=True)
    for name, text in SLURM.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)
    log = tmp_path / "log"
    log.touch()
    started = []

    def start(**environment):
        given = {
            "HOME": str(tmp_path), "ALPHADRIVE_VENV": str(programs.parent), "LOG": str(log),
            "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[A-B]",
        }  # fmt: skip
        command = ["bash", str(DEPLOY / "slurm.sbatch"), "grpo", "debug", "run.name=first"]
        process = subprocess.Popen(command, env=os.environ | given | environment, stderr=subprocess.PIPE)
        started.append(process)
        return process, log

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.wait(10)
        process.stderr.close()


def wait_for(log, line):
    deadline_s = time.monotonic() + 60
    while line not in log.read_text().splitlines():
        assert time.monotonic() < deadline_s, log.read_text()
        time.sleep(0.02)


def test_a_slurm_job_starts_ray_behind_a_token_on_every_node_and_ends_with_the_run(slurm, tmp_path):
    process, log = slurm()
    wait_for(log, "up")
    (tmp_path / "log.finish").write_text("3")
    assert process.wait(30) == 3
    said = log.read_text()
    head, worker = sorted(
        (line for line in said.splitlines() if "srun" in line), key=lambda x: "--head" not in x
    )
    assert (
        "--nodelist=nodeA" in head
        and "--labels=pool=learner" in head
        and "--node-ip-address=10.0.0.1" in head
    )
    assert "--nodelist=nodeB" in worker and "--labels=pool=rollout --" in worker
    assert worker.endswith("--address=10.0.0.1:6379")
    (run,) = (line for line in said.splitlines() if line.startswith("alphadrive"))
    assert run.startswith("alphadrive grpo debug run.name=first cluster.learner_pool=pool=learner cluster.ro")
    args = parse_arguments(shlex.split(run)[1:])
    config = load_config(args.config, args.overrides).cluster
    assert args.resume and config.learner_pool == "pool=learner" and config.rollout_pool == "pool=rollout"
    assert "token 600\n64\n10.0.0.1:6379 token\n" in said and "requeue" not in said
    assert list((tmp_path / ".ray").iterdir()) == []


def test_a_slurm_job_whose_time_is_over_ends_with_a_checkpoint_and_is_queued_again(slurm, tmp_path):
    process, log = slurm()
    wait_for(log, "up")
    process.send_signal(signal.SIGUSR1)
    assert process.wait(30) == 143
    assert log.read_text().splitlines()[-2:] == ["checkpoint", "requeue 7"]
    assert list((tmp_path / ".ray").iterdir()) == []


def test_a_slurm_job_that_is_cancelled_ends_with_a_checkpoint_and_stays_away(slurm):
    process, log = slurm()
    wait_for(log, "up")
    process.terminate()
    assert process.wait(30) == 143
    assert log.read_text().splitlines()[-1] == "checkpoint"


def test_with_nodes_of_one_kind_only_no_pool_is_asked_for(slurm, tmp_path):
    process, log = slurm(ALPHADRIVE_LEARNER_NODES="0")
    wait_for(log, "up")
    (tmp_path / "log.finish").write_text("0")
    assert process.wait(30) == 0
    assert "pool=learner" not in log.read_text() and "run.name=first --resume" in log.read_text()


def test_a_slurm_job_whose_nodes_do_not_come_up_says_so(slurm, tmp_path):
    process, log = slurm(NODES_UP="1", ALPHADRIVE_NODES_TIMEOUT_S="0")
    assert process.wait(30) == 1
    assert b"Ray has not come up on all 2 nodes in 0 s" in process.stderr.read()
    assert "alphadrive" not in log.read_text() and list((tmp_path / ".ray").iterdir()) == []
