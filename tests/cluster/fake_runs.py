"""Whole GRPO runs on a real Ray with fake engines and fake learner ranks."""

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from alphadrive.config import load_config
from alphadrive.run_folder import RunFolder
from alphadrive.types import WeightVersion
from cluster.launch import Attempt
from cluster.packing import Node
from cluster.placement import plan_placement
from cluster.progress import RunProgress
from cluster.status import RunStatus

GROUPS_PER_STEP = 4
KEYS = {
    "data.eval": "null",
    "run.tensorboard": "false",
    "rewards.variant": "random",
    "grpo.group_size": 4,
    "grpo.groups_per_step": GROUPS_PER_STEP,
    "checkpoint.every_steps": 3,
    "learner.num_ranks": 2,
    "learner.cpus_per_rank": 0.1,
    "rollout.cpus_per_worker": 0.1,
}


def make_attempt(
    scenes: Path, root: Path, steps: int, *overrides: str, nodes: Sequence[Node] = (Node(cpus=4),)
) -> Attempt:
    """The first attempt of a run of fakes on the dataset `scenes`, to be given to `train`."""
    keys = KEYS | {"data.train": scenes, "run.root": root, "grpo.steps": steps}
    config = load_config("debug", [*(f"{key}={value}" for key, value in keys.items()), *overrides])
    run = RunFolder.create(config)
    status = RunStatus(run, "grpo", steps, 0)
    status.begin_attempt(0, 0, "started")
    return Attempt(
        config=config,
        run=run,
        model_folder=root,
        checkpoint=None,
        saved={},
        version=WeightVersion(0, 0),
        status=status,
        progress=RunProgress("grpo", steps, may_be_live=False),
        stop=SimpleNamespace(on_stop=None, was_asked=False),
        placement=plan_placement(config, "grpo", nodes),
    )


def train(attempt: Attempt, rollout_actor: type) -> None:
    """Train to the end of the run."""
    from cluster.grpo import train_on_ray

    try:
        asyncio.run(train_on_ray(attempt, rollout_actor))
    finally:
        attempt.run.close()


def ended_queries(attempt: Attempt) -> Counter[str]:
    """How the queries of all epochs ended, by the newest checkpoint."""
    checkpoint = attempt.run.latest_checkpoint()
    assert checkpoint is not None
    ledger = json.loads((checkpoint.path / "ledger.json").read_text())["queries"]
    ended = Counter(outcome for rows in ledger["open_epochs"].values() for outcome in rows.values())
    for counts in ledger["closed_epochs"].values():
        ended += Counter(counts)
    return ended
