"""Where the ranks of a learner find each other: a file on a machine of their own, else a port of rank 0's.

The port that torch opens for it is open to the whole network whatever address it is given, asks for nothing,
and hands out and takes what the ranks agree on. A file in memory, readable by its owner, does the same.
"""

import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from cluster import launch
from cluster.actors import Meeting
from rollout.environment import LOOPBACK

_FILE = "file://"


def meeting_point(meetings: Sequence[Meeting], run_path: Path) -> str:
    """Where ranks at these places meet; `run_path` is their run's folder. Each call gives another one."""
    addresses = {meeting.address for meeting in meetings}
    if addresses <= set(LOOPBACK):  # a private cluster: see `cluster.private_cluster`
        return point_on_this_machine(run_path)
    host = LOOPBACK[0] if len(addresses) == 1 else meetings[0].address
    return f"tcp://{f'[{host}]' if ':' in host else host}:{meetings[0].port}"


def point_on_this_machine(run_path: Path) -> str:
    """A new file for the ranks of a run on this machine, named so that it is removed with the run's weights
    files whatever becomes of the run."""
    prefix = launch.scratch_prefix(run_path)
    path = launch.WEIGHTS_FOLDER / f"{prefix}-ranks-{secrets.token_hex(8)}"
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    return f"{_FILE}{path}"


def leave(point: str) -> None:
    """Remove the file of a meeting point, where it is one."""
    if point.startswith(_FILE):
        Path(point.removeprefix(_FILE)).unlink(missing_ok=True)
