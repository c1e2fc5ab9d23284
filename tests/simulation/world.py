"""One seed: a driver that lives, dies and is started again over one disk, until its run is finished.

A life is `cluster.launch.execute("grpo", …, resume=True)`, as the command line calls it, on the simulated
Ray, disk and clock. It may end finished, stopped by a signal or a command, killed with or without the power,
or with an error of its own; an error must be one that the faults of that life justify.
"""

import asyncio
import contextvars
import errno
import json
import random
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from simulation.actors import CURRENT, ActorProcess, ActorSystem, Process, ProcessKilled, SimulatedRay
from simulation.disk import ROOT, Disk, File, Folder
from simulation.endings import is_justified
from simulation.faults import Faults, Kind
from simulation.happenings import Happenings
from simulation.loop import LivelockError, SimulationLoop, clock_of
from simulation.oracle import WEDGE_S, Oracle
from simulation.os_calls import routed_to
from simulation.parts import SimulatedEngine, SimulatedReward
from simulation.ranks import Gang, SimulatedRank
from simulation.replacing import replaced
from simulation.report import Report
from simulation.seams import WEIGHTS_FOLDER, SimulatedControl, machine
from simulation.settings import query_of, setting_of
from simulation.watching import name_of, watched

import cluster.rollout_pool
from alphadrive.errors import CheckpointError, DeadLetterError, NonFiniteError
from cluster.grpo import train_on_ray
from cluster.launch import RunResult, execute
from cluster.virtual_time import DeadlockError

MAX_LIVES = 12
NUM_LIVES_WITH_FAULTS = 4
DOWN_S = 30.0
LASTING = (CheckpointError, DeadLetterError, NonFiniteError)
"""Errors that no resume can be expected to mend."""
SETTLED_S = 60.0

ROLES = {
    "RolloutActor": ("engine", SimulatedEngine, False),
    "RewardActor": ("reward", SimulatedReward, True),
    "LearnerActor": ("learner", SimulatedRank, True),
    "RunControl": ("control", SimulatedControl, False),
}
"""Shipped actor class: name of its processes, what stands for it, whether its calls run in order."""


class Interrupted(BaseException):
    """The driver is gone, or the oracle has seen enough."""


