"""Talking to a live run from another process: find its control actor, connect to its Ray, ask.

    RUN ──▶ folder with cluster.json, or a name ──▶ Ray's address ──▶ actor `run-control:NAME:…` ──▶ calls

Connecting makes this process one more driver of the run's cluster for a moment: no worker is started for it,
nothing of the run is touched. Called by `alphadrive.run_commands`.
"""

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from alphadrive.errors import ClusterError, RunFolderError, RunNotLiveError
from cluster.authentication import choose_authentication
from cluster.cluster_file import ClusterFile, has_driver_died
from cluster.control import is_actor_of
from cluster.private_cluster import reaching
from cluster.ray_session import NAMESPACE
from cluster.status import ENDED, read_status

PROBE_TIMEOUT_S = 3.0
REPLY_TIMEOUT_S = 10.0
FIRST_STATUS_TIMEOUT_S = 60.0
POLL_S = 0.3
RUNS = Path("runs")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlace:
    """A run as the user named it: by its folder on this machine, or by its name on a cluster. `address` is
    the one that the user gave."""

    name: str
    folder: Path | None
    address: str | None

    def __str__(self) -> str:
        return str(self.folder) if self.folder is not None else self.name


def find_run(run: str, address: str | None) -> RunPlace:
    """The run that a user means by a folder, by a name below `runs`, or, with the address of a cluster
    (or RAY_ADDRESS), by the name it has there.

    Raises RunFolderError when there is neither a folder nor an address.
    """
    for folder in (Path(run), RUNS / run):
        if (folder / "config.yaml").is_file():
            return RunPlace(name=folder.resolve().name, folder=folder, address=address)
    address = address or os.environ.get("RAY_ADDRESS")
    if address and "/" not in run:
        return RunPlace(name=run, folder=None, address=address)
    raise RunFolderError(
        f"no run {run!r}: neither {run} nor {RUNS / run} is a run's folder (with a config.yaml in it); give "
        "the folder, or its name and --address of the Ray cluster it runs on"
    )


class LiveRun:
    """The control actor of a run, asked synchronously."""

    def __init__(self, place: RunPlace, control: Any) -> None:
        self._place = place
        self._control = control

    def status(self) -> dict[str, Any]:
        """The newest status; waits for the first one of a run that starts."""
        deadline_s = time.monotonic() + FIRST_STATUS_TIMEOUT_S
        while not (status := self._ask(self._control.status.remote())):
            if time.monotonic() > deadline_s:
                raise RunNotLiveError(
                    f"{self._place}: its control actor has had no status for {FIRST_STATUS_TIMEOUT_S:.0f} s"
                )
            time.sleep(POLL_S)
        return dict(status)

    def scale(self, rollout_workers: int | None, reward_workers: int | None) -> None:
        """Ask for so many workers."""
        self._ask(self._control.scale.remote(rollout_workers, reward_workers))

    def stop(self) -> None:
        """Ask for an end with a checkpoint."""
        self._ask(self._control.stop.remote())

    def wait_for_end(self, has_died: Callable[[], bool]) -> dict[str, Any]:
        """Wait until the run has ended; returns its last status, empty when it ended without a word.
        `has_died()` is asked every few seconds: a cluster that is gone answers nothing."""
        ended = self._control.ended.remote()
        while True:
            try:
                return dict(ray.get(ended, timeout=REPLY_TIMEOUT_S / 5))
            except GetTimeoutError:
                if has_died():
                    return {}
            except RayActorError:
                return {}

    def _ask(self, reference: Any) -> Any:
        try:
            return ray.get(reference, timeout=REPLY_TIMEOUT_S)
        except GetTimeoutError:
            raise RunNotLiveError(
                f"{self._place}: its control actor did not answer in {REPLY_TIMEOUT_S:.0f} s"
            ) from None
        except RayActorError:
            raise RunNotLiveError(f"{self._place}: it has just ended") from None


