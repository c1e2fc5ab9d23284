"""The processes of one side of a comparison: started, stopped, let go and ended together."""

import os
import signal
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil

ROOT = Path(__file__).resolve().parent.parent


class SideError(Exception):
    """A side ended, hung or did another task; the message says which and where its log is."""


@dataclass
class Processes:
    """The processes of one side, started by `command` with everything they print in `log`."""

    log: Path
    roots: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _file: IO[bytes] | None = None

    def start(self, command: list[str], environment: dict[str, str]) -> None:
        """Start one root process."""
        if self._file is None:
            self._file = self.log.open("wb")
        self.roots.append(
            subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=self._file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        )

    def tree(self) -> list[psutil.Process]:
        """All living processes, parents first."""
        found: list[psutil.Process] = []
        for root in self.roots:
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(root.pid)
                found += [process, *process.children(recursive=True)]
        return found

    def pause(self) -> None:
        """Stop all of them."""
        _send(self.tree(), signal.SIGSTOP)

    def resume(self) -> None:
        """Let all of them go on."""
        _send(self.tree(), signal.SIGCONT)

    def check(self) -> None:
        """Raise SideError when a root process has ended."""
        for root in self.roots:
            if root.poll() is not None:
                tail = self.log.read_text(errors="replace")[-2000:]
                raise SideError(f"{root.args} ended with code {root.returncode}; see {self.log}:\n{tail}")

    def close(self, patience_s: float = 0.0) -> None:
        """Kill all of them; with patience, ask the roots to end first (SIGINT)."""
        tree = self.tree()
        _send(tree, signal.SIGCONT)
        if patience_s:
            for root in self.roots:
                with suppress(ProcessLookupError):
                    root.send_signal(signal.SIGINT)
            for root in self.roots:
                with suppress(subprocess.TimeoutExpired):
                    root.wait(patience_s)
        _send(tree, signal.SIGKILL)
        for root in self.roots:
            root.wait()
        if self._file is not None:
            self._file.close()

    def processor_seconds(self) -> dict[str, float]:
        """Seconds of processor so far, by kind of process."""
        seconds: dict[str, float] = {}
        for process in self.tree():
            with suppress(psutil.NoSuchProcess):
                kind = kind_of(process.name(), process.cmdline())
                seconds[kind] = seconds.get(kind, 0.0) + sum(process.cpu_times()[:2])
        return seconds


def _send(processes: Iterable[psutil.Process], number: int) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def kind_of(name: str, command: list[str]) -> str:
    """What a process is for, by the title it gives itself."""
    words = " ".join([name, *command])
    for mark, kind in (
        ("RolloutActor", "rollout actor"),
        ("EngineCore", "engine"),
        ("LearnerActor", "learner"),
        ("RewardActor", "reward worker"),
        ("alphadrive.cli", "driver"),
        ("peer_trl_worker", "trainer"),
    ):
        if mark in words:
            return kind
    return "ray"


def difference(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Seconds spent between two readings, by kind."""
    return {kind: seconds - before.get(kind, 0.0) for kind, seconds in after.items()}
