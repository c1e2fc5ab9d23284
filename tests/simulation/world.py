"""One seed: a driver that lives, dies and is started again over one disk, until its run is finished.

A life runs `cluster.grpo.train_on_ray` as `cluster.launch.execute` does, on the simulated Ray, disk and
clock. It may end finished, stopped by a signal, killed with or without the power, or with an error of its own;
an error must be one that the faults of that life justify.
"""

import asyncio
import contextvars
import errno
import json
import logging
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from simulation.actors import (
    CURRENT,
    ActorProcess,
    ActorSystem,
    Process,
    ProcessKilled,
    Ref,
    SimulatedRay,
)
from simulation.disk import ROOT, Disk, File
from simulation.endings import is_justified, may_wedge
from simulation.faults import Faults, Kind
from simulation.loop import LivelockError, OrderedTask, SimulationLoop, clock_of
from simulation.oracle import WEDGE_S, Oracle
from simulation.os_calls import routed_to
from simulation.parts import Gang, SimulatedEngine, SimulatedRank, SimulatedReward
from simulation.replacing import replaced
from simulation.settings import SimulatedDataset, query_of, scan_of, setting_of
from simulation.watching import watched

import cluster.grpo
import cluster.launch
import cluster.learner_group
import cluster.recorder
import cluster.row_order
from alphadrive.errors import CheckpointError, DeadLetterError
from alphadrive.run_folder import RunFolder
from alphadrive.types import WeightVersion
from cluster.launch import Attempt, _read_ledger, _with_signals
from cluster.placement import plan_placement
from cluster.status import RunStatus
from cluster.stopping import StopSignals
from cluster.virtual_time import DeadlockError

MAX_LIVES = 12
NUM_LIVES_WITH_FAULTS = 4
WEIGHTS_FOLDER = Path(ROOT) / "shm"
DOWN_S = 30.0
HEAD = "node-0"
"""The node of the driver and the learner; it is lost with the driver only."""
SETTLED_S = 60.0

ROLES = {
    "RolloutActor": ("engine", SimulatedEngine, False),
    "RewardActor": ("reward", SimulatedReward, True),
    "LearnerActor": ("learner", SimulatedRank, True),
}
"""Shipped actor class: name of its processes, what stands for it, whether its calls run in order."""


class Interrupted(Exception):
    """The driver is gone, or the oracle has seen enough."""


@dataclass
class Report:
    """What became of a seed."""

    seed: int
    ending: str = ""
    violations: list[str] = field(default_factory=list)
    trace: list[tuple[float, str]] = field(default_factory=list)
    num_lives: int = 0
    num_checks: int = 0
    simulated_s: float = 0.0
    injected: Counter[str] = field(default_factory=Counter)


