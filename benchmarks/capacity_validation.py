"""Are predictions right? Runs with one and two engines are measured, others predicted from them, and made:

    python benchmarks/capacity_validation.py --json validation.json        # about 4 minutes

The shipped `train_on_ray`: pools, exchange, weight sync with digests and canaries, rewards with their files,
learner group, loop, recorder, on a real Ray. Engines and the learner's rank sleep (`capacity_fakes.py`), so
that two cores are enough for all of them; what this does not show is parts that share a processor.

Ends with 1 when an unseen run is more than 10 % off.
"""

import argparse
import asyncio
import json
import logging
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from capacity_fakes import SEATS, SleepingLearnerActor, SleepingRolloutActor
from driver_scaling import Rows, SilentProgress

import cluster.grpo
import cluster.learner_group
from alphadrive import metric_names as names
from alphadrive.config import load_config
from alphadrive.planning.calibration import calibrate, read_run
from alphadrive.planning.measured import setup_of
from alphadrive.planning.simulation import Outcome, simulate
from alphadrive.run_folder import RunFolder
from alphadrive.types import WeightVersion
from cluster.grpo import train_on_ray
from cluster.launch import Attempt
from cluster.packing import Node
from cluster.placement import plan_placement
from cluster.processes import ProcessTree
from cluster.ray_session import ray_session
from cluster.status import RunStatus

FIRST_STEPS, LAST_STEPS = 4, 2
"""Left out of what is measured: the pipeline fills, and empties."""
ALLOWED = 0.10
SEEN: dict[str, dict[str, object]] = {
    "1 engine": {"rollout.num_workers": 1, "grpo.steps": 24},
    "2 engines": {"rollout.num_workers": 2, "grpo.steps": 36},
}
UNSEEN: dict[str, dict[str, object]] = {
    "3 engines": {"rollout.num_workers": 3},
    "4 engines": {"rollout.num_workers": 4, "grpo.steps": 60},
    "G = 8, 3 engines": {"rollout.num_workers": 3, "grpo.group_size": 8, "grpo.steps": 32},
    "G = 2, 2 engines": {"rollout.num_workers": 2, "grpo.group_size": 2},
    "lag 0, 4 engines": {"rollout.num_workers": 4, "grpo.max_policy_lag": 0},
    "12 groups a step, 4 engines": {"rollout.num_workers": 4, "grpo.groups_per_step": 12},
}


def make_attempt(folder: Path, name: str, own: dict[str, object]) -> Attempt:
    """A run of engines that sleep."""
    keys: dict[str, object] = {
        "data.train": folder,
        "data.eval": "null",
        "run.root": folder,
        "run.name": name.replace(" ", "-").replace(",", "").replace("=", ""),
        "run.tensorboard": "false",
        "rewards.variant": "random",
        "grpo.steps": 48,
        "grpo.group_size": 4,
        "grpo.groups_per_step": 8,
        "grpo.max_new_tokens": 256,
        "checkpoint.every_steps": 1_000_000,
        "rollout.max_num_seqs": SEATS,
        "rollout.weight_transfer": "file",
        "learner.cpus_per_rank": 0.0,
    } | own
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
        stop=SimpleNamespace(on_stop=None, was_asked=False),
        placement=replace(plan_placement(config, "grpo", [Node(cpus=2)]), cpus_per_engine=0.0),
    )


def made(folder: Path, name: str, own: dict[str, object]) -> Path:
    """Make a run; its folder."""
    attempt = make_attempt(folder, name, own)
    with attempt.run:
        asyncio.run(train_on_ray(attempt, SleepingRolloutActor))
        attempt.run.write_summary(attempt.summary)
    return attempt.run.path


def measured_in(path: Path) -> dict[str, float]:
    """What a run brought between its first and its last steps."""
    steps = read_run(path).steps[FIRST_STEPS - 1 : -LAST_STEPS]
    seconds = sum(step[names.STEP_S] for step in steps)

    def over_time(name: str) -> float:
        return sum(step[name] * step[names.STEP_S] for step in steps) / seconds

    return {
        "samples_per_s": over_time(names.END_TO_END_SAMPLES_PER_S),
        "learner_idle_share": over_time(names.LEARNER_IDLE_SHARE),
        "sync_s": float(np.mean([step[names.SYNC_S] for step in steps])),
    }


def compared(name: str, path: Path, outcome: Outcome) -> dict[str, Any]:
    """A line of the table."""
    found = measured_in(path)
    error = outcome.samples_per_s / found["samples_per_s"] - 1
    print(
        f"{name:28}  {found['samples_per_s']:9.1f}  {outcome.samples_per_s:9.1f}  {error:+6.1%}"
        f"  {found['learner_idle_share']:6.0%} {outcome.learner_idle_share:6.0%}"
        f"  {found['sync_s']:6.2f} {outcome.sync_s:6.2f}",
        flush=True,
    )
    predicted = {
        "samples_per_s": outcome.samples_per_s,
        "learner_idle_share": outcome.learner_idle_share,
        "sync_s": outcome.sync_s,
    }
    return {"run": name, "measured": found, "predicted": predicted, "error": error}


def main() -> int:
    """Measure, predict, compare."""
    parser = argparse.ArgumentParser(description="predictions held against runs that were not seen")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path, help="keep the runs' folders here")
    args = parser.parse_args()
    cluster.learner_group.LearnerActor = SleepingLearnerActor  # type: ignore[misc]
    cluster.grpo.DrivingDataset = Rows  # type: ignore[attr-defined, misc]
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as temporary, ProcessTree() as tree, ray_session(0, tree):
        folder = args.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        seen = {name: made(folder, name, own) for name, own in SEEN.items()}
        measured = calibrate(list(seen.values()))
        print(
            f"{measured.engine}; hop {1e3 * measured.hop_s:.1f} ms; step {measured.step_s:.3f} s + "
            f"{1e6 * measured.token_s:.0f} us a token"
        )
        print(f"{'':28}   measured  predicted   error   learner idle    sync s")
        lines = []
        for name, own in (SEEN | UNSEEN).items():
            path = seen.get(name) or made(folder, name, own)
            config = read_run(path).config
            outcome = simulate(setup_of(config, config.rollout.num_workers, steps=200), measured)
            lines.append(compared(name, path, outcome) | {"was_seen": name in seen})
    worst = max(abs(line["error"]) for line in lines if not line["was_seen"])
    print(f"largest error of an unseen run: {worst:.1%}")
    if args.json:
        args.json.write_text(json.dumps(lines, indent=2))
    return int(worst > ALLOWED)


if __name__ == "__main__":
    sys.exit(main())
