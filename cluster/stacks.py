"""Where the threads of processes on this machine stand, by py-spy: from outside, whatever they are doing.

Neither asks a process anything nor needs it to run: a stopped one is read as it is. Called on every node of a
run by `cluster.stack_client`; `alphadrive doctor` asks whether it may:

    python -m cluster.stacks PID   prints {"note": ..., "is_seen": ...}
"""

import json
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil

from alphadrive.resources import put_our_packages_first

# Here, because a worker imports this module before anything else of ours that a user's folder may hide.
put_our_packages_first()

TIMEOUT_S = 10.0
"""For one process."""
AT_ONCE = 8
"""Processes looked at together."""

_NO_PERMISSION = (
    "may not be looked at: run this as the user of the run; where that is not enough, "
    "`sysctl kernel.yama.ptrace_scope=0` on its host, or the capability SYS_PTRACE for its container"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StackDump:
    """One process. `note` says what is special about it, or why there is no `stack`."""

    pid: int
    title: str
    note: str
    stack: str


def dump_families(pids: Sequence[int], timeout_s: float = TIMEOUT_S) -> dict[int, list[StackDump]]:
    """For each process its stacks, then those of the Python processes it has started (an engine's core)."""
    families = {pid: [pid, *_python_children(pid)] for pid in pids}
    every = [pid for family in families.values() for pid in family]
    dumps = dict(zip(every, dump_processes(every, timeout_s), strict=True))
    return {pid: [dumps[member] for member in family] for pid, family in families.items()}


def dump_processes(pids: Sequence[int], timeout_s: float = TIMEOUT_S) -> list[StackDump]:
    """The stacks of processes, without those that they have started."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda pid: dump_process(pid, timeout_s), pids))


def dump_process(pid: int, timeout_s: float = TIMEOUT_S) -> StackDump:
    """The stacks of one process; never raises for what is wrong with that process."""
    try:
        process = psutil.Process(pid)
        title, state = _title(process), process.status()
    except psutil.NoSuchProcess:
        return StackDump(pid=pid, title="", note="its process is gone", stack="")
    if state == psutil.STATUS_ZOMBIE:
        return StackDump(pid=pid, title=title, note="it has ended, and nobody has collected it", stack="")
    note = ""
    command = [str(py_spy()), "dump", "--pid", str(pid)]
    if state == psutil.STATUS_STOPPED:
        note = f"stopped by a signal (SIGSTOP); `kill -CONT {pid}` on its host lets it go on"
        command.append("--nonblocking")  # it cannot be paused once more
    elif state == psutil.STATUS_TRACING_STOP:
        note = "held by a debugger"
    elif state == psutil.STATUS_DISK_SLEEP:
        note = "waits in the kernel for a disk, a network file system or a driver, and cannot be interrupted"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        said = f"py-spy gave no answer in {timeout_s:g} s"
        return StackDump(pid=pid, title=title, note=_joined(note, said), stack="")
    except OSError as error:
        return StackDump(pid=pid, title=title, note=_joined(note, f"py-spy: {error}"), stack="")
    if done.returncode == 0:
        return StackDump(pid=pid, title=title, note=note, stack=_threads(done.stdout))
    return StackDump(pid=pid, title=title, note=_joined(note, _why_not(done.stderr)), stack="")


def py_spy() -> Path:
    """py-spy as it was installed with this project."""
    return Path(sysconfig.get_path("scripts")) / "py-spy"


def _python_children(pid: int) -> list[int]:
    """The Python processes that a process has started, but for multiprocessing's resource tracker."""
    try:
        children = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []
    found = []
    for child in children:
        try:
            words = " ".join(child.cmdline())
            if "python" in Path(child.exe()).name and "resource_tracker" not in words:
                found.append(child.pid)
        except psutil.NoSuchProcess:
            continue
        except psutil.AccessDenied:
            found.append(child.pid)
    return found


def _title(process: psutil.Process) -> str:
    """What a process calls itself, without its arguments: those may hold what is not for a terminal."""
    try:
        words = process.cmdline()
        return words[0].split()[0] if words and words[0] else process.name()
    except (psutil.AccessDenied, psutil.ZombieProcess):
        return process.name()


def _threads(output: str) -> str:
    """py-spy's output without its head, which repeats the command line."""
    lines = output.splitlines()
    first = next((number for number, line in enumerate(lines) if line.startswith("Thread ")), len(lines))
    return "\n".join(lines[first:]) or "no thread of Python"


def _why_not(stderr: str) -> str:
    if "Permission Denied" in stderr or "Operation not permitted" in stderr:
        return _NO_PERMISSION
    if "No such process" in stderr or "No such file" in stderr:
        return "its process is gone"
    lines = [line.strip() for line in stderr.partition("Stack backtrace")[0].splitlines() if line.strip()]
    return f"py-spy: {'; '.join(lines[:4]) or 'it said nothing'}"


def _joined(*notes: str) -> str:
    return "; ".join(filter(None, notes))


if __name__ == "__main__":
    seen = dump_process(int(sys.argv[1]))
    print(json.dumps({"note": seen.note, "is_seen": bool(seen.stack)}))
