"""What is done to the run: each fault ends or stops processes, and says which of them must be gone after it.

engine, reward, learner   kill -9 or SIGSTOP of one in service; of an engine its actor or its EngineCore
driver                    kill -9, then the same command again; `damage`: before that the newest
                          checkpoint is cut short, where there is another one
node                      all processes of a node at once; a new node comes a little later
"""

import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass

import psutil
from chaos_run import RunUnderTest, alive, command_of, descendants, family

from alphadrive.checkpoints import CheckpointStore

MIN_CHECKPOINTS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Injected:
    """A fault that was done: `victim` in words, `doomed` the processes that must not outlive it."""

    kind: str
    victim: str
    doomed: tuple[psutil.Process, ...]


class Chaos:
    """Does faults to a run, its victims chosen by `rng`."""

    def __init__(self, run: RunUnderTest, rng: random.Random) -> None:
        self._run, self._rng = run, rng
        self.kinds: dict[str, Callable[[str], Injected]] = {
            "engine-kill": lambda kind: self._signal(kind, "rollout", signal.SIGKILL),
            "engine-stop": lambda kind: self._signal(kind, "rollout", signal.SIGSTOP),
            "reward-kill": lambda kind: self._signal(kind, "reward", signal.SIGKILL),
            "reward-stop": lambda kind: self._signal(kind, "reward", signal.SIGSTOP),
            "learner-kill": lambda kind: self._signal(kind, "learner", signal.SIGKILL),
            "learner-stop": lambda kind: self._signal(kind, "learner", signal.SIGSTOP),
            "driver-kill": lambda kind: self._kill_driver(kind),
            "driver-kill-damage": lambda kind: self._kill_driver(kind, is_damaging=True),
            "node-loss": lambda kind: self._lose_node(kind),
        }

    def do(self, kind: str) -> Injected:
        """Do one fault of a kind."""
        return self.kinds[kind](kind)

    def _signal(self, kind: str, of: str, number: signal.Signals) -> Injected:
        worker = self._rng.choice(self._run.workers(of))
        members = family(worker["pid"])
        target = members[0]
        if of == "rollout":
            cores = [process for process in members if "EngineCore" in command_of(process)]
            target = self._rng.choice([target, *cores])
        os.kill(target.pid, number)
        doomed = members
        if of == "learner":  # the ranks end together
            doomed = [process for rank in self._run.workers(of) for process in family(rank["pid"])] + members
        name = "its EngineCore" if target is not members[0] else "its actor"
        words = f"{worker['id']}{f', {name}' if of == 'rollout' else ''} (process {target.pid})"
        return Injected(kind=kind, victim=words, doomed=tuple(doomed))

    def _kill_driver(self, kind: str, *, is_damaging: bool = False) -> Injected:
        driver = self._run.driver
        doomed = [*family(driver.pid), *self._actors()]
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        words = f"process {driver.pid}"
        if is_damaging:
            words += self._damage_newest()
        self._run.start()
        return Injected(kind=kind, victim=words, doomed=tuple(doomed))

    def _damage_newest(self) -> str:
        checkpoints = CheckpointStore(self._run.folder / "checkpoints").all()
        if len(checkpoints) < MIN_CHECKPOINTS:
            return ", no checkpoint to spare"
        path = self._rng.choice(
            sorted(file for file in checkpoints[-1].path.rglob("*") if file.is_file() and file.stat().st_size)
        )
        os.truncate(path, self._rng.randrange(path.stat().st_size))
        return f", {path.relative_to(self._run.folder / 'checkpoints')} cut short"

    def _lose_node(self, kind: str) -> Injected:
        node = self._rng.choice(self._run.nodes.workers())
        doomed = [
            process
            for worker in self._run.status()["workers"]
            if worker["node"] == node.node_id and worker["pid"]
            for process in family(worker["pid"])
        ]
        self._run.nodes.lose(node)
        return Injected(kind=kind, victim=f"node {node.node_id[:8]}", doomed=tuple(doomed))

    def _actors(self) -> list[psutil.Process]:
        workers = self._run.status()["workers"]
        return [process for worker in workers if worker["pid"] for process in family(worker["pid"])]


def leftovers(injected: Injected) -> list[psutil.Process]:
    """The doomed that still live."""
    return alive(injected.doomed)


def engine_cores() -> list[psutil.Process]:
    """Every engine's process that lives, wanted or not."""
    return [process for process in descendants() if "EngineCore" in command_of(process)]