@contextmanager
def live_run(place: RunPlace) -> Iterator[LiveRun]:
    """Connect to a run for the length of the block.

    Raises RunNotLiveError when it does not run, with what is known of it, ClusterError when its cluster
    cannot be joined.
    """
    file = None
    if place.folder is not None:
        file = ClusterFile.read(place.folder)
        if place.address is None:
            _raise_if_over(place, file)
    with joined_cluster(place, file) as address:
        yield LiveRun(place, _control_of(place, file, address))


@contextmanager
def joined_cluster(place: RunPlace, file: ClusterFile | None) -> Iterator[str]:
    """Be a driver of the cluster of a run for the length of the block, which gets its address; `file` is the
    run's, where it has a folder. Raises RunNotLiveError when nothing answers there, ClusterError."""
    address = place.address or (file.address if file is not None else None)
    assert address is not None
    _probe(place, address)
    with _joined(address, file.auth_mode if file is not None else None):
        yield address


def driver_has_died(place: RunPlace) -> bool:
    """Whether the process of the run is certainly gone; False where that cannot be known from here."""
    if place.folder is None:
        return False
    status = read_status(place.folder)
    return has_driver_died(status["pid"], status.get("host"), status["started_s"])


def _raise_if_over(place: RunPlace, file: ClusterFile | None) -> None:
    """What the folder alone tells, without a wait for a cluster that is gone."""
    assert place.folder is not None
    status = read_status(place.folder)
    raise_if_ended(place, status)
    state, pid = status["status"], status["pid"]
    if file is None or file.pid != pid:
        process = f"process {pid} on {status.get('host')}"
        raise RunNotLiveError(
            f"{place}: it is starting, Ray is not up yet ({process})"
            if state == "starting"
            else f"{place}: it runs in one process, without Ray (alphadrive debug), so it has no workers and "
            f"cannot be reached; Ctrl-C ends it ({process})"
        )
    if file.ended_s is not None:
        raise RunNotLiveError(f"{place}: it is ending")


def raise_if_ended(place: RunPlace, status: dict[str, Any]) -> None:
    """Raises RunNotLiveError when a run's status tells that nothing of it is left, or its process is gone."""
    if status["status"] in ENDED:
        raise RunNotLiveError(f"{place}: it has ended: {status['status']}{_reason(status)}")
    if driver_has_died(place):
        raise RunNotLiveError(
            f"{place}: it crashed or was killed (its process {status['pid']} is gone); the same command with "
            "--resume goes on from its newest checkpoint"
        )


def _reason(status: dict[str, Any]) -> str:
    return f" ({status['reason']})" if status.get("reason") else ""


def _probe(place: RunPlace, address: str) -> None:
    """Ray tries for half a minute to reach a cluster that is not there; this tells at once."""
    host, colon, port = address.rpartition("/")[2].rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), PROBE_TIMEOUT_S).close()
    except OSError as error:
        raise RunNotLiveError(
            f"{place}: nothing answers at Ray's address {address} ({error}); is this machine able to reach "
            "the cluster, and does the run still go on?"
        ) from None


@contextmanager
def _joined(address: str, auth_mode: str | None) -> Iterator[None]:
    """Be a driver of the cluster at `address`. Raises ClusterError."""
    choose_authentication(address, auth_mode)
    with reaching(address):
        try:
            ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # Ray raises bare Exceptions here
            first_line = str(error).strip().partition("\n")[0]
            raise ClusterError(f"Ray at {address} could not be joined: {first_line}") from error
        try:
            yield
        finally:
            ray.shutdown()


def _control_of(place: RunPlace, file: ClusterFile | None, address: str) -> Any:
    if file is not None:
        try:
            return ray.get_actor(file.actor)
        except ValueError:
            raise RunNotLiveError(f"{place}: not on the cluster at {address} (any more)") from None
    names = [name for name in ray.util.list_named_actors() if is_actor_of(name, place.name)]
    if len(names) == 1:
        return ray.get_actor(names[0])
    if names:
        raise RunFolderError(
            f"{len(names)} runs are called {place.name} on the cluster at {address}; give the folder of one"
        )
    raise RunNotLiveError(f"{place}: no run of this name on the cluster at {address}")
