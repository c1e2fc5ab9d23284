"""What stands for the machine around the shipped driver: all that `cluster.launch.execute` reaches and that a
simulated world does not have, replaced where it is reached.

    replaced                         by
    check_run, queries_sha256        nothing: there is no model and no dataset to look at
    save_config, load_config         the same file operations without YAML, which takes most of the time
    ray_session, placement groups    `simulation.actors`
    Reaper, ProcessTree, Deadman,    nothing: processes, threads and signals of the real machine
    sigterm_as_interrupt
    asyncio.run                      the simulation's event loop
    DrivingDataset, scan             `simulation.settings`
"""

import asyncio
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray._private.auto_init_hook
from simulation.actors import ActorProcess, Ref
from simulation.disk import ROOT
from simulation.settings import SimulatedDataset, scan_of

import alphadrive.run_folder
import cluster.control_room
import cluster.gang
import cluster.grpo
import cluster.launch
import cluster.learner_group
import cluster.placing
import cluster.recorder
import cluster.resuming
import cluster.row_order
from alphadrive.atomic import write_text
from alphadrive.config import Config
from cluster.control import RunControl, Wishes
from cluster.packing import Node

WEIGHTS_FOLDER = Path(ROOT) / "shm"
PUSH_EVERY_S = 5.0
"""The control room's, slower: a second of it would be most of what a seed takes."""


class Nothing:
    """Stands for whatever is started, entered, told and left."""

    peak_bytes = 0

    def __init__(self, *args: Any, **options: Any) -> None:
        pass

    def __enter__(self) -> "Nothing":
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def step(self, step: int, figures: Any) -> None:
        pass

    def touch(self) -> None:
        pass

    async def pulse(self) -> None:
        await asyncio.get_running_loop().create_future()


class SimulatedControl:
    """The shipped `RunControl`, in an actor's process."""

    def __init__(self, world: Any, process: ActorProcess) -> None:
        self.control = RunControl(*process.args)

    async def push(self, fault: str | None, status: Any) -> Wishes:
        return await self.control.push(status)

    async def end(self, fault: str | None, status: Any) -> None:
        await self.control.end(status)


class SimulatedPlacement:
    """What `placement_group` gives: a place for a gang, at once or when there is room."""

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s

    def ready(self) -> Ref:
        ref = Ref()
        if self._delay_s:
            asyncio.get_running_loop().call_later(self._delay_s, ref.resolve)
        else:
            ref.resolve()
        return ref


def machine(
    config: Config,
    plans: tuple[str, ...],
    run: Callable[[Any], Any],
    place_gang: Callable[[], float],
    stands: Callable[[], bool],
) -> list[tuple[Any, str, Any]]:
    """The changes for `replaced`. `run` stands for `asyncio.run`; `place_gang` gives how long a gang waits
    for its place, `stands` whether the place of an earlier one is still there."""

    def save_config(config: Config, path: Path) -> None:
        write_text(path, "seed: 0\n")

    return [
        (cluster.launch, "check_run", lambda *args: SimpleNamespace(model_folder=Path(f"{ROOT}/model"))),
        (cluster.launch, "ray_session", lambda *args: nullcontext()),
        (cluster.launch, "live_nodes", lambda: [Node(cpus=64.0)]),
        (cluster.launch, "check_nodes", lambda *args: None),
        # What is frozen is never collected, and would add up over the lives in one process.
        (cluster.launch, "rare_collections", nullcontext),
        (cluster.launch, "Reaper", Nothing),
        (cluster.launch, "ProcessTree", Nothing),
        (cluster.launch, "RunProgress", Nothing),
        (cluster.launch, "Deadman", Nothing),
        (cluster.launch, "sigterm_as_interrupt", Nothing),
        (asyncio, "run", run),
        (cluster.launch, "WEIGHTS_FOLDER", WEIGHTS_FOLDER),
        (cluster.grpo, "WEIGHTS_FOLDER", WEIGHTS_FOLDER),
        (cluster.grpo, "DrivingDataset", SimulatedDataset),
        (cluster.recorder, "DrivingDataset", SimulatedDataset),
        (cluster.resuming, "queries_sha256", lambda *args: "data"),
        (cluster.row_order, "scan", scan_of(plans)),
        (cluster.gang, "placement_group", lambda *args, **options: SimulatedPlacement(place_gang())),
        (cluster.gang, "_stands", lambda group: stands()),
        (cluster.gang, "remove_placement_group", lambda group: None),
        (cluster.gang, "room_text", lambda pool: ""),
        (cluster.learner_group, "remove_placement_group", lambda group: None),
        (cluster.grpo, "remove_placement_group", lambda group: None),
        (cluster.grpo, "room_text", lambda pool: ""),
        (cluster.placing, "num_waiting", lambda needs: 0),
        (cluster.control_room, "PUSH_EVERY_S", PUSH_EVERY_S),
        (cluster.control_room, "NodeAffinitySchedulingStrategy", Nothing),
        (cluster.control_room, "get_dashboard_url", lambda: None),
        (cluster.control_room, "num_waiting", lambda needs: 0),
        (alphadrive.run_folder, "save_config", save_config),
        (alphadrive.run_folder, "load_config", lambda path: config),
        (os, "getpid", lambda: 1),  # it is in the names of temporary files, and so in errors
        # Should a call of Ray ever come through, it must not reach a cluster of this machine.
        (ray._private.auto_init_hook, "enable_auto_connect", False),
        (sys, "unraisablehook", lambda event: None),
    ]
