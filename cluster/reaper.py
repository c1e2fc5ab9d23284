"""Ends what a killed driver leaves behind. A script: `python reaper.py PATTERN`, with its orders on stdin.

    PID        a process of the run
    end        the run ended in order: nothing to do
    (the pipe closes without that)  the driver is gone: kill those processes, remove the files that match

A process of its own, because nothing in the driver runs any more after kill -9, and no child of the driver,
because `ray job stop` kills a driver with all its children. It tells its number in a line, uses the standard
library alone and starts in an instant. A process is known by its number and when it started, so that another
one that got its number later is left alone.
"""

import glob
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

SWEEPS = 5
"""One a second: in a cluster that goes on, the learner may outlive its driver by a moment and write one more
file. Over long before the next attempt, which has engines to start first, writes its own."""


def main() -> None:
    """Leave the driver's children, then take orders until there are no more."""
    if os.fork():
        os._exit(0)
    print(os.getpid(), flush=True)
    started: dict[int, int] = {}
    for line in sys.stdin:
        if line == "end\n":
            return
        pid = int(line)
        ticks = _start_ticks(pid)
        if ticks is not None:
            started[pid] = ticks
    for pid, ticks in started.items():
        if _start_ticks(pid) == ticks and not _is_resource_tracker(pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    for _ in range(SWEEPS):
        for name in glob.glob(sys.argv[1], include_hidden=True):
            with suppress(OSError):
                os.unlink(name)
        time.sleep(1)


def _start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return None


def _is_resource_tracker(pid: int) -> bool:
    """Python's own: it ends with the process that it serves, and removes that one's semaphores first."""
    try:
        return b"multiprocessing.resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


if __name__ == "__main__":
    main()
