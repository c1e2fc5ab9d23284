"""Scenes as records of the project's data format."""

import io
import multiprocessing
import os
import random
import signal
from collections.abc import Iterator

from alphadrive.data.records import DrivingRecord, ImageRecord
from alphadrive.world.kinematics import acceptable_plans
from alphadrive.world.render import HEIGHT, WIDTH, render
from alphadrive.world.sampling import sample_scene
from alphadrive.world.scene import NAVIGATION
from alphadrive.world.teacher import explain

SOURCE = "alphadrive-world/1"
LABEL_RULE = "world-kinematics/1"
_CHUNK = 32
_SPLIT_SPACE = {"base": 0, "train": 1, "eval": 2}


def scene_seed(seed: int, split: str, index: int) -> int:
    """The seed of one scene. The splits `base`, `train` and `eval` never share one, whatever `seed`;
    any other split name gets a space of its own."""
    space = _SPLIT_SPACE.get(split)
    if space is None:
        space = 3 + random.Random(split).randrange(1 << 20)
    return ((space << 24) + seed << 32) + index


def synthesize(num: int, seed: int, split: str, num_processes: int | None = None) -> Iterator[DrivingRecord]:
    """`num` balanced scenes, rendered, labelled and explained, in order. Same arguments, same records,
    whatever the number of processes (all cores when None)."""
    processes = min(num_processes or os.cpu_count() or 1, max(1, num // _CHUNK))
    tasks = ((index, seed, split) for index in range(num))
    if processes == 1:
        yield from map(_record, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(processes, _leave_ctrl_c_to_parent) as pool:
        yield from pool.imap(_record, tasks, chunksize=_CHUNK)


def _leave_ctrl_c_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _record(task: tuple[int, int, str]) -> DrivingRecord:
    index, seed, split = task
    number = scene_seed(seed, split, index)
    scene, recorded = sample_scene(number)
    others = [plan for plan in acceptable_plans(scene) if plan != recorded]
    reasoning, decided = explain(scene, recorded, number)
    buffer = io.BytesIO()
    render(scene).save(buffer, "JPEG", quality=92, subsampling=0)
    name = f"world-{split}-{seed}-{index:06d}"
    return DrivingRecord(
        query_id=name,
        scene_id=name,
        time_s=0.0,
        split=split,
        images=(ImageRecord(camera="front", dt_s=0.0, data=buffer.getvalue(), width=WIDTH, height=HEIGHT),),
        speed_mps=scene.speed_mps,
        navigation=NAVIGATION[scene.command],
        plans=tuple(str(plan) for plan in [recorded, *others]),
        reasoning=reasoning,
        teacher_plan=str(decided),
        source=SOURCE,
        label_rule=LABEL_RULE,
    )
