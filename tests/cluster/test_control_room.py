"""The door of a run on a real Ray: asked from other processes while a run without workers goes on."""

import asyncio
import dataclasses
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import ray
from fake_pools import FakePool

from alphadrive.config import Config
from alphadrive.run_folder import RunFolder
from alphadrive.types import WeightVersion
from cluster.buffer import SlotBuffer
from cluster.cluster_file import ClusterFile
from cluster.control_room import control_room
from cluster.launch import Attempt
from cluster.placement import Placement
from cluster.progress import RunProgress
from cluster.status import RunStatus
from cluster.stopping import StopSignals
from cluster.watched import Watched

pytestmark = pytest.mark.ray

PLACEMENT = Placement(
    cpus_per_engine=1.0, gpus_per_engine=0.0, cpus_per_rank=1.0, gpus_per_rank=0.0, threads_per_rank=1
)


def make_attempt(tmp_path, stage="grpo"):
    config = Config()
    config.run.root, config.run.name, config.run.tensorboard = str(tmp_path), "first", False
    config.rollout.autoscale.min, config.rollout.autoscale.max = 1, 4
    run = RunFolder.create(config)
    return Attempt(
        config=config,
        run=run,
        model_folder=tmp_path,
        checkpoint=None,
        saved={},
        version=WeightVersion(0, 0),
        status=RunStatus(run, stage, 1000, 0),
        progress=RunProgress(stage, 1000, may_be_live=False),
        stop=StopSignals(grace_s=30),
        placement=PLACEMENT,
        watched=Watched(rollouts=FakePool("rollout", 1), rewards=FakePool("reward", 1)),
    )


async def train(attempt):
    """Steps of 50 ms until it is stopped, then a checkpoint; a wanted worker serves two seconds later."""
    stopping = asyncio.Event()
    attempt.stop.on_stop = stopping.set
    attempt.watched.buffer = SlotBuffer(4, 4000)
    attempt.status.write(status="running")
    pool, step, hired_s = attempt.watched.rollouts, 0, None
    while not stopping.is_set():
        await asyncio.sleep(0.05)
        step += 1
        attempt.status.note(step=step, weight_version=f"0.{step}")
        if pool.num_serving < pool.num_wanted:
            hired_s = hired_s or time.monotonic()
            if time.monotonic() - hired_s > 2.0:
                pool.num_serving, hired_s = pool.num_wanted, None
    attempt.status.note(checkpoint_step=step)


def with_door(attempt, visit):
    """Run `visit` while the attempt trains; returns what it returned, when both are over."""

    async def main():
        with attempt.stop:
            async with control_room(attempt):
                training = asyncio.create_task(train(attempt))
                await asyncio.sleep(1.5)
                result = await visit()
                if not attempt.stop.was_asked:
                    attempt.stop.ask("stopped by Ctrl-C")
                await training
                return result

    return asyncio.run(asyncio.wait_for(main(), 240))


