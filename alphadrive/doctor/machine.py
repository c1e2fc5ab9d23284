"""Checks of what a machine offers: shared memory, disk, open files, clock, ports, its own name."""

import ctypes
import ipaddress
import os
import resource
import shutil
import socket
import tempfile
import time
from pathlib import Path

import psutil

from alphadrive import model_folder
from alphadrive.capacity import OBJECT_STORE_BYTES, check_disk, gib
from alphadrive.config import Config
from alphadrive.doctor.check import Check, Status
from alphadrive.doctor.child import ChildError, ask
from alphadrive.errors import ModelError, ResourceError

SHM = Path("/dev/shm")
FEWEST_FILES, ENOUGH_FILES = 1024, 8192
"""Ray raises the limit to the hard one by itself, and warns below 8192."""
CLOCK_SKEW_S = 2.0
STACKS_TIMEOUT_S = 20.0
HEAD_PORTS = {6379: "Ray", 8265: "Ray's dashboard and jobs", 10001: "Ray clients"}
RAY_PROCESSES = ("gcs_server", "raylet", "ray::", "dashboard", "ray.util.client")
_FEWEST_EPHEMERAL = 5000


def check_shm(weights_bytes: int | None, folder: Path = SHM) -> Check:
    """Shared memory for one version of the weights on its way to engines on this machine, and for Ray's
    objects. `weights_bytes` is None where the model's size is not known."""
    name = str(SHM)
    remedy = (
        "a container: `docker run --shm-size=16g`, in Kubernetes an emptyDir with `medium: Memory` mounted "
        f"at {SHM}; a machine: `mount -o remount,size=16G {SHM}`"
    )
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        return Check(name=name, status=Status.FAIL, found=str(error), expected="a tmpfs", remedy=remedy)
    weights = "weights (size not known here)" if weights_bytes is None else f"{gib(weights_bytes)} of weights"
    expected = f"{weights} + {gib(OBJECT_STORE_BYTES)} of Ray's objects"
    found = f"{gib(usage.total)}, {gib(usage.free)} free"
    if not os.access(folder, os.W_OK):
        status, found = Status.FAIL, f"{found}, not writable"
    elif usage.free < (weights_bytes or 0):
        status = Status.FAIL
    elif usage.free < (weights_bytes or 0) + OBJECT_STORE_BYTES:
        status = Status.WARN
    else:
        status, remedy = Status.OK, ""
    return Check(name=name, status=status, found=found, expected=expected, remedy=remedy)


def check_run_root(config: Config, num_parameters: int | None) -> Check:
    """Room for checkpoints where runs are written, and that it can be written to."""
    name, root = "run.root", Path(config.run.root).absolute()
    folder = next(parent for parent in (root, *root.parents) if parent.exists())
    found = f"{root}: {gib(shutil.disk_usage(folder).free)} free"
    expected = "room for two checkpoints"
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".alphadrive-doctor-"):
            pass
    except OSError as error:
        words = f"{folder} cannot be written to: {error.strerror}"
        remedy = "set run.root to a folder of yours, on a disk that every node reaches"
        return Check(name=name, status=Status.FAIL, found=words, expected=expected, remedy=remedy)
    if num_parameters is None:
        expected = "room for two checkpoints (the model's size is not known here)"
        return Check(name=name, status=Status.OK, found=found, expected=expected)
    try:
        needed = check_disk(config, num_parameters)
    except ResourceError as error:
        remedy = str(error).rpartition("; ")[2]
        words = str(error).rpartition("; ")[0]
        return Check(name=name, status=Status.FAIL, found=words, expected=expected, remedy=remedy)
    expected = f"{gib(needed)} for checkpoints"
    return Check(name=name, status=Status.OK, found=found, expected=expected)


def check_model(config: Config) -> tuple[Check, int | None]:
    """The model as far as it is on this machine, and its number of parameters. Nothing is downloaded, and no
    weights are read: a run verifies its checkpoint itself."""
    name, path = "model.path", config.model.path
    folder = (
        _newest_model(Path(path)) if Path(path).is_dir() or path == model_folder.TINY else _cached(config)
    )
    if folder is None:
        found = f"{path} is neither a folder nor in the cache of the hub"
        remedy = "fetched when a run starts, where the network allows it; or give a folder on a shared disk"
        return Check(name=name, status=Status.WARN, found=found, expected="a model", remedy=remedy), None
    try:
        parameters = model_folder.num_parameters(model_folder.resolve_model(str(folder)))
    except ModelError as error:
        remedy = "give another model, or fetch it again"
        check = Check(name=name, status=Status.FAIL, found=str(error), expected="a model", remedy=remedy)
        return check, None
    found = f"{folder}: {parameters / 1e6:.0f} M parameters"
    return Check(name=name, status=Status.OK, found=found), parameters


def _newest_model(path: Path) -> Path:
    """The model in what may be a run, a checkpoint or a model folder."""
    steps = sorted(path.glob("checkpoints/step_*/model"))
    if steps:
        return steps[-1]
    return path / "model" if (path / "model").is_dir() else path


def _cached(config: Config) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(config.model.path, revision=config.model.revision, local_files_only=True)
        )
    except (OSError, ValueError):
        return None


def check_open_files(limit: int | None = None) -> Check:
    """The limit of open files that Ray's processes get."""
    if limit is None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        limit = max(soft, min(hard, 65536)) if hard != resource.RLIM_INFINITY else 65536
    remedy = "`ulimit -n 65536` before Ray is started; systemd: LimitNOFILE=, docker: --ulimit nofile=65536"
    status = Status.OK if limit >= ENOUGH_FILES else Status.WARN
    if limit < FEWEST_FILES:
        status = Status.FAIL
    expected = f"{ENOUGH_FILES} (65536 on a head node with hundreds of workers)"
    remedy = "" if status is Status.OK else remedy
    return Check(name="open files", status=status, found=str(limit), expected=expected, remedy=remedy)


