"""Real runs given to a real Ray cluster by `ray job submit`: a dashboard on loopback, a token asked for."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from alphadrive.checkpoints import CheckpointStore
from alphadrive.cli import run as run_command
from alphadrive.object_store import Store
from cluster.processes import end_processes, is_alive

pytest.importorskip("vllm")
pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.e2e]

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
WORKERS = ("ray::RolloutActor", "ray::RewardActor", "ray::LearnerActor", "ray::RunControl", "EngineCore")
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}


@dataclass(frozen=True)
class Cluster:
    """Where jobs are submitted, what those who submit must have in their environment, the head's process."""

    address: str
    environment: dict[str, str]
    head: psutil.Process

    def job(self, *arguments, environment=None):
        """`ray job ARGUMENTS`, from the checkout's top: the exit code and everything it printed."""
        command, *rest = arguments
        done = subprocess.run(
            [BIN / "ray", "job", command, "--address", self.address, *rest],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            env=self.environment if environment is None else environment,
            cwd=ROOT,
        )
        return done.returncode, done.stdout

    def submit(self, submission_id, *arguments, stop_wait_s=None, wait=True):
        """`ray job submit --working-dir . -- alphadrive grpo configs/debug.yaml ARGUMENTS`."""
        options = ["--submission-id", submission_id, *([] if wait else ["--no-wait"])]
        if stop_wait_s is not None:
            runtime_env = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(stop_wait_s)}}
            options += ["--runtime-env-json", json.dumps(runtime_env)]
        run = ["alphadrive", "grpo", "configs/debug.yaml", *arguments]
        return self.job("submit", *options, "--working-dir", ".", "--", *run)

    def workers(self):
        """Processes of runs in this cluster."""
        named = [(each, " ".join(each.cmdline())) for each in self.head.children(recursive=True)]
        return [each for each, name in named if any(worker in name for worker in WORKERS)]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(condition, timeout_s, explain=lambda: ""):
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, explain()
        time.sleep(0.2)


def answers(address):
    with socket.socket() as probe:
        return probe.connect_ex(address) == 0


