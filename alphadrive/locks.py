"""One writer a folder: a lock that the system gives up when its process dies, however it dies.

Taken by run folders, by `alphadrive distill` and by `alphadrive data split`.
"""

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from alphadrive.errors import RunFolderError

LOCK_FILE = ".lock"

log = logging.getLogger(__name__)


def take_lock(folder: Path, busy: str) -> IO[str]:
    """Make the folder and hold its lock for as long as the returned file is open.

    `busy` is what to say when another process holds it: what that process does, and what to do.
    Raises RunFolderError then, and when the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK_FILE).open("a", encoding="utf-8")
    except OSError as error:
        raise RunFolderError(f"{folder}: cannot write the folder: {error}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise RunFolderError(f"{folder}: {busy}") from None
    except OSError as error:
        log.warning("%s: this file system has no locks (%s); start this only once", folder, error)
    return file


@contextmanager
def wait_for_lock(path: Path) -> Iterator[None]:
    """Hold a lock file, made where needed, for the length of the block; waits for who holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            log.warning("%s: this file system has no locks (%s)", path, error)
        yield
