"""What a sample costs the driver, and how many engines it can feed:

    python benchmarks/driver_scaling.py --engines 1 2 4 8 16 32 --json scaling.json

The shipped loop, buffer, ledger, recorder, pools and learner group on a real Ray. Engines, reward workers and
the learner's rank are real actors that do nothing but wait: an engine draws `SEATS` groups at once and ends
`--rate` of them a second; what it returns is as large as a group of 8 completions of 200 tokens with
log-probabilities, made once for each process. Nobody opens it, so that two cores have time for the driver.

A line for each number of engines, over the whole steps of `--seconds`:

    offered     groups a second that the engines are good for
    groups/s    groups a second that were trained
    linear      the share of the two
    us/group    processor time of the driver's process, all threads, without Ray's daemons
    us/sample   the same by 8
    loop/sample the part of the event loop's thread: it is what is full first
    loop busy   the share of the clock in which that thread runs
    calls       of engines and reward workers for a group

From lines with different numbers of calls for a group follows what a group and a call cost the event loop.
"""

import argparse
import asyncio
import json
import logging
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import ray
from driver_fakes import GROUP_SIZE, SEATS, DatedSampling, QuickRank, QuickRewards, WaitingEngine, query_of

import cluster.grpo
import cluster.learner_group
from alphadrive.config import load_config
from alphadrive.run_folder import RunFolder
from alphadrive.types import DrivingQuery, WeightVersion
from cluster.actors import CONTROL
from cluster.collector import rare_collections
from cluster.exchange import Line
from cluster.grpo import System, drive
from cluster.launch import Attempt
from cluster.learner_group import LearnerGroup
from cluster.packing import Node
from cluster.placement import Placement, plan_placement
from cluster.processes import ProcessTree
from cluster.progress import RunProgress
from cluster.ray_session import ray_session
from cluster.reward_pool import RewardPool
from cluster.rollout_pool import RolloutPool
from cluster.status import RunStatus
from rollout.settings import EngineSettings, group_sampling

MAX_POLICY_LAG = 2
"""A step takes as many groups as all engines draw at once; so as many again wait in the engines."""
REWARD_WORKERS = 4
FIRST_STEPS = 4
"""Steps before the measurement starts."""
NUM_ROWS = 5000


class Reading(NamedTuple):
    """Seconds by the clock, of the processor for the driver, and for its event loop; calls of actors."""

    clock_s: float
    process_s: float
    loop_s: float
    num_calls: int


class Calls:
    """Counts the calls of engines and reward workers."""

    made = 0

    def count(self) -> None:
        """From now on."""
        call, score = Line._call, RewardPool._score

        def counted_call(line: Line) -> None:
            self.made += 1
            call(line)

        def counted_score(pool: RewardPool, *arguments: Any) -> Any:
            self.made += 1
            return score(pool, *arguments)

        Line._call = counted_call  # type: ignore[method-assign]
        RewardPool._score = counted_score  # type: ignore[method-assign]


calls = Calls()


class Meter:
    """In place of the weight sync, which costs by engine and step, not by sample: reads the clocks."""

    def __init__(self, stop: Any, seconds: float) -> None:
        self.seconds, self.canary_differences, self.paused_seconds = [0.0], [0.0], [0.0]
        self.latest: dict[str, float] = {}
        self.version = WeightVersion(0, 0)
        self.readings: list[Reading] = []
        self._stop, self._limit_s = stop, seconds

    async def publish(self, version: WeightVersion) -> None:
        """A step has ended."""
        self.version = version
        now = Reading(time.monotonic(), time.process_time(), time.thread_time(), calls.made)
        self.readings.append(now)
        begun = self.readings[FIRST_STEPS:]
        if begun and begun[-1].clock_s - begun[0].clock_s > self._limit_s:
            self._stop.on_stop()


class Rows:
    """In place of the dataset."""

    def __init__(self, *ignored: Any) -> None:
        self._queries = [query_of(row) for row in range(NUM_ROWS)]

    def __len__(self) -> int:
        return NUM_ROWS

    def query(self, row: int) -> DrivingQuery:
        """That of a row."""
        return self._queries[row]


def make_attempt(folder: Path, num_engines: int) -> Attempt:
    """A run with three slots for every group that the engines draw at once."""
    keys = {
        "data.train": folder,
        "data.eval": "null",
        "run.root": folder,
        "run.name": f"engines-{num_engines}",
        "run.tensorboard": "false",
        "grpo.steps": 1_000_000,
        "grpo.group_size": GROUP_SIZE,
        "grpo.groups_per_step": SEATS * num_engines,
        "grpo.max_policy_lag": MAX_POLICY_LAG,
        "checkpoint.every_steps": 1_000_000,
        "rewards.num_workers": REWARD_WORKERS,
        "rollout.num_workers": num_engines,
        "learner.cpus_per_rank": 0.0,
    }
    config = load_config("debug", [f"{key}={value}" for key, value in keys.items()])
    run = RunFolder.create(config)
    status = RunStatus(run, "grpo", config.grpo.steps, 0)
    status.begin_attempt(0, 0, "started")
    return Attempt(
        config=config,
        run=run,
        model_folder=folder,
        checkpoint=None,
        saved={},
        version=WeightVersion(0, 0),
        status=status,
        progress=SilentProgress("grpo", config.grpo.steps, may_be_live=False),
        stop=SimpleNamespace(on_stop=None, was_asked=True),
        placement=replace(plan_placement(config, "grpo", [Node(cpus=2)]), cpus_per_engine=0.0),
    )


