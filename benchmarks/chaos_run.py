"""The run that is put to the test: a real GRPO run on a Ray cluster of three nodes, all on this machine.

    head          no CPUs: the driver and the control actor
    two workers   room for two thirds of the run each: engines, reward workers, learner ranks

The driver is `alphadrive grpo debug … --resume` in a process of its own, as users start it. Everything that
is started belongs to this process, orphans included, so that what is left behind can be told.
"""

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil
from ray._private.node import Node
from ray.cluster_utils import Cluster

from alphadrive.config import Config, load_config
from alphadrive.errors import RunFolderError
from cluster.private_cluster import ask_for_token
from cluster.processes import is_alive
from cluster.status import read_status
from cluster.watched import num_in_service
from cluster.workers import WorkerState, WorkerStatus

ROOT = Path(__file__).resolve().parents[1]
NUM_ROWS = 64
CPUS_OF_A_NODE = 2
SYSTEM = {"gcs_rpc_server_reconnect_timeout_s": 600}
"""Ray ends every process that has not reached the head for 60 s, which a busy machine may cost it."""
NODE_TRIES = 6
NODE_BACK_S = 5.0
"""A node that was lost is followed by a new one so much later."""
PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How many workers the run has."""

    engines: int = 2
    rewards: int = 2
    ranks: int = 1

    def wanted(self) -> dict[str, int]:
        """By the kinds of the run's status."""
        return {"rollout": self.engines, "reward": self.rewards, "learner": self.ranks}


def keys_of(folder: Path, size: Size, seed: int) -> list[str]:
    """The run's configuration: small, without end, found out about soon."""
    rank_cpus = 1.0 / size.ranks
    return [
        f"seed={seed}",
        f"data.train={folder / 'train'}",
        "data.eval=null",
        f"run.root={folder}",
        "run.name=chaos",
        "run.tensorboard=false",
        "rewards.variant=random",
        "grpo.steps=1000000",
        "grpo.group_size=4",
        "grpo.groups_per_step=4",
        "grpo.max_new_tokens=24",
        "grpo.learning_rate=1e-5",
        "eval.every_steps=0",
        "checkpoint.every_steps=3",
        f"rollout.num_workers={size.engines}",
        "rollout.cpus_per_worker=1",
        "rollout.hang_timeout_s=45",
        "rollout.sync_timeout_s=45",
        "rollout.max_restarts=9",
        f"rewards.num_workers={size.rewards}",
        "rewards.timeout_s=20",
        f"learner.num_ranks={size.ranks}",
        f"learner.cpus_per_rank={rank_cpus:g}",
        "learner.hang_timeout_s=45",
        "learner.max_restarts=9",
    ]


class Nodes:
    """The cluster. A node that is lost is replaced by `tend`, a little later."""

    def __init__(self) -> None:
        ask_for_token()
        self._cluster = Cluster()
        self._add(num_cpus=0, include_dashboard=False, _system_config=SYSTEM)
        self._due_s: list[float] = []
        for _ in range(2):
            self._add(num_cpus=CPUS_OF_A_NODE)

    @property
    def address(self) -> str:
        """Ray's."""
        return str(self._cluster.address)

    @property
    def is_whole(self) -> bool:
        """Whether no node is missing."""
        return not self._due_s

    def workers(self) -> list[Node]:
        """The nodes that may be lost."""
        return sorted(self._cluster.worker_nodes, key=lambda node: str(node.node_id))

    def lose(self, node: Node) -> None:
        """Kill all processes of a node at once."""
        self._cluster.remove_node(node, allow_graceful=False)
        self._due_s.append(time.monotonic() + NODE_BACK_S)

    def tend(self) -> None:
        """Add the nodes that are due. In the main thread only: Ray sets signal handlers."""
        while self._due_s and time.monotonic() >= self._due_s[0]:
            self._add(num_cpus=CPUS_OF_A_NODE)
            self._due_s.pop(0)

    def shutdown(self) -> None:
        """End the cluster."""
        self._cluster.shutdown()

    def _add(self, **options: Any) -> None:
        """Add a node. Ray gives its processes 30 s to start, which a busy machine may not make: so again."""
        cluster = self._cluster
        for tries_left in reversed(range(NODE_TRIES)):
            head, workers, before = cluster.head_node, set(cluster.worker_nodes), set(_ray_processes())
            try:
                cluster.add_node(**options)
                return
            except Exception:  # Ray raises bare Exceptions here
                if not tries_left:
                    raise
                cluster.head_node, cluster.worker_nodes = head, workers
                for process in set(_ray_processes()) - before:
                    with suppress(psutil.NoSuchProcess):
                        process.kill()