class World:
    """All that surrounds the shipped code: `run` simulates one seed."""

    def __init__(self, seed: int, kinds: tuple[Kind, ...]) -> None:
        self.report = Report(seed)
        self.chance = random.Random(seed)
        self._kinds = kinds
        setting = self._setting = setting_of(random.Random(f"setting {seed}"))
        self.config, self.num_rows, self.flat_share = setting.config, setting.num_rows, setting.flat_share
        self.poison_rows, self.failing_rows = setting.poison_rows, setting.failing_rows
        self.raising_rows, self.hanging_rows = setting.raising_rows, setting.hanging_rows
        grpo = self.config.grpo
        self.oracle = Oracle(
            setting.order,
            setting.num_rows,
            num_slots=(grpo.max_policy_lag + 1) * grpo.groups_per_step,
            lag_bound=grpo.max_policy_lag + grpo.sync_every - 1,
            group_size=grpo.group_size,
            groups_per_step=grpo.groups_per_step,
            skips_flat=grpo.kl_coef == 0,
            flat_share=setting.flat_share,
            max_attempts=self.config.rollout.max_attempts,
            keep_last=self.config.checkpoint.keep_last,
            say=self.say,
        )
        self.disk = Disk(self._before_change)
        self.outside = Process("outside")
        self.faults = Faults(self.chance, 0, self.report.injected, kinds)
        self._loop: SimulationLoop | None = None
        self._system: ActorSystem
        self._driver = self.outside
        self._now_s = 0.0
        self._num_full = 0
        self._is_power_cut = False
        self._is_over = False
        self._moments_task: asyncio.Task[None] | None = None
        self._nodes: list[str] = []
        self._gangs: dict[int, Gang] = {}
        self._ports = 0
        self._done: dict[Any, Any] = {}

    # What the fakes ask for.

    def say(self, text: str) -> None:
        """A line of the trace."""
        self.report.trace.append((self.now(), text))

    def now(self) -> float:
        """Virtual time, over all lives."""
        return self._loop.time() if self._loop is not None else self._now_s

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

    # The campaign.

    def run(self) -> Report:
        """Simulate the seed."""
        report = self.report
        with self._patched():
            CURRENT.set(self.outside)
            for path in (f"{ROOT}/runs", f"{ROOT}/runs/run", f"{ROOT}/shm", f"{ROOT}/runs/run/rollouts"):
                self.disk.mkdir(path)
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
        changes = [
            (cluster.grpo, "DrivingDataset", SimulatedDataset),
            (cluster.recorder, "DrivingDataset", SimulatedDataset),
            (cluster.row_order, "scan", scan_of(self._setting.plans)),
            (cluster.grpo, "WEIGHTS_FOLDER", WEIGHTS_FOLDER),
            (cluster.learner_group, "placement_group", _placement_group),
            (cluster.learner_group, "remove_placement_group", lambda gang: None),
            (sys, "unraisablehook", lambda event: None),
        ]
        with clock_of(self.now), routed_to(self.disk), watched(self.oracle), replaced(changes):
            yield

    def _live(self) -> str:
        """One life of the driver; how the run ended, "" if it goes on."""
        number = self.report.num_lives
        num_faults = self.chance.randint(0, 6) if number <= NUM_LIVES_WITH_FAULTS else 0
        self.faults = Faults(self.chance, num_faults, self.report.injected, self._kinds)
        self._driver = Process(f"driver {number}")
        self._is_power_cut, self._num_full, self._is_over = False, 0, False
        self._nodes = [HEAD, "node-1", "node-2"]
        self._loop = SimulationLoop(self._now_s, self._after_turn)
        self._loop.set_exception_handler(self._unseen_error)
        self._system = ActorSystem(
            self.chance, self._driver, self._make_actor, self.say, self.oracle.submitted, self._fault_at
        )
        self.oracle.begin_life()
        self.say(f"{self._driver.name} starts")
        fake_ray = SimulatedRay(self._system)
        modules = [module for name, module in sys.modules.items() if name.startswith("cluster.")]
        fakes = [(module, "ray", fake_ray) for module in modules if vars(module).get("ray") is ray]
        try:
            with replaced(fakes):
                return self._run_driver()
        finally:
            self._now_s = self._loop.now_s + DOWN_S
            self._loop.close()
            self._loop = None

    def _run_driver(self) -> str:
        loop = self._loop
        assert loop is not None
        context = contextvars.copy_context()
        context.run(CURRENT.set, self._driver)
        try:
            attempt = context.run(self._make_attempt)
        except CheckpointError as error:
            self.oracle.resuming(None)
            return self._ended_by(error)
        except ProcessKilled:
            return ""
        main = loop.create_task(_with_signals(attempt, cluster.grpo.train_on_ray), context=context)
        self._moments_task = loop.create_task(self._moments())
        try:
            loop.run_until_complete(main)
        except Interrupted:
            return ""
        except (DeadlockError, LivelockError) as error:
            waiting = [task.get_name() for task in asyncio.all_tasks(loop) if task.owner is self._driver]
            self.oracle.violation(f"{type(error).__name__}: {error}; {len(waiting)} tasks: {waiting[:5]}")
            return ""
        except asyncio.CancelledError:
            self.oracle.check(attempt.stop.was_asked, "the driver was cancelled and nobody asked")
            self._check_left(is_gap=True)
            return ""
        except BaseException as error:
            self._check_left(is_gap=True)
            return self._ended_by(error)
        else:
            self._check_left()
            return self._ended(attempt)
        finally:
            self._is_over = True
            self._wipe(loop)

    def _make_attempt(self) -> Attempt:
        """As `cluster.launch.execute` makes one."""
        run = RunFolder(Path(self.config.run.root) / self.config.run.name, self.config)
        run.checkpoints.folder.mkdir(parents=True, exist_ok=True)
        checkpoint = run.latest_checkpoint()
        saved = _read_ledger(checkpoint)
        is_first = self.report.num_lives == 1
        version = WeightVersion(
            0 if is_first else cluster.launch._next_attempt(run, saved), checkpoint.step if checkpoint else 0
        )
        status = RunStatus(run, "grpo", self.config.grpo.steps, version.attempt)
        status.write(step=version.step)
        self.oracle.resuming(self._name_of(str(checkpoint.path)) if checkpoint else None)
        return Attempt(
            config=self.config,
            run=run,
            model_folder=Path(f"{ROOT}/model"),
            checkpoint=checkpoint,
            saved=saved,
            version=version,
            status=status,
            progress=_Silence(),  # type: ignore[arg-type]
            stop=StopSignals(),
            placement=plan_placement(self.config, "grpo", 64, 0),
        )

    def _ended(self, attempt: Attempt) -> str:
        """The stage returned."""
        if attempt.stop.was_asked:
            self.say("the run stopped as it was told")
            return ""
        state = attempt.status.state
        self.oracle.at_the_end(self.oracle.ledger.counts())
        if state == "no_signal":
            self.oracle.check(self.oracle.has_no_signal(), "no_signal, and there was one")
        else:
            step = list(self._gangs.values())[-1].version.step
            self.oracle.check(state == "finished", f"the run returned and is {state}")
            self.oracle.check(step == self.config.grpo.steps, f"finished at step {step}")
        self.say(f"the run is over: {state}")
        return state

    def _ended_by(self, error: BaseException) -> str:
        """The stage raised: with reason?"""
        said = f"{type(error).__name__}: {error}"
        self.say(f"the run ends with {said}")
        if not is_justified(error, self.faults, self.config, self._setting):
            self.oracle.violation(
                f"the run ended with {said} and no fault of {dict(self.faults.struck)} explains it"
            )
        return type(error).__name__ if isinstance(error, CheckpointError | DeadLetterError) else ""

    def _check_left(self, is_gap: bool = False) -> None:
        """The driver ended by itself: a little later nothing of it is left."""
        assert self._loop is not None and self._moments_task is not None
        self._is_over = True
        self._moments_task.cancel()
        self._loop.run_until_complete(asyncio.sleep(SETTLED_S))
        tasks = [task for task in asyncio.all_tasks(self._loop) if task.owner is self._driver]
        self.oracle.check(not tasks, f"tasks are left: {tasks[:3]}")
        if is_gap:
            return
        alive = [each for each in self._system.processes if each.is_alive and each.was_killed_s is None]
        self.oracle.check(not alive, f"processes are left: {alive}")
        files = self.disk.files(str(WEIGHTS_FOLDER))
        # TEMPORARY gap: self.oracle.check(not files, f"files of weights are left: {files}")

    def _wipe(self, loop: SimulationLoop) -> None:
        """Nothing of this life goes on: all tasks end, whatever they would still like to do is refused."""
        self._driver.is_alive = False

        async def end_all() -> None:
            self._system.end()
            for _ in range(100):
                tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
                if not tasks:
                    return
                for task in tasks:
                    task.cancel()
                for task in (await asyncio.wait(tasks, timeout=1000.0))[0]:
                    if not task.cancelled():
                        task.exception()

        loop.run_until_complete(end_all())

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
        names = sorted(name for name in self.disk.folder(folder).entries if name.startswith("step_"))
        if not names:
            return
        newest = f"{folder}/{names[-1]}"
        self.oracle.damaged(self._name_of(newest))
        path = self.chance.choice(self.disk.files(newest))
        file = self.disk.find(path)
        assert isinstance(file, File)
        how = self.chance.choice(
            ["truncated", "removed"] + ["flipped"] * (not path.endswith("manifest.json"))
        )
        if how == "truncated":
            del file.data[self.chance.randrange(len(file.data)) :]
        elif how == "removed":
            self.disk.unlink(path)
        else:
            file.data[self.chance.randrange(len(file.data))] ^= 1 << self.chance.randrange(8)
        self.disk.sync(newest)
        self.report.injected[f"checkpoint file {how}"] += 1
        self.say(f"{path} is {how}")

    def _name_of(self, checkpoint: str) -> str:
        """The name that the learner gave a checkpoint when it saved it."""
        file = self.disk.find(f"{checkpoint}/rank_0.json")
        assert isinstance(file, File)
        return str(json.loads(file.data)["nonce"])

    # What happens to the driver and its actors.

    def _make_actor(self, actor_class: type, system: ActorSystem, args: tuple[Any, ...]) -> ActorProcess:
        role, stand_in, is_ordered = ROLES[actor_class.__name__]
        number = sum(process.name.startswith(role) for process in system.processes)
        node = HEAD if role == "learner" else self.chance.choice(self._roomy_nodes())
        process = ActorProcess(system, f"{role}-{self.report.num_lives}-{number}", is_ordered, node)

        def fault_of(method: str, call_args: tuple[Any, ...]) -> str | None:
            is_canary = method == "generate" and call_args[0] < 0
            return self._fault_at(f"{role}.{'canary' if is_canary else method}")

        process.host(stand_in(self, process), fault_of)
        return process

    def _roomy_nodes(self) -> list[str]:
        return [node for node in self._nodes if node not in self._system.draining_ms]

    def _fault_at(self, place: str) -> str | None:
        name = self.faults.at(place)
        if name is not None:
            self.say(f"FAULT {name} ({place})")
        return name

    def _before_change(self, kind: str, path: str) -> None:
        process = CURRENT.get()
        if not process.is_alive:
            raise ProcessKilled
        if process is self.outside or "/checkpoints" not in path:
            return
        fault = self._fault_at("disk.checkpoint")
        if fault == "disk is full":
            self._num_full = self.chance.randint(1, 20)
        elif fault is not None:
            self._kill_driver(fault)
            raise ProcessKilled
        if self._num_full and kind in ("write", "create", "mkdir"):
            self._num_full -= 1
            raise OSError(errno.ENOSPC, "No space left on device", path)

    def _kill_driver(self, how: str) -> None:
        self._driver.is_alive = False
        self._is_power_cut = how == "power is cut"

    async def _moments(self) -> None:
        """Faults that have a time."""
        loop = self._loop
        assert loop is not None
        start_s = loop.time()
        for moment_s, name in sorted(self.faults.moments):
            await asyncio.sleep(start_s + moment_s - loop.time())
            if self._happens(name, loop):
                self.say(f"FAULT {name}")
                self.faults.strike(name)

    def _happens(self, name: str, loop: SimulationLoop) -> bool:
        if name in ("driver is killed", "power is cut"):
            self._kill_driver(name)
            return True
        if name in ("run is told to stop", "run is told twice to stop"):
            if name.endswith("twice to stop"):
                loop.call_later(self.chance.uniform(0.5, 20.0), loop.signalled)
            loop.signalled()
            return True
        if name in ("engines are resized", "reward workers are resized"):
            pool = self.oracle.pools.get("RolloutPool" if name.startswith("engines") else "RewardPool")
            if pool is None or self.oracle.ledger is None:
                return False
            num_wanted = self.chance.randint(1, 5)
            self.say(f"{num_wanted} wanted")
            pool.resize(num_wanted)
            return True
        if name in ("node is drained", "node is lost"):
            return self._node_goes(
                loop, self.chance.uniform(5.0, 120.0) if name == "node is drained" else None
            )
        role = {"idle engine": "engine", "idle reward": "reward", "idle learner": "learner"}[
            " ".join(name.split()[:2])
        ]
        living = [each for each in self._system.processes if each.is_alive and each.name.startswith(role)]
        if not living:
            return False
        victim = self.chance.choice(living)
        if name.endswith("hangs"):
            victim.freeze()
        else:
            victim.die(name)
        return True

    def _node_goes(self, loop: SimulationLoop, deadline_s: float | None) -> bool:
        """A node that is not the head leaves, at once or after notice; another one joins."""
        nodes = [node for node in self._roomy_nodes() if node != HEAD]
        if not nodes:
            return False
        node = self.chance.choice(nodes)
        self._nodes.append(f"node-{len(self._nodes)}-{self.report.num_lives}")

        def leave() -> None:
            self._system.lose_node(node)
            self._nodes.remove(node)

        if deadline_s is None:
            leave()
        else:
            self.say(f"{node} leaves in {deadline_s:.0f} s")
            self._system.draining_ms[node] = (time.time() + deadline_s) * 1000
            loop.call_later(deadline_s, leave)
        return True

    def _after_turn(self) -> None:
        if self._is_over:
            return
        self.oracle.after_turn(self.now())
        if self.oracle.is_wedged and not may_wedge(self.faults):
            self.oracle.violation(f"I7 nothing was done for {WEDGE_S:.0f} s, and no error said so")
        if not self._driver.is_alive or self.oracle.is_wedged or self.oracle.violations:
            raise Interrupted

    def _unseen_error(self, loop: asyncio.AbstractEventLoop, details: dict[str, Any]) -> None:
        if not self._is_over and self._driver.is_alive:
            self.oracle.violation(f"an error that nobody looked at: {details}")


class _Silence:
    """Stands for `RunProgress`."""

    def say(self, text: str) -> None:
        pass

    def step(self, step: int, figures: Any) -> None:
        pass


class _Gang:
    def ready(self) -> Ref:
        ref = Ref()
        ref.resolve()
        return ref


def _placement_group(bundles: Any, strategy: str = "PACK") -> _Gang:
    return _Gang()


def simulate(seed: int, kinds: tuple[Kind, ...], *, with_logs: bool = False) -> Report:
    """Simulate one seed; `with_logs` adds what the shipped code logs to the trace."""
    world = World(seed, kinds)
    OrderedTask.count = 0
    handler = _LogToTrace(world)
    root = logging.getLogger()
    was_disabled, level = logging.root.manager.disable, root.level
    logging.disable(logging.NOTSET if with_logs else logging.CRITICAL)
    if with_logs:
        root.addHandler(handler)
        root.setLevel(logging.INFO)
    try:
        return world.run()
    finally:
        logging.disable(was_disabled)
        root.setLevel(level)
        root.removeHandler(handler)


class _LogToTrace(logging.Handler):
    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        self._world.say(f"log: {record.getMessage()}")