class SilentProgress(RunProgress):
    """Shows nothing."""

    def step(self, step: int, figures: Any) -> None:
        """Nothing."""


async def measure(attempt: Attempt, rate: float, seconds: float) -> list[Reading]:
    """Train for some seconds; the clocks after every step."""
    config, placement = attempt.config, attempt.placement
    assert placement is not None
    meter = Meter(attempt.stop, seconds)
    engine_class = ray.remote(concurrency_groups={CONTROL: 4})(WaitingEngine)
    reward_class = ray.remote(QuickRewards).options(num_cpus=0)
    pool = RolloutPool(
        config.rollout,
        lambda index: engine_class.options(num_cpus=0, max_concurrency=1000).remote(rate),
        lambda index: EngineSettings(model_folder="none", initial_version=attempt.version),
        lambda query: DatedSampling(num_samples=GROUP_SIZE, seed=query.seed, version=meter.version),
        group_sampling(config),
    )
    rewards = RewardPool(config.rewards, lambda worker_id: reward_class.remote())
    await asyncio.gather(pool.start(), rewards.start())
    learner = await start_learner(attempt, placement)
    for engine in pool.engines:
        engine.version = None
    try:
        await drive(
            attempt,
            System(
                rollouts=pool,
                rewards=rewards,
                learner=learner,
                sync=meter,
                answer=pool.answer,
                save=save_nothing,
                describe=str,
            ),
        )
    finally:
        await asyncio.gather(pool.close(), rewards.close())
        learner.kill()
    return meter.readings[FIRST_STEPS:]


async def start_learner(attempt: Attempt, placement: Placement) -> LearnerGroup:
    """The learner group around one quick rank."""
    return await LearnerGroup.start(
        "grpo",
        attempt.config,
        placement,
        model_folder=attempt.model_folder,
        dataset_folder=attempt.model_folder,
        version=attempt.version,
    )


async def save_nothing(folder: Path) -> None:
    """There is nothing to save."""
    (folder / "model").mkdir()
    (folder / "model" / "model.safetensors").touch()


def figures_of(readings: list[Reading], attempt: Attempt, rate: float) -> dict[str, float]:
    """What was measured with one number of engines."""
    num_engines = attempt.config.rollout.num_workers
    groups = (len(readings) - 1) * attempt.config.grpo.groups_per_step
    clock_s, process_s, loop_s, num_calls = (
        last - first for first, last in zip(readings[0], readings[-1], strict=True)
    )
    return {
        "engines": num_engines,
        "offered": num_engines * rate,
        "groups/s": groups / clock_s,
        "linear": groups / clock_s / (num_engines * rate),
        "us/group": 1e6 * process_s / groups,
        "us/sample": 1e6 * process_s / groups / GROUP_SIZE,
        "loop/sample": 1e6 * loop_s / groups / GROUP_SIZE,
        "loop busy": loop_s / clock_s,
        "calls": num_calls / groups,
    }


def main() -> None:
    """Measure each number of engines and print a line for it."""
    parser = argparse.ArgumentParser(description="the driver's cost of a sample")
    parser.add_argument("--engines", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--rate", type=float, default=50.0, help="groups a second of an engine")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    cluster.learner_group.LearnerActor = QuickRank  # type: ignore[misc]
    cluster.grpo.DrivingDataset = Rows  # type: ignore[attr-defined, misc]
    logging.disable(logging.WARNING)
    calls.count()
    found = []
    with (
        rare_collections(),
        tempfile.TemporaryDirectory() as folder,
        ProcessTree() as tree,
        ray_session(0, tree),
    ):
        for num_engines in args.engines:
            attempt = make_attempt(Path(folder), num_engines)
            readings = asyncio.run(measure(attempt, args.rate, args.seconds))
            attempt.run.close()
            found.append(figures_of(readings, attempt, args.rate))
            if num_engines == args.engines[0]:
                print("  ".join(f"{name:>11}" for name in found[0]))
            print("  ".join(f"{value:11.4g}" for value in found[-1].values()), flush=True)
    if len(found) > 2:
        loop_us = np.array([row["loop/sample"] * GROUP_SIZE for row in found])
        features = np.array([[1.0, row["calls"]] for row in found])
        (group_us, call_us), *_ = np.linalg.lstsq(features, loop_us, rcond=None)
        print(f"event loop: {group_us:.0f} us a group and {call_us:.0f} us a call")
    if args.json:
        args.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