class World:
    """All that surrounds the shipped code: `run` simulates one seed."""

    loop: SimulationLoop
    system: ActorSystem
    happenings: Happenings

    def __init__(self, seed: int, kinds: tuple[Kind, ...]) -> None:
        self.report = Report(seed)
        self.chance = random.Random(seed)
        self._kinds = kinds
        setting = self._setting = setting_of(random.Random(f"setting {seed}"))
        self.config, self.num_rows, self.flat_share = setting.config, setting.num_rows, setting.flat_share
        self.poison_rows, self.failing_rows = setting.poison_rows, setting.failing_rows
        self.raising_rows, self.hanging_rows = setting.raising_rows, setting.hanging_rows
        self.overflowing_rows = setting.overflowing_rows
        self.oracle = Oracle(setting, self.say)
        self.disk = Disk(self._before_change)
        self.outside = Process("outside")
        self.faults = Faults(self.chance, 0, self.report.injected, kinds)
        self._driver = self.outside
        self._now_s = 0.0
        self._is_living = self._is_over = self._is_power_cut = False
        self._num_full = 0
        self._rotten: list[Folder] = []
        self._gangs: dict[int, Gang] = {}
        self._ports = 0
        self._done: dict[Any, Any] = {}

    # What the fakes ask for.

    def say(self, text: str) -> None:
        """A line of the trace."""
        self.report.trace.append((self.now(), text))

    def now(self) -> float:
        """Virtual time, over all lives."""
        return self.loop.time() if self._is_living else self._now_s

    def query(self, row: int) -> Any:
        return query_of(row)

    def new_port(self) -> int:
        self._ports += 1
        return self._ports

    def gang(self, port: int, num_ranks: int, attempt: int) -> Gang:
        """The gang of the ranks that meet at a port."""
        if port not in self._gangs:
            self._gangs[port] = Gang(self, num_ranks, attempt)
        return self._gangs[port]

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What the first caller with this key made."""
        if key not in self._done:
            self._done[key] = make()
        return self._done[key]

    def fault_at(self, place: str) -> str | None:
        """The fault that strikes at this pass of a place."""
        name = self.faults.at(place)
        if name is not None:
            self.say(f"FAULT {name} ({place})")
        return name

    def kill_driver(self, how: str) -> None:
        """kill -9, or no power."""
        self._driver.is_alive = False
        self._is_power_cut = how == "power is cut"

    # The campaign.

    def run(self) -> Report:
        """Simulate the seed."""
        report = self.report
        with self._patched():
            CURRENT.set(self.outside)
            self.disk.mkdir(str(WEIGHTS_FOLDER))
            self.disk.root.sync()
            while not report.ending and not self.oracle.violations:
                report.num_lives += 1
                if report.num_lives > MAX_LIVES:
                    self.oracle.violation(f"the run has not ended after {MAX_LIVES} lives of its driver")
                    break
                report.ending = self._live()
                self._between_lives()
        report.violations = self.oracle.violations
        report.num_checks = self.oracle.num_checks
        report.simulated_s = self._now_s
        return report

    @contextmanager
    def _patched(self) -> Iterator[None]:
        def place_gang() -> float:
            return self.happenings.place_gang()

        def stands() -> bool:
            return not self.faults.any_of("node is lost", "node is drained")

        changes = machine(self.config, self._setting.plans, self._run_main, place_gang, stands)
        if self.report.seed % 2:  # few engines, and yet as much in every exchange as with hundreds
            changes += [(cluster.rollout_pool, name, 1.0) for name in ("PERIOD_S", "LONGEST_PERIOD_S")]
        with clock_of(self.now), routed_to(self.disk), watched(self.oracle), replaced(changes):
            yield

    def _live(self) -> str:
        """One life of the driver; how the run ended, "" if it goes on."""
        number = self.report.num_lives
        if number > 1 and "disk is full" in self.faults.struck:
            self.oracle.forget_attempts_after(self._written_attempt())
        num_faults = self.chance.randint(0, 9) if number <= NUM_LIVES_WITH_FAULTS else 0
        self.faults = Faults(self.chance, num_faults, self.report.injected, self._kinds)
        self._driver = Process(f"driver {number}")
        self._is_power_cut, self._num_full, self._is_over = False, 0, False
        self.loop = SimulationLoop(self._now_s, self._after_turn)
        self.loop.set_exception_handler(self._unseen_error)
        self._is_living = True
        self.system = ActorSystem(
            self.chance, self._driver, self._make_actor, self.say, self.oracle.submitted, self.fault_at
        )
        self.happenings = Happenings(self)
        self.oracle.begin_life()
        self.say(f"{self._driver.name} starts")
        fake_ray = SimulatedRay(self.system)
        modules = [module for name, module in sys.modules.items() if name.startswith("cluster.")]
        fakes = [(module, "ray", fake_ray) for module in modules if vars(module).get("ray") is ray]
        context = contextvars.copy_context()
        context.run(CURRENT.set, self._driver)
        try:
            with replaced(fakes):
                try:
                    return context.run(self._drive)
                finally:
                    self._wipe()
        finally:
            self._now_s = self.loop.now_s + DOWN_S
            self._is_living = False
            self.loop.close()

    def _written_attempt(self) -> int:
        status = Path(f"{ROOT}/runs/run/status.json")
        return int(json.loads(status.read_text())["attempt"]) if status.is_file() else -1

    def _drive(self) -> str:
        """The driver's program."""
        try:
            return self._ended(execute("grpo", self.config, train_on_ray, resume=True))
        except (Interrupted, ProcessKilled):
            self.report.lives["killed"] += 1
            return ""
        except KeyboardInterrupt:
            told = [name for name in self.faults.struck if name.startswith("run is told")]
            if not told:
                raise  # somebody interrupts the simulation itself
            self._stopped(is_alone=self.faults.struck.total() == 1 and "twice" not in told[0])
            return ""
        except (DeadlockError, LivelockError) as error:
            tasks = asyncio.all_tasks(self.loop)
            waiting = [task.get_name() for task in tasks if task.owner is self._driver]
            self.oracle.violation(f"{type(error).__name__}: {error}; {len(waiting)} tasks: {waiting[:5]}")
            return ""
        except BaseException as error:
            return self._ended_by(error)

    def _run_main(self, main: Coroutine[Any, Any, Any]) -> Any:
        """As `asyncio.run`. What the driver leaves behind when its program has ended is looked at."""
        task = self.loop.create_task(main)
        moments = self.loop.create_task(self.happenings.run(), context=self._outside())
        try:
            return self.loop.run_until_complete(task)
        finally:
            if task.done() and self._driver.is_alive and not self.oracle.violations:
                self._is_over = True
                moments.cancel()
                self._check_left()

    def _outside(self) -> contextvars.Context:
        context = contextvars.copy_context()
        context.run(CURRENT.set, self.outside)
        return context

    def _stopped(self, is_alone: bool) -> None:
        """The run stopped as it was told, once, with nothing else gone wrong (`is_alone`), or not."""
        self.say("the run stopped as it was told")
        self.report.lives["stopped as told"] += 1
        if is_alone and self.oracle.ledger is not None:
            self.oracle.has_checkpoint_of(list(self._gangs.values())[-1].version.step)

    def _ended(self, result: RunResult) -> str:
        """The command returned."""
        step = result.summary["grpo"]["steps"]
        self.oracle.at_the_end(result.summary["grpo"]["epochs"], step)
        if result.status == "no_signal":
            self.oracle.check(self.oracle.has_no_signal(), "no_signal, and there was one")
        else:
            self.oracle.check(result.status == "finished", f"the run returned and is {result.status}")
            self.oracle.check(step == self.config.grpo.steps, f"finished at step {step}")
        self.say(f"the run is over: {result.status}")
        self.report.lives[result.status] += 1
        return result.status

    def _ended_by(self, error: BaseException) -> str:
        """The command raised: with reason?"""
        said = f"{type(error).__name__}: {error}"
        self.say(f"the run ends with {said}")
        self.report.lives[type(error).__name__] += 1
        if not is_justified(error, self.faults, self.config, self._setting):
            self.oracle.violation(
                f"the run ended with {said} and no fault of {dict(self.faults.struck)} explains it"
            )
        return type(error).__name__ if isinstance(error, LASTING) else ""

    def _check_left(self) -> None:
        """The driver's program has ended by itself: a little later nothing of it is left."""
        self.loop.run_until_complete(asyncio.sleep(SETTLED_S))
        mine = [task for task in asyncio.all_tasks(self.loop) if task.owner is self._driver]
        # `remote.forget` waits, for ever if need be, and for nobody.
        tasks = [task for task in mine if task.get_coro().__name__ != "_wrap_awaitable"]
        self.oracle.check(not tasks, f"tasks are left: {tasks[:3]}")
        alive = [
            each
            for each in self.system.processes
            if each.is_alive and each.was_killed_s is None and not each.name.startswith("control")
        ]
        self.oracle.check(not alive, f"processes are left: {alive}")
        files = self.disk.files(str(WEIGHTS_FOLDER))
        self.oracle.check(not files, f"files of weights are left: {files}")

    def _wipe(self) -> None:
        """Nothing of this life goes on: all tasks end, whatever they would still like to do is refused."""
        self._is_over, self._driver.is_alive = True, False

        async def end_all() -> None:
            self.system.end()
            for _ in range(100):
                tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
                if not tasks:
                    return
                for task in tasks:
                    task.cancel()
                for task in (await asyncio.wait(tasks, timeout=1000.0))[0]:
                    if not task.cancelled():
                        task.exception()

        # The end of the driver's own task may still be on its way to stop the loop.
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()
        self.loop.run_until_complete(end_all())

    def _between_lives(self) -> None:
        """Power comes back; now and then a checkpoint has rotted meanwhile."""
        if self._is_power_cut:
            self.disk.power_cut(self.chance)
            for path in self.disk.files(str(WEIGHTS_FOLDER)):
                self.disk.unlink(path)
        if self.report.num_lives <= NUM_LIVES_WITH_FAULTS and self.chance.random() < 0.05:
            self._damage_newest()

    def _damage_newest(self) -> None:
        folder = f"{ROOT}/runs/run/checkpoints"
        names = [path.name for path in Path(folder).glob("step_*")]
        if not names:
            return
        newest = f"{folder}/{max(names)}"
        if any(each is self.disk.folder(newest) for each in self._rotten):
            return
        self._rotten.append(self.disk.folder(newest))
        self.oracle.damaged(name_of(Path(newest)))
        path = self.chance.choice(self.disk.files(newest))
        file = self.disk.find(path)
        assert isinstance(file, File)
        how = self.chance.choice(["truncated", "removed", "flipped"])
        if how == "truncated":
            del file.data[self.chance.randrange(len(file.data)) :]
        elif how == "removed":
            self.disk.unlink(path)
        else:
            file.data[self.chance.randrange(len(file.data))] ^= 1 << self.chance.randrange(8)
        file.synced = bytes(file.data)
        self.disk.sync(newest)
        self.report.injected[f"checkpoint file {how}"] += 1
        self.say(f"{path} is {how}")

    # What happens to the driver and its actors.

    def _make_actor(self, actor_class: type, system: ActorSystem, args: tuple[Any, ...]) -> ActorProcess:
        role, stand_in, is_ordered = ROLES[actor_class.__name__]
        number = sum(process.name.startswith(role) for process in system.processes)
        if role == "learner":
            node = self.happenings.gang_node
        elif role == "control":
            node = self.happenings.nodes[0]
        else:
            node = self.chance.choice(self.happenings.roomy_nodes())
        name = f"{role}-{self.report.num_lives}-{number}"
        process = ActorProcess(system, name, is_ordered, node, may_linger=role in ("engine", "reward"))
        process.args = args

        def fault_of(method: str, call_args: tuple[Any, ...]) -> str | None:
            is_canary = method == "generate" and call_args[0] < 0
            return self.fault_at(f"{role}.{'canary' if is_canary else method}")

        process.host(stand_in(self, process), fault_of)
        return process

    def _before_change(self, kind: str, path: str) -> None:
        process = CURRENT.get()
        if not process.is_alive:
            raise ProcessKilled
        if process is self.outside or not path.startswith(f"{ROOT}/runs"):
            return
        places = [name for name in ("checkpoint", "summary") if name in path]
        fault = self.fault_at(f"disk.{places[0] if places else 'records'}")
        if fault == "disk is full":
            self._num_full = self.chance.randint(1, 20)
        elif fault is not None:
            self.kill_driver(fault)
            raise ProcessKilled
        if self._num_full and kind in ("write", "create", "mkdir"):
            self._num_full -= 1
            raise OSError(errno.ENOSPC, "No space left on device", path)

    def _after_turn(self) -> None:
        if self._is_over:
            return
        self.oracle.after_turn(self.now())
        if self.oracle.is_wedged:
            self.oracle.violation(f"I7 nothing was done for {WEDGE_S:.0f} s, and no error said so")
        if not self._driver.is_alive or self.oracle.violations:
            raise Interrupted

    def _unseen_error(self, loop: asyncio.AbstractEventLoop, details: dict[str, Any]) -> None:
        if not self._is_over and self._driver.is_alive:
            self.oracle.violation(f"an error that nobody looked at: {details}")
