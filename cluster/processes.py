"""The processes of a run: how much memory they hold, and that none outlives it."""

import logging
import threading
import time
from collections.abc import Iterable
from contextlib import suppress

import psutil

logger = logging.getLogger(__name__)

INTERVAL_S = 1.0
EXIT_TIMEOUT_S = 10.0


class ProcessTree:
    """Watches this process and its descendants from a thread, while in a `with` block.

    `peak_bytes` is the largest sum of resident sizes seen; shared libraries count once for each
    process, so it is an upper bound. Descendants are remembered: a process whose parent was killed
    belongs to nobody, but still to the run.
    """

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._seen: set[psutil.Process] = set()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="process-tree", daemon=True)

    def __enter__(self) -> "ProcessTree":
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
