"""Finding every process of a run, and having py-spy look at each on the node that it is on.

    status.json ──ids, pids──▶ targets ◀──pids, nodes── Ray's table of actors
                                  │
                 this machine: here, directly        other nodes: one small Ray task each

Nothing is asked of the run itself: its driver may hang. Where Ray cannot be asked either, the processes of
this machine are shown as `status.json` names them.
"""

import math
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from alphadrive.errors import AlphaDriveError, ClusterError, InputError, RunNotLiveError
from cluster.cluster_file import ClusterFile
from cluster.control import is_actor_of
from cluster.run_client import RunPlace, joined_cluster, raise_if_ended
from cluster.stacks import AT_ONCE, TIMEOUT_S, StackDump, dump_families, dump_processes
from cluster.status import read_status

T = TypeVar("T")

JOIN_TIMEOUT_S = 20.0
"""For Ray to take this process as a driver."""
TABLES_TIMEOUT_S = 20.0
TASK_START_S = 30.0
"""For a node to start a process for the task, beside the time for py-spy."""

KINDS = {
    "RolloutActor": "rollout",
    "RewardActor": "reward",
    "LearnerActor": "learner",
    "RunControl": "control",
}
_ORDER = ("driver", "learner", "rollout", "reward", "control")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A process of the run; `node` is the hex id of its Ray node, None where that is not known."""

    kind: str
    id: str
    pid: int | None
    node: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a worker stands: its own process first, then those it has started. `note`: why there is none."""

    target: Target
    where: str
    dumps: Sequence[StackDump]
    note: str

    @property
    def is_seen(self) -> bool:
        """Whether a stack can be shown of every process."""
        return not self.note and all(dump.stack for dump in self.dumps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """What Ray knows: living actors, living nodes (host by hex id), jobs."""

    actors: Sequence[dict[str, Any]]
    hosts: Mapping[str, str]
    jobs: Sequence[dict[str, Any]]


def look(place: RunPlace, only: str | None, stack: ExitStack) -> tuple[list[Standing], list[str]]:
    """Where every process of a run stands, or that of `only`, and notes for the reader. `stack` keeps this
    process in the run's Ray until it is closed, which may take long where Ray hangs: print first.

    Raises RunNotLiveError for a run of which nothing can be found, InputError for a worker it does not have.
    """
    notes: list[str] = []
    tables = _ask_ray(place, stack, notes)
    targets = find_targets(place, tables)
    ids = [target.id for target in targets]
    if only is not None and only not in ids:
        raise InputError(f"{place}: no worker {only!r}; there are {', '.join(ids)}")
    return stand([target for target in targets if only in (None, target.id)], tables), notes


def find_targets(place: RunPlace, tables: Tables | None) -> list[Target]:
    """Every process of a run: the driver, those its status names, and those of it that Ray knows."""
    status = read_status(place.folder) if place.folder is not None else {}
    file = ClusterFile.read(place.folder) if place.folder is not None else None
    known = [
        Target(kind=worker["kind"], id=worker["id"], pid=worker["pid"], node=worker["node"])
        for worker in status.get("workers") or []
        if worker["state"] != "DEAD"
    ]
    control = _control_of(place, file, tables) if tables is not None else None
    if tables is None or control is None:
        if not status:
            raise RunNotLiveError(f"{place}: no run of this name on the cluster")
        return _ordered([Target(kind="driver", id="driver", pid=status["pid"], node=None), *known])
    pid = next(
        (job["DriverPid"] for job in tables.jobs if job["JobID"] == control["JobID"]), status.get("pid")
    )
    driver = Target(kind="driver", id="driver", pid=pid, node=control["OwnerAddress"]["NodeID"])
    named = {(target.node, target.pid) for target in known}
    found: list[Target] = []
    for actor in tables.actors:
        pid, node = actor["Pid"], actor["Address"]["NodeID"]
        kind = KINDS.get(actor["ActorClassName"])
        if actor["JobID"] != control["JobID"] or not named.isdisjoint([(None, pid), (node, pid)]):
            continue
        is_control = kind == "control"
        name = "control" if is_control else f"{actor['ActorClassName']}-{pid}"
        if name in (target.id for target in found):  # the same number on two nodes
            name = f"{name}-{node[:8]}"
        found.append(Target(kind=kind or "other", id=name, pid=pid, node=node))
    return _ordered([driver, *known, *found])


def stand(targets: Sequence[Target], tables: Tables | None) -> list[Standing]:
    """Look at every target where it is; one that cannot be looked at says why."""
    here: list[Target] = []
    away: dict[str, list[Target]] = {}
    standings: dict[str, Standing] = {}
    for target in targets:
        where = _host(target, tables)
        note = _unreachable(target, tables)
        if note:
            standings[target.id] = Standing(target=target, where=where, dumps=(), note=note)
        elif _is_here(target, tables):
            here.append(target)
        else:
            assert target.node is not None
            away.setdefault(target.node, []).append(target)
    asked = {node: _start_task(node, of_node) for node, of_node in away.items()}
    for target, dumps in _dumped(here).items():
        standings[target.id] = Standing(target=target, where=_host(target, tables), dumps=dumps, note="")
    for node, reference in asked.items():
        standings |= _collect(reference, away[node], tables)
    return [standings[target.id] for target in targets]


def dump_targets(pids: Sequence[int], alone: Sequence[int]) -> dict[int, list[StackDump]]:
    """The task of a node: families of processes, and some without what they have started."""
    together = dump_families([pid for pid in pids if pid not in alone])
    return together | dict(zip(alone, ([dump] for dump in dump_processes(alone)), strict=True))


def _dumped(targets: Sequence[Target]) -> dict[Target, list[StackDump]]:
    found = dump_targets(*_pids(targets))
    return {target: found[target.pid] for target in targets if target.pid is not None}


def _pids(targets: Sequence[Target]) -> tuple[list[int], list[int]]:
    """All pids, and those to be shown alone: what a driver has started is the whole of a local Ray."""
    pids = [target.pid for target in targets if target.pid is not None]
    return pids, [target.pid for target in targets if target.kind == "driver" and target.pid is not None]


def _start_task(node: str, targets: Sequence[Target]) -> Any:
    on_the_node = NodeAffinitySchedulingStrategy(node, soft=False)
    task = ray.remote(dump_targets).options(num_cpus=0, max_retries=0, scheduling_strategy=on_the_node)
    return task.remote(*_pids(targets))


def _collect(reference: Any, targets: Sequence[Target], tables: Tables | None) -> dict[str, Standing]:
    rounds = math.ceil(3 * len(targets) / AT_ONCE)
    limit_s = TASK_START_S + rounds * TIMEOUT_S
    note, found = "", {}
    try:
        found = ray.get(reference, timeout=limit_s)
    except ray.exceptions.GetTimeoutError:
        note = f"its node did not answer in {limit_s:.0f} s"
    except ray.exceptions.RayError as error:
        note = f"its node could not be asked: {str(error).strip().splitlines()[-1]}"
    return {
        target.id: Standing(
            target=target, where=_host(target, tables), dumps=found.get(target.pid, ()), note=note
        )
        for target in targets
    }


def _unreachable(target: Target, tables: Tables | None) -> str:
    """Why a target cannot be looked at; empty when it can."""
    if target.pid is None:
        return "it has no process yet: it waits for a place in the cluster"
    if tables is None:
        return "" if _is_here(target, None) else "not on this machine, or gone; Ray could not be asked"
    if target.node is not None and target.node not in tables.hosts:
        return f"its node {target.node[:8]} is gone"
    return ""


def _is_here(target: Target, tables: Tables | None) -> bool:
    """Whether a process is on this machine. Without Ray: whether one of its number is a worker of Ray."""
    if tables is not None and target.node is not None:
        return tables.hosts.get(target.node) == socket.gethostname()
    try:
        title = " ".join(psutil.Process(target.pid).cmdline())
    except psutil.Error:
        return target.kind == "driver"
    return target.kind == "driver" or title.startswith("ray::")


def _host(target: Target, tables: Tables | None) -> str:
    if target.node is None:
        return ""
    host = tables.hosts.get(target.node) if tables is not None else None
    return f"node {target.node[:8]}" + (f" on {host}" if host else "")


def _control_of(place: RunPlace, file: ClusterFile | None, tables: Tables) -> dict[str, Any] | None:
    """The entry of the run's control actor, by the name that the folder has, else by the run's."""
    for actor in tables.actors:
        if actor["Name"] == file.actor if file is not None else is_actor_of(actor["Name"], place.name):
            return actor
    return None


def _ordered(targets: list[Target]) -> list[Target]:
    def key(target: Target) -> int:
        return _ORDER.index(target.kind) if target.kind in _ORDER else len(_ORDER)

    return sorted(targets, key=key)


def _ask_ray(place: RunPlace, stack: ExitStack, notes: list[str]) -> Tables | None:
    """Join the run's Ray until `stack` is closed, and read its tables; None, with a note, when that fails.

    Raises RunNotLiveError when the run is over, or has no folder and its Ray cannot be asked.
    """
    file = None
    if place.folder is not None:
        file, status = ClusterFile.read(place.folder), read_status(place.folder)
        raise_if_ended(place, status)
        if file is None or file.pid != status["pid"]:
            notes.append("Ray is not up yet, or this run has none: its one process is shown")
            return None
    where = f"Ray of {place}"
    try:
        cluster = joined_cluster(place, file)
        address = _within(JOIN_TIMEOUT_S, lambda: stack.enter_context(cluster), where)
        return _within(TABLES_TIMEOUT_S, lambda: _tables(address), where)
    except AlphaDriveError as error:
        if place.folder is None:
            raise
        words = str(error).removeprefix(f"{place}: ")
        notes.append(
            f"Ray could not be asked ({words}): processes as status.json names them, of this machine"
        )
        return None


def _tables(address: str) -> Tables:
    if address.startswith("ray://"):  # a client has no access to them, a task has
        return ray.get(ray.remote(read_tables).options(num_cpus=0).remote(), timeout=TABLES_TIMEOUT_S)
    return read_tables()


def read_tables() -> Tables:
    """Ray's tables, read at its head."""
    from ray._private import state

    actors = [dict(entry, DeathCause=None) for entry in state.actors(actor_state_name="ALIVE").values()]
    hosts = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    return Tables(actors=actors, hosts=hosts, jobs=list(state.jobs()))


def _within(timeout_s: float, call: Callable[[], T], what: str) -> T:
    """The result of a call that may never return. Raises ClusterError when it does not in time."""
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["result"] = call()
        except BaseException as error:  # handed to the caller
            outcome["error"] = error

    thread = threading.Thread(target=run, name="ray-call", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if thread.is_alive():
        raise ClusterError(f"{what} did not answer in {timeout_s:.0f} s")
    if "error" in outcome:
        error = outcome["error"]
        raise error if isinstance(error, AlphaDriveError) else ClusterError(f"{what}: {error}")
    return outcome["result"]