@pytest.fixture(scope="module")
def cluster(s3_environment, tmp_path_factory):
    """One node with its dashboard, everything on loopback (where Ray stays only if it is told that there are
    no clusters of several machines). Its folder has a short name, for Ray's sockets."""
    folder = Path(tempfile.mkdtemp(prefix="ad-ray-"))
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    environment = CLEAN | s3_environment
    environment |= {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    dashboard, log = free_port(), folder / "head.log"
    options = ["--head", "--block", "--node-ip-address=127.0.0.1", f"--port={free_port()}"]
    options += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--temp-dir={folder}"]
    options += [f"--ray-client-server-port={free_port()}", f"--dashboard-agent-listen-port={free_port()}"]
    options += ["--num-cpus=2", "--num-gpus=0", f"--object-store-memory={256 << 20}"]
    with log.open("w") as output:
        process = subprocess.Popen(
            [BIN / "ray", "start", *options], stdout=output, stderr=output, env=environment, cwd=folder
        )
    head = psutil.Process(process.pid)
    started = []
    try:
        wait_for(lambda: answers(("127.0.0.1", dashboard)) or process.poll() is not None, 120, log.read_text)
        assert process.poll() is None, log.read_text()
        yield Cluster(f"http://127.0.0.1:{dashboard}", environment, head)
    finally:
        if process.poll() is None:
            started = head.children(recursive=True)
            process.send_signal(signal.SIGTERM)
            process.wait(60)
        end_processes(started)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def scenes(s3_environment, tmp_path_factory):
    """The address of a dataset."""
    folder = tmp_path_factory.mktemp("scenes") / "train"
    assert run_command(["data", "synth", "--out", str(folder), "--num", "40"]) == 0
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_environment.items():
            patch.setenv(name, value)
        store = Store.at("s3://bucket/submitted/train")
        for path in folder.iterdir():
            store.put(path, path.name)
    return "s3://bucket/submitted/train"


def test_without_the_token_nothing_is_submitted(cluster, tmp_path):
    body = json.dumps({"entrypoint": f"touch {tmp_path}/was-run"}).encode()
    for token in (None, secrets.token_hex(32)):
        post = urllib.request.Request(f"{cluster.address}/api/jobs/", data=body, method="POST")
        post.add_header("Content-Type", "application/json")
        if token is not None:
            post.add_header("Authorization", f"Bearer {token}")
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(post, timeout=30)
        assert refused.value.code in (401, 403)
    stranger = CLEAN | {"HOME": str(tmp_path)}
    code, output = cluster.job("submit", "--", "touch", f"{tmp_path}/was-run", environment=stranger)
    assert code != 0 and "Missing authentication token" in output, output
    assert not (tmp_path / "was-run").exists()


def test_paths_that_only_the_job_would_reach_end_it_before_anything_starts(cluster, scenes):
    code, output = cluster.submit("relative", f"data.train={scenes}", "data.eval=null", "eval.every_steps=0")
    assert code == 1, output
    assert "run.root='runs': is relative" in output and "run.root=/shared/runs" in output
    assert cluster.workers() == []


def test_a_killed_job_goes_on_from_its_checkpoint_and_a_stopped_one_from_its_last_step(
    cluster, scenes, tmp_path
):
    from cluster.launch import weights_prefix

    folder = tmp_path / "r"
    overrides = [
        f"data.train={scenes}",
        "data.eval=null",
        f"run.root={tmp_path}",
        "run.name=r",
        "run.tensorboard=false",
        "rewards.variant=random",
        "grpo.group_size=4",
        "grpo.groups_per_step=4",
        "grpo.max_new_tokens=24",
        "eval.every_steps=0",
        "checkpoint.mirror=s3://bucket/submitted/mirror",
    ]

    def status():
        path = folder / "status.json"
        return json.loads(path.read_text()) if path.is_file() else {"status": "none", "step": 0}

    def has_failed():
        return status()["status"] == "failed"

    def log(submission_id):
        return cluster.job("logs", submission_id)[1]

    def stopped_at(submission_id, step):
        """Stop a job once that step is made; it leaves no process and no file in memory behind."""
        wait_for(lambda: status()["step"] >= step or has_failed(), 300, lambda: log(submission_id))
        workers = cluster.workers()
        assert len(workers) >= 4, log(submission_id)
        code, output = cluster.job("stop", submission_id)
        assert code == 0 and "was stopped" in output, output
        wait_for(lambda: not any(map(is_alive, workers)), 30, lambda: str(workers))
        files = f"*{weights_prefix(SimpleNamespace(path=folder))}*"
        wait_for(lambda: not list(Path("/dev/shm").glob(files)), 10, lambda: files)
        assert cluster.head.is_running()
        return log(submission_id)

    # Ray gives it no time: only what came after its last checkpoint is lost.
    every_other = [*overrides, "grpo.steps=500", "checkpoint.every_steps=2"]
    code, output = cluster.submit("killed", *every_other, stop_wait_s=0, wait=False)
    assert code == 0, output
    output = stopped_at("killed", 3)
    assert status()["status"] == "running" and "gives this job 0 s to end" in output
    checkpoint = CheckpointStore(folder / "checkpoints").latest().step
    assert 2 <= checkpoint <= status()["step"] <= checkpoint + 2

    # The same submission again, and time enough: a checkpoint of the last step.
    rarely = [*overrides, "grpo.steps=500", "checkpoint.every_steps=500", "--resume"]
    code, output = cluster.submit("stopped", *rarely, stop_wait_s=120, wait=False)
    assert code == 0, output
    wait_for(lambda: status()["attempt"] == 1 or has_failed(), 120, lambda: log("stopped"))
    output = stopped_at("stopped", checkpoint + 1)
    stopped = status()
    assert (stopped["status"], stopped["reason"]) == ("interrupted", "stopped by SIGTERM"), output
    assert CheckpointStore(folder / "checkpoints").latest().step == stopped["step"] > checkpoint
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, stopped["step"] + 1))
    assert f"grpo {stopped['step']}/500" in output and "s to end, then kills it" not in output

    # As on a disk that is new: what the next submission goes on from is in the bucket.
    shutil.rmtree(folder / "checkpoints")
    code, output = cluster.submit("finished", *overrides, f"grpo.steps={stopped['step']}", "--resume")
    assert code == 0, output
    assert f"checkpoint of step {stopped['step']} fetched from s3://bucket/submitted/mirror/r" in output
    assert "succeeded" in cluster.job("status", "finished")[1]
    assert (status()["status"], status()["step"]) == ("finished", stopped["step"])
    assert cluster.workers() == []
