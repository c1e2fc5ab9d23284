"""`cluster.json` in a run's folder: where the run's control actor can be found. It never holds a token.

Written by the driver when Ray is up (`cluster.control_room`), marked as ended at an orderly end, read by the
commands that talk to the run (`cluster.run_client`). A driver that was killed leaves it as it was.
"""

import dataclasses
import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

from alphadrive.atomic import write_text
from alphadrive.errors import RunFolderError

FILE_NAME = "cluster.json"
_OWNER_ONLY = 0o600


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterFile:
    """`address` is Ray's, `auth_mode` its RAY_AUTH_MODE (the token is not here: Ray looks for it where it
    always does), `pid` the driver's on `host`, times are Unix times."""

    run: str
    address: str
    namespace: str
    actor: str
    job_id: str
    dashboard: str | None
    auth_mode: str
    host: str
    pid: int
    started_s: float
    ended_s: float | None = None

    @classmethod
    def read(cls, run_folder: Path) -> Self | None:
        """The file of a run; None when there is none. Raises RunFolderError when it is not readable."""
        path = run_folder / FILE_NAME
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise RunFolderError(f"{path}: not readable: {error}") from error

    def write(self, run_folder: Path) -> None:
        """Write the file atomically, readable by its owner only."""
        text = json.dumps(dataclasses.asdict(self), indent=2) + "\n"
        write_text(run_folder / FILE_NAME, text, mode=_OWNER_ONLY)

    def as_ended(self) -> Self:
        """The same, marked as ended now."""
        return dataclasses.replace(self, ended_s=round(time.time(), 3))


def has_driver_died(pid: int, host: str | None, started_s: float) -> bool:
    """Whether the process that wrote a run since `started_s` is certainly gone: it was on this machine, and
    no process has its number, or only a younger one."""
    if host != socket.gethostname():
        return False
    try:
        process = psutil.Process(pid)
        return process.create_time() > started_s + 1 or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def this_process() -> dict[str, str | int]:
    """Who writes a run: `host` and `pid`."""
    return {"host": socket.gethostname(), "pid": os.getpid()}