def _ray_processes() -> list[psutil.Process]:
    """What this process has started for nodes: Ray's own, no workers."""
    own = ("gcs_server", "raylet", "dashboard", "monitor")
    children = alive(psutil.Process().children())
    return [child for child in children if any(name in command_of(child) for name in own)]


class RunUnderTest:
    """The run: start it, look at it, kill its driver, end it."""

    def __init__(self, folder: Path, nodes: Nodes, size: Size, seed: int) -> None:
        self.size = size
        self.nodes = nodes
        self.log = folder / "driver.log"
        self.folder = folder / "chaos"
        self._keys = keys_of(folder, size, seed)
        self.config: Config = load_config("debug", self._keys)
        ours = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        cluster = {"RAY_ADDRESS": nodes.address, "RAY_AUTH_MODE": "token"}
        self._environment = ours | cluster | {"OMP_NUM_THREADS": "1"}
        self._driver: subprocess.Popen[bytes] | None = None

    @property
    def driver(self) -> "subprocess.Popen[bytes]":
        """The process of the command."""
        assert self._driver is not None
        return self._driver

    def start(self) -> None:
        """Start the command, which goes on with the run where there is something to go on with."""
        with self.log.open("ab") as log:
            self._driver = self._alphadrive("grpo", "debug", *self._keys, "--resume", stderr=log)

    def status(self) -> dict[str, Any]:
        """What the driver wrote last; empty before it wrote anything."""
        with suppress(RunFolderError):
            return read_status(self.folder)
        return {}

    def workers(self, kind: str) -> list[dict[str, Any]]:
        """The workers of a kind that are in service, engines in the middle of a weight update included."""
        return [
            worker
            for worker in self.status().get("workers", [])
            if worker["kind"] == kind and num_in_service([_told(worker)], kind) and is_running(worker["pid"])
        ]

    def is_staffed(self, status: dict[str, Any]) -> bool:
        """Whether as many workers as are wanted serve, by processes that run."""
        told = [
            _told(worker)
            for worker in status.get("workers", [])
            if worker["pid"] and is_running(worker["pid"])
        ]
        wanted = self.size.wanted()
        return all(num_in_service(told, kind) == count for kind, count in wanted.items())

    def ask_to_stop(self, timeout_s: float) -> int:
        """`alphadrive stop`, and its exit code."""
        with self.log.open("ab") as log:
            return self._alphadrive("stop", str(self.folder), stderr=log).wait(timeout_s)

    def driver_must_live(self) -> None:
        """Raises ChildProcessError when the command has ended by itself."""
        if self.driver.poll() is not None:
            raise ChildProcessError(f"the driver ended with {self.driver.returncode}, see {self.log}")

    def _alphadrive(self, *arguments: str, stderr: IO[bytes]) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "alphadrive.cli", *arguments]
        return subprocess.Popen(command, stdout=stderr, stderr=stderr, env=self._environment, cwd=ROOT)


def _told(worker: dict[str, Any]) -> WorkerStatus:
    return WorkerStatus(**worker | {"state": WorkerState(worker["state"])})


def make_data(folder: Path) -> None:
    """Few scenes to train on."""
    synth = ["data", "synth", "--out", str(folder / "train"), "--num", str(NUM_ROWS)]
    subprocess.run([sys.executable, "-m", "alphadrive.cli", *synth], check=True, cwd=ROOT)


def keep_orphans() -> None:
    """Be the parent of all that is started from here on, also of those whose own parent dies."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed; this needs Linux")


def descendants(pid: int | None = None) -> list[psutil.Process]:
    """A process's living descendants (this one's if None)."""
    with suppress(psutil.NoSuchProcess):
        return alive(psutil.Process(pid).children(recursive=True))
    return []


def family(pid: int) -> list[psutil.Process]:
    """A process and its living descendants."""
    with suppress(psutil.NoSuchProcess):
        return alive([psutil.Process(pid), *psutil.Process(pid).children(recursive=True)])
    return []


def alive(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that still run."""
    return [process for process in processes if is_alive(process)]


def command_of(process: psutil.Process) -> str:
    """Its command line; empty when it is gone."""
    with suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


def is_running(pid: int) -> bool:
    """Whether a process is there and not stopped."""
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_STOPPED)
    except psutil.NoSuchProcess:
        return False