def check_stacks(pid: int | None = None) -> Check:
    """Whether py-spy may look at processes of this user that it is no child of: at this one, if no other is
    named."""
    name, expected = "py-spy", "may look at this user's processes"
    try:
        seen = ask("cluster.stacks", [str(pid or os.getpid())], STACKS_TIMEOUT_S)
    except ChildError as error:
        seen = {"is_seen": False, "note": str(error)}
    if seen["is_seen"]:
        return Check(name=name, status=Status.OK, found=expected, expected=expected)
    remedy = "a run does not need it; `alphadrive stack` does, on the day that one hangs"
    return Check(name=name, status=Status.WARN, found=str(seen["note"]), expected=expected, remedy=remedy)


def check_clock(config: Config, is_cluster: bool, now_s: float | None = None) -> Check:
    """Whether the clock agrees with that of the disk of `run.root` and, in a cluster, is kept by a time
    server."""
    name, expected = "clock", "kept by a time server, within 2 s of the disk's"
    root = Path(config.run.root).absolute()
    folder = next(parent for parent in (root, *root.parents) if parent.exists())
    remedy = "run chrony or systemd-timesyncd on this host and on the file server; timelines of nodes differ"
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".alphadrive-doctor-") as file:
            skew_s = os.fstat(file.fileno()).st_mtime - (time.time() if now_s is None else now_s)
    except OSError:
        skew_s = 0.0
    if abs(skew_s) > CLOCK_SKEW_S:
        found = f"{folder} is {abs(skew_s):.0f} s {'ahead of' if skew_s > 0 else 'behind'} this machine"
        return Check(name=name, status=Status.WARN, found=found, expected=expected, remedy=remedy)
    kept = _is_clock_kept()
    if kept is None:
        return Check(name=name, status=Status.OK, found="agrees with the disk's", expected=expected)
    found = "kept by a time server" if kept else "kept by nothing that the kernel knows of"
    if not kept and is_cluster:
        return Check(name=name, status=Status.WARN, found=found, expected=expected, remedy=remedy)
    return Check(name=name, status=Status.OK, found=found, expected=expected)


def _is_clock_kept() -> bool | None:
    """What the kernel says (adjtimex); None where it may not be asked."""
    unsynchronised = 5
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(512))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != unsynchronised


def check_ports(ports: dict[int, str] | None = None) -> Check:
    """The fixed ports of a Ray head on this machine, and the range that all else takes a port of."""
    name, taken, others = "ports", [], []
    for port, user in (HEAD_PORTS if ports is None else ports).items():
        holder = _holder(port)
        if holder is None:
            continue
        taken.append(f"{port} by {holder}")
        if not any(word in holder for word in RAY_PROCESSES):
            others.append(f"{port} ({user})")
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    expected = "6379, 8265, 10001 free or Ray's (a head node); thousands of others for workers"
    free = f"{', '.join(taken)} taken" if taken else "6379, 8265, 10001 free"
    found = f"{free}; {low}-{high} for workers"
    if others:
        remedy = (
            f"before this machine is a head: end what listens on {', '.join(others)}, or give `ray start` "
            "other ports; a run that starts its own Ray needs none of them"
        )
        return Check(name=name, status=Status.WARN, found=found, expected=expected, remedy=remedy)
    if high - low < _FEWEST_EPHEMERAL:
        remedy = "`sysctl -w net.ipv4.ip_local_port_range='20000 60999'`"
        return Check(name=name, status=Status.WARN, found=found, expected=expected, remedy=remedy)
    return Check(name=name, status=Status.OK, found=found, expected=expected)


def _holder(port: int) -> str | None:
    """Who listens on a port: the process's name, or `somebody` when that may not be known; None when free."""
    try:
        listening = psutil.net_connections(kind="tcp")
    except (psutil.AccessDenied, OSError):
        listening = []
    for connection in listening:
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port:
            try:
                process = psutil.Process(connection.pid) if connection.pid else None
                return f"{process.name()} ({process.pid})" if process else "somebody else's process"
            except psutil.Error:
                return "somebody else's process"
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return "somebody else's process"
    return None


def check_host_name(host: str | None = None) -> Check:
    """Whether the machine's own name leads to one of its addresses: gloo and NCCL look themselves up."""
    name, host = "host name", host or socket.gethostname()
    expected = "an address of this machine"
    remedy = f"put `{host}` with this machine's address into /etc/hosts, or set GLOO_SOCKET_IFNAME"
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError as error:
        words = f"{host} is not resolved: {error.strerror or error}"
        return Check(name=name, status=Status.FAIL, found=words, expected=expected, remedy=remedy)
    own = {item.address.partition("%")[0] for items in psutil.net_if_addrs().values() for item in items}
    addresses = sorted(str(address) for address in found)
    mine = [a for a in addresses if a in own or ipaddress.ip_address(a).is_loopback]
    words = f"{host} is {', '.join(addresses)}"
    if not mine:
        return Check(name=name, status=Status.WARN, found=words, expected=expected, remedy=remedy)
    return Check(name=name, status=Status.OK, found=words, expected=expected)


def weights_bytes(config: Config, num_parameters: int) -> int:
    """The size of one version of the weights on its way to the engines."""
    return num_parameters * (2 if config.model.dtype == "bfloat16" else 4)