async def alphadrive(*arguments):
    """The program as from another terminal: without what the driver has put into its environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "alphadrive.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        cwd=Path(__file__).parents[2],
    )


def ray_workers():
    """Processes of Ray's workers on this machine that belong to this test's cluster."""
    children = psutil.Process().children(recursive=True)
    return {child.pid for child in children if "ray::" in " ".join(child.cmdline()[:1])}


def test_another_process_looks_scales_and_stops_and_the_run_does_not_notice(small_ray, tmp_path):
    attempt = make_attempt(tmp_path)
    folder = str(attempt.run.path)
    address = ray.get_runtime_context().gcs_address

    async def visit():
        by_folder = await alphadrive("status", folder, "--json")
        workers = ray_workers()
        by_name = await alphadrive("status", "first", "--address", address)
        scaled = await alphadrive("scale", folder, "--rollout-workers", "2", "--wait")
        after = await alphadrive("status", folder, "--json")
        assert ray_workers() == workers
        stopped = await alphadrive("stop", folder, "--no-wait")
        while not attempt.stop.was_asked:
            await asyncio.sleep(0.1)
        return by_folder, by_name, scaled, after, stopped

    by_folder, by_name, scaled, after, stopped = with_door(attempt, visit)
    told = json.loads(by_folder.stdout)
    assert (told["live"], told["status"], told["stage"], told["steps"]) == (True, "running", "grpo", 1000)
    assert told["step"] > 0 and told["weight_version"].startswith("0.")
    assert told["buffer"] == {"slots": 4, "held": 0, "ready": 0}
    assert told["wanted"] == {"rollout": 1, "reward": 1}
    assert [(worker["kind"], worker["id"], worker["state"]) for worker in told["workers"]] == [
        ("rollout", "rollout-0", "SERVING"),
        ("reward", "reward-0", "SERVING"),
    ]
    assert set(told["workers"][0]) == {
        "kind",
        "id",
        "pid",
        "node",
        "state",
        "weight_version",
        "groups_done",
        "last_progress_s",
    }
    assert by_folder.stderr == by_name.stderr == ""
    assert by_name.returncode == 0 and "first: running" in by_name.stdout
    assert scaled.returncode == 0, scaled.stderr
    lines = scaled.stdout.splitlines()
    assert lines[0] == f"{folder}: rollout.autoscale is set aside until the end of the run"
    assert lines[1] == f"{folder}: rollout workers 1 -> 2"
    assert lines[2] == "  1 rollout worker starting"
    assert lines[-1] == f"{folder}: 2 rollout workers serving"
    assert attempt.watched.rollouts.resizes == [2]
    assert json.loads(after.stdout)["autoscale"]["is_on"] is False
    assert stopped.returncode == 0


def test_what_the_cluster_has_no_room_for_is_told_and_asked_of_ray(small_ray, tmp_path):
    """The second worker is a real actor that asks for more CPUs than there are."""
    attempt = make_attempt(tmp_path)
    attempt.placement = dataclasses.replace(PLACEMENT, cpus_per_engine=1000.0)

    async def visit():
        idle = ray.remote(num_cpus=1000)(type("Idle", (), {})).remote()
        attempt.watched.rollouts.resize(2)
        attempt.watched.rollouts.num_serving = 1
        while not any("needs" in entry for entry in attempt.status.fields.get("pending", [])):
            attempt.watched.rollouts.num_serving = 1
            await asyncio.sleep(0.05)
        del idle
        return attempt.status.fields["pending"]

    waiting = {"kind": "rollout", "count": 1, "what": "waiting", "needs": {"CPU": 1000.0}}
    assert with_door(attempt, visit) == [waiting]


def test_stop_waits_for_the_last_word_of_the_run(small_ray, tmp_path):
    attempt = make_attempt(tmp_path, stage="sft")
    address = ray.get_runtime_context().gcs_address

    async def main():
        with attempt.stop:
            async with control_room(attempt):
                training = asyncio.create_task(train(attempt))
                other = ["no-such", "--address", address, "--rollout-workers", "2"]
                refused = await alphadrive("scale", *other)
                stopping = asyncio.create_task(alphadrive("stop", "first", "--address", address))
                await training
            return await stopping, refused

    stopped, refused = asyncio.run(asyncio.wait_for(main(), 240))
    assert stopped.returncode == 0, stopped.stderr
    step = attempt.status.fields["step"]
    words = f"first: interrupted (stopped by `alphadrive stop`) after step {step} of 1000, with a checkpoint"
    assert words in stopped.stdout
    assert attempt.stop.reason == "stopped by `alphadrive stop`"
    assert refused.returncode == 1 and "no run of this name on the cluster" in refused.stderr


def test_the_file_says_where_and_when_it_ended_and_no_token(small_ray, tmp_path):
    attempt = make_attempt(tmp_path)
    folder = attempt.run.path

    async def visit():
        file = ClusterFile.read(folder)
        assert stat.S_IMODE((folder / "cluster.json").stat().st_mode) == 0o600
        token = Path.home() / ".ray" / "auth_token"
        if token.is_file():
            assert token.read_text() not in (folder / "cluster.json").read_text()
        return file

    file = with_door(attempt, visit)
    assert (file.run, file.namespace, file.pid, file.ended_s) == ("first", "alphadrive", os.getpid(), None)
    assert file.address == ray.get_runtime_context().gcs_address
    assert ClusterFile.read(folder).ended_s > file.started_s


def test_a_control_actor_that_is_killed_is_replaced_and_remembers_what_was_wished(
    small_ray, tmp_path, monkeypatch
):
    monkeypatch.setattr("cluster.control_room.RESPAWN_EVERY_S", 0.0)
    attempt = make_attempt(tmp_path)
    folder = attempt.run.path

    async def visit():
        first = ClusterFile.read(folder).actor
        control = ray.get_actor(first)
        await control.scale.remote(3, None)
        while attempt.watched.rollouts.num_wanted != 3:
            await asyncio.sleep(0.1)
        ray.kill(control)
        while (second := ClusterFile.read(folder).actor) == first:
            await asyncio.sleep(0.1)
        while not (told := await ray.get_actor(second).status.remote()):
            await asyncio.sleep(0.1)
        await asyncio.sleep(1.5)
        return told

    assert with_door(attempt, visit)["wanted"]["rollout"] == 3
    assert attempt.watched.rollouts.resizes == [3]
