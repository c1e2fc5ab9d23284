"""The processes of a run: how much memory they hold, and that none outlives it."""

import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Self

import psutil

from cluster import reaper

logger = logging.getLogger(__name__)

INTERVAL_S = 1.0
EXIT_TIMEOUT_S = 10.0


class Reaper:
    """Ends the processes it is told of, and removes the files that match `leftovers`, if this process dies
    before it leaves the `with` block. See `cluster.reaper`."""

    def __init__(self, leftovers: str) -> None:
        self.pid: int | None = None
        """Of the process that does it."""
        self._command = [sys.executable, "-I", "-S", str(Path(reaper.__file__)), leftovers]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        # In a session of its own, so that no Ctrl-C reaches it.
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self.pid = int(self._process.stdout.readline())
        self._process.wait()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._order("end")
        assert self._process is not None and self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        assert self._process.stdout is not None and self.pid is not None
        with self._process.stdout as told:  # nothing more, and its end when the process ends
            if not select.select([told], [], [], EXIT_TIMEOUT_S)[0]:
                with suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)

    def know(self, processes: Iterable[psutil.Process]) -> None:
        """Tell it of processes of the run."""
        for process in processes:
            self._order(str(process.pid))

    def _order(self, line: str) -> None:
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            logger.warning("the process that cleans up after a killed driver is gone")


class ProcessTree:
    """Watches this process and its descendants from a thread, while in a `with` block.

    `peak_bytes` is the largest sum of resident sizes seen; shared libraries count once for each
    process, so it is an upper bound. Descendants are remembered: a process whose parent was killed
    belongs to nobody, but still to the run. `reaper` is told of those that are new.
    """

    def __init__(self, reaper: Reaper | None = None) -> None:
        self.peak_bytes = 0
        self._reaper = reaper
        self._seen: set[psutil.Process] = set()
        self._others: set[psutil.Process] = set()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="process-tree", daemon=True)

    def __enter__(self) -> "ProcessTree":
        self._others = set(psutil.Process().children(recursive=True))
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._is_over.set()
        self._thread.join()

    def descendants(self) -> set[psutil.Process]:
        """All that were ever seen, those of this moment included."""
        return self._seen | set(psutil.Process().children(recursive=True))

    def _watch(self) -> None:
        root = psutil.Process()
        while True:
            current = root.children(recursive=True)
            if self._reaper is not None:
                self._reaper.know(set(current) - self._seen - self._others)
            self._seen.update(current)
            self.peak_bytes = max(self.peak_bytes, _resident_bytes([root, *current]))
            if self._is_over.wait(INTERVAL_S):
                return


def end_processes(processes: Iterable[psutil.Process]) -> None:
    """Wait a little for processes to end by themselves, then end those that did not."""
    deadline_s = time.monotonic() + EXIT_TIMEOUT_S
    alive = [process for process in processes if is_alive(process)]
    while alive and time.monotonic() < deadline_s:
        time.sleep(0.1)
        alive = [process for process in alive if is_alive(process)]
    for process in alive:
        logger.warning("process %d outlived its run; ended", process.pid)
        with suppress(psutil.NoSuchProcess):
            process.kill()


def is_alive(process: psutil.Process) -> bool:
    """Whether a process still runs. One that ended and that nobody waits for (in containers, an orphan)
    does not; nor counts Python's resource tracker, which ends with the process that it serves."""
    try:
        is_tracker = "multiprocessing.resource_tracker" in " ".join(process.cmdline())
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE and not is_tracker
    except psutil.NoSuchProcess:
        return False


def _resident_bytes(processes: Iterable[psutil.Process]) -> int:
    total = 0
    for process in processes:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total
