"""Where processes stand: real ones, sleeping, stopped, gone, out of reach."""

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from alphadrive.cli import run as run_command
from alphadrive.config import default_config, save_config
from alphadrive.errors import RunNotLiveError
from cluster import stacks
from cluster.run_client import RunPlace
from cluster.stack_client import Tables, Target, find_targets, stand
from cluster.stacks import dump_families, dump_process

HANGING = """\
import subprocess, sys, time

def waits_for_a_batch():
    print("up", flush=True)
    time.sleep(600)

if "with-child" in sys.argv:
    child = subprocess.Popen([sys.executable, __file__])
waits_for_a_batch()
"""


@pytest.fixture
def hanging(tmp_path):
    """Starts Python processes that hang in `waits_for_a_batch`, and ends them with what they have started."""
    script = tmp_path / "hanging.py"
    script.write_text(HANGING)
    started = []

    def start(*arguments):
        command = [sys.executable, str(script), *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        for _ in range(1 + len(arguments)):
            assert process.stdout.readline() == "up\n"
        return process

    yield start
    for process in started:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children():
                child.kill()
            process.kill()
        process.wait()


def script(text):
    """A program that anybody may run."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    file = folder / "py-spy"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return file


def run_folder(path, pid, workers=()):
    """A run as one process without Ray leaves it while it goes on."""
    path.mkdir()
    save_config(default_config([]), path / "config.yaml")
    fields = {
        "status": "running", "stage": "grpo", "pid": pid, "host": socket.gethostname(),
        "started_s": time.time(), "updated_s": time.time(), "workers": list(workers),
    }  # fmt: skip
    (path / "status.json").write_text(json.dumps(fields))
    return path


def test_a_process_and_what_it_has_started_are_shown_where_they_stand(hanging):
    process = hanging("with-child")
    own, child = dump_families([process.pid])[process.pid]
    assert own.pid == process.pid and child.pid != process.pid
    for dump in (own, child):
        assert "waits_for_a_batch (hanging.py:5)" in dump.stack and dump.note == ""
        assert "with-child" not in f"{dump.title}{dump.stack}"  # no arguments: they may hold a key


def test_a_stopped_process_is_shown_and_said_to_be_stopped(hanging):
    process = hanging()
    process.send_signal(signal.SIGSTOP)
    while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
        time.sleep(0.01)
    dump = dump_process(process.pid)
    assert "waits_for_a_batch" in dump.stack and f"kill -CONT {process.pid}" in dump.note
    assert psutil.Process(process.pid).status() == psutil.STATUS_STOPPED


def test_processes_that_are_gone_or_have_ended_are_said_to_be(hanging):
    process = hanging()
    process.kill()
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert "has ended" in dump_process(process.pid).note
    process.wait()
    gone = dump_process(process.pid)
    assert gone.note == "its process is gone" and gone.stack == ""


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root to be another user")
def test_another_user_is_told_what_permission_is_missing(hanging, monkeypatch):
    program = script('exec setpriv --reuid 65534 --clear-groups "$(dirname "$0")/real" "$@"')
    shutil.copy(stacks.py_spy(), program.with_name("real"))
    monkeypatch.setattr(stacks, "py_spy", lambda: program)
    dump = dump_process(hanging().pid)
    shutil.rmtree(program.parent)
    assert dump.stack == "" and "ptrace_scope" in dump.note and "SYS_PTRACE" in dump.note


def test_a_process_that_cannot_be_looked_at_in_time_does_not_hold_the_others_up(hanging, monkeypatch):
    first, second = hanging(), hanging()
    program = script(f'case "$3" in {first.pid}) exec sleep 60;; esac; exec {stacks.py_spy()} "$@"')
    monkeypatch.setattr(stacks, "py_spy", lambda: program)
    slow, other = stacks.dump_processes([first.pid, second.pid], timeout_s=1.0)
    shutil.rmtree(program.parent)
    assert slow.note == "py-spy gave no answer in 1 s" and slow.stack == ""
    assert "waits_for_a_batch" in other.stack


def test_the_command_shows_a_run_in_one_process_and_says_what_it_could_not_see(tmp_path, hanging, capsys):
    process = hanging()
    worker = {"kind": "rollout", "id": "engine-0", "pid": process.pid, "node": "ab" * 28, "state": "SERVING"}
    waiting = worker | {"id": "engine-1", "pid": None, "node": None, "state": "STARTING"}
    folder = run_folder(
        tmp_path / "r", process.pid, [worker, waiting, worker | {"state": "DEAD", "id": "old"}]
    )
    assert run_command(["stack", str(folder)]) == 1
    shown = capsys.readouterr().out
    assert "Ray is not up yet, or this run has none" in shown
    assert f"== driver (driver)  pid {process.pid}" in shown and "waits_for_a_batch" in shown
    assert "== engine-0 (rollout)" in shown and "not on this machine, or gone" in shown
    assert "== engine-1 (rollout)\n  it has no process yet" in shown and "old" not in shown
    assert run_command(["stack", str(folder), "--worker", "driver"]) == 0
    assert "engine-0" not in capsys.readouterr().out
    assert run_command(["stack", str(folder), "--worker", "w9"]) == 2
    assert "no worker 'w9'; there are driver, engine-0, engine-1" in capsys.readouterr().err


def test_a_run_that_is_over_or_unknown_is_said_to_be(tmp_path, hanging, capsys):
    process = hanging()
    folder = run_folder(tmp_path / "r", process.pid)
    process.kill()
    process.wait()
    assert run_command(["stack", str(folder)]) == 1
    assert "it crashed or was killed" in capsys.readouterr().err
    assert run_command(["stack", str(tmp_path / "none")]) == 2


def actor(name, pid, node, job="01", kind="RewardActor"):
    return {
        "ActorClassName": kind, "Name": name, "JobID": job, "Pid": pid,
        "Address": {"NodeID": node}, "OwnerAddress": {"NodeID": "n1"},
    }  # fmt: skip


TABLES = Tables(
    actors=[
        actor("run-control:r:0123abcd", 11, "n1", kind="RunControl"),
        actor("", 12, "n2"),
        actor("", 13, "n2", kind="RolloutActor"),
        actor("run-control:other:9", 14, "n1", job="02", kind="RunControl"),
        actor("", 15, "n2", job="02"),
    ],
    hosts={"n1": "head", "n2": "worker"},
    jobs=[{"JobID": "01", "DriverPid": 10}, {"JobID": "02", "DriverPid": 20}],
)


def test_rays_tables_alone_tell_the_processes_of_a_run_known_by_its_name():
    found = find_targets(RunPlace(name="r", folder=None, address="head:6379"), TABLES)
    assert [(target.kind, target.id, target.pid, target.node) for target in found] == [
        ("driver", "driver", 10, "n1"),
        ("rollout", "RolloutActor-13", 13, "n2"),
        ("reward", "RewardActor-12", 12, "n2"),
        ("control", "control", 11, "n1"),
    ]
    with pytest.raises(RunNotLiveError, match="no run of this name"):
        find_targets(RunPlace(name="s", folder=None, address="head:6379"), TABLES)


def test_processes_of_the_same_number_on_two_nodes_are_told_apart(tmp_path, hanging):
    of_rays = dataclasses.replace(
        TABLES,
        actors=[*TABLES.actors, actor("", 12, "n3"), actor("", 13, "n3", kind="RolloutActor")],
        hosts=TABLES.hosts | {"n3": "worker-2"},
    )
    found = find_targets(RunPlace(name="r", folder=None, address="head:6379"), of_rays)
    assert len({target.id for target in found}) == len(found) == 6
    standing = {(target.id, target.node) for target in found if target.pid == 12}
    assert standing == {("RewardActor-12", "n2"), ("RewardActor-12-n3", "n3")}
    known = {"kind": "rollout", "id": "engine-0", "pid": 13, "node": "n2", "state": "SERVING"}
    folder = run_folder(tmp_path / "r", hanging().pid, [known])
    found = find_targets(RunPlace(name="r", folder=folder, address="head:6379"), of_rays)
    assert {(target.id, target.node) for target in found if target.pid == 13} == {
        ("engine-0", "n2"),
        ("RolloutActor-13", "n3"),
    }


def test_a_worker_on_a_node_that_is_gone_is_told():
    lost = Target(kind="rollout", id="engine-0", pid=13, node="n9")
    (standing,) = stand([lost], TABLES)
    assert standing.note == "its node n9 is gone" and not standing.is_seen


@pytest.mark.ray
def test_processes_of_another_node_are_looked_at_by_a_task_there(small_ray, monkeypatch):
    import ray

    from cluster.actors import where
    from cluster.stack_client import read_tables

    @ray.remote(num_cpus=0)
    class Worker:
        def where(self):
            return where()

    worker = Worker.remote()
    pid, node = ray.get(worker.where.remote(), timeout=60)
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    targets = [
        Target(kind="reward", id="w0", pid=pid, node=node),
        Target(kind="reward", id="w1", pid=2**22 - 1, node=node),
    ]
    seen, gone = stand(targets, read_tables())
    assert "MainThread" in seen.dumps[0].stack and seen.is_seen and node[:8] in seen.where
    assert gone.dumps[0].note == "its process is gone" and not gone.is_seen


@pytest.mark.ray
def test_doctor_reaches_a_ray_with_its_token_and_names_a_wrong_one(small_ray, monkeypatch, tmp_path):
    import ray

    from alphadrive.doctor.check import Status
    from alphadrive.doctor.cluster import check_ray

    address = ray.get_runtime_context().gcs_address
    reached = check_ray(address)
    assert reached.status is Status.OK and "1 nodes, ray 2.60.0" in reached.found
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
    wrong = check_ray(address)
    assert wrong.status is Status.FAIL and "RAY_AUTH_TOKEN" in wrong.remedy
    assert "wrong" not in wrong.found.split()
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    without = check_ray(address)
    assert without.status is Status.FAIL and "token" in without.found
