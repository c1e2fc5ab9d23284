"""Scenes as records of the project's data format."""

import io
import itertools
import multiprocessing
import os
import signal
from collections.abc import Iterator

from alphadrive.data.records import DrivingRecord, ImageRecord
from alphadrive.world.choices import Frequencies, Kind
from alphadrive.world.kinds import Population, View, views
from alphadrive.world.kinematics import acceptable_plans
from alphadrive.world.render import HEIGHT, WIDTH, render
from alphadrive.world.scene import NAVIGATION
from alphadrive.world.teacher import explain

SOURCE = "alphadrive-world/1"
LABEL_RULE = "world-kinematics/1"
_CHUNK = 32


def synthesize(
    num: int,
    seed: int,
    split: str,
    num_processes: int | None = None,
    *,
    kind: Kind = "plain",
    frequencies: Frequencies = "balanced",
) -> Iterator[DrivingRecord]:
    """`num` scenes, rendered, labelled and explained, in order; a counterfactual scene gives two records.
    Same arguments, same records, whatever the number of processes (all cores when None).

    Raises ConfigError for a kind that does not go together with the frequencies.
    """
    population = Population(kind=kind, frequencies=frequencies, split=split, seed=seed)
    processes = min(num_processes or os.cpu_count() or 1, max(1, num // _CHUNK))
    return _synthesize(population, num, processes)


def _synthesize(population: Population, num: int, processes: int) -> Iterator[DrivingRecord]:
    tasks = ((population, index) for index in range(num))
    if processes == 1:
        yield from itertools.chain.from_iterable(map(_records, tasks))
        return
    with multiprocessing.get_context("spawn").Pool(processes, _leave_ctrl_c_to_parent) as pool:
        yield from itertools.chain.from_iterable(pool.imap(_records, tasks, chunksize=_CHUNK))


def _leave_ctrl_c_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _records(task: tuple[Population, int]) -> list[DrivingRecord]:
    population, index = task
    return [_record(population, index, view) for view in views(population, index)]


def _record(population: Population, index: int, view: View) -> DrivingRecord:
    scene, recorded = view.scene, view.recorded
    others = [plan for plan in acceptable_plans(scene) if plan != recorded]
    reasoning, decided = explain(scene, recorded, population.scene_seed(index))
    buffer = io.BytesIO()
    render(scene, view.look).save(buffer, "JPEG", quality=92, subsampling=0)
    scene_id = population.scene_id(index)
    return DrivingRecord(
        query_id=scene_id + view.mark,
        scene_id=scene_id,
        time_s=0.0,
        split=population.split,
        images=(ImageRecord(camera="front", dt_s=0.0, data=buffer.getvalue(), width=WIDTH, height=HEIGHT),),
        speed_mps=scene.speed_mps,
        navigation=NAVIGATION[scene.command],
        plans=tuple(str(plan) for plan in [recorded, *others]),
        reasoning=reasoning,
        teacher_plan=str(decided),
        source=SOURCE + view.remark,
        label_rule=LABEL_RULE,
    )
