"""The run that a seed simulates: a configuration, its data, and what is wrong with the data."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from simulation.disk import ROOT

from alphadrive.config import Config
from alphadrive.types import DrivingQuery
from cluster.row_order import RowOrder, balanced_order, uniform_order

NUM_EVAL_ROWS = 3
FIRST_EVAL_ROW = 10_000
AMPLE = 10_000


@dataclass(frozen=True, slots=True)
class Setting:
    """One seed's run. Rows: `poison` kills every engine that draws it, `failing` is refused by all,
    `raising` and `hanging` do that to every reward worker, a step on `overflowing` is not finite; none of
    them is a canary's."""

    config: Config
    num_rows: int
    order: RowOrder
    plans: tuple[str, ...]
    flat_share: float
    poison_rows: frozenset[int]
    failing_rows: frozenset[int]
    raising_rows: frozenset[int]
    hanging_rows: frozenset[int]
    overflowing_rows: frozenset[int]


def setting_of(chance: random.Random) -> Setting:
    """Draw a run."""
    config = _config(chance)
    num_rows = chance.randint(7, 40)
    plans = tuple(chance.choice(["KEEP", "KEEP", "KEEP", "STOP"]) for _ in range(num_rows))
    config.data.num_rows = num_rows
    config.data.sampling = chance.choice(["uniform", "uniform", "balanced"])
    if config.data.sampling == "uniform":
        order = uniform_order(num_rows, config.seed)
    else:
        order = balanced_order(plans, config.seed)
    canaries = {0, num_rows // 2}
    bad = chance.sample([row for row in range(num_rows) if row not in canaries], 5)
    bad_rows = [frozenset({row} if chance.random() < 0.1 else ()) for row in bad]
    return Setting(
        config,
        num_rows,
        order,
        plans,
        chance.choice([0.0, 0.0, 0.2, 0.6, 0.97]),
        *bad_rows,
    )


def _config(chance: random.Random) -> Config:
    config = Config()
    config.seed = chance.randrange(1000)
    config.run.root, config.run.name, config.run.tensorboard = f"{ROOT}/runs", "run", False
    grpo, rollout = config.grpo, config.rollout
    config.data.train = "train"
    config.learner.num_ranks = chance.choice([1, 1, 2, 3])
    config.learner.max_restarts = chance.choice([3, 3, 3, 1, 0])
    config.learner.hang_timeout_s = 30.0
    grpo.groups_per_step = config.learner.num_ranks * chance.choice([1, 1, 2])
    grpo.steps = chance.randint(2, 8)
    grpo.max_policy_lag = chance.choice([0, 1, 1, 2, 4])
    grpo.sync_every = chance.choice([1, 1, 1, 2, 3]) if grpo.max_policy_lag else 1
    grpo.group_size = 2
    grpo.kl_coef = chance.choice([0.0, 0.0, 0.1])
    rollout.num_workers = chance.randint(1, 4)
    rollout.request_timeout_s, rollout.sync_timeout_s = 60.0, 10.0
    rollout.hang_timeout_s = 20.0
    rollout.weight_transfer = "file"
    rollout.update_mode = chance.choice(["keep", "keep", "wait"])
    rollout.canary_rows = chance.choice([1, 2])
    rollout.max_restarts = chance.choice([AMPLE, AMPLE, AMPLE, 2])
    config.rewards.num_workers = chance.randint(1, 3)
    config.rewards.timeout_s = 5.0
    config.rewards.max_dead_letter_share = chance.choice([50.0, 50.0, 50.0, 0.1])
    config.checkpoint.every_steps = chance.randint(1, 3)
    config.checkpoint.keep_last = chance.choice([1, 2, 2, 3])
    config.checkpoint.keep_best = chance.choice([0, 1])
    if chance.random() < 0.3:
        config.data.eval = "eval"
        config.eval.every_steps = chance.choice([1, 2, 3])
    return config


class SimulatedDataset:
    """Stands for `DrivingDataset`: queries without pixels."""

    def __init__(self, folder: Any, num_rows: int | None = None) -> None:
        self._first_row = FIRST_EVAL_ROW if str(folder) == "eval" else 0
        self._num_rows = NUM_EVAL_ROWS if self._first_row or num_rows is None else num_rows

    def __len__(self) -> int:
        return self._num_rows

    def query(self, row: int) -> DrivingQuery:
        return query_of(self._first_row + row)


def query_of(row: int) -> DrivingQuery:
    """The query of a row."""
    return DrivingQuery(query_id=f"q{row}", row=row, speed_mps=5.0, navigation="", plans=("KEEP, STRAIGHT",))


def scan_of(plans: tuple[str, ...]) -> Any:
    """Stands for `alphadrive.data.scan.scan`, as `cluster.row_order` uses it."""

    def scan(folder: Any, columns: Any, num_rows: int | None = None) -> Iterator[Any]:
        return (SimpleNamespace(values={"plans": [plan]}) for plan in plans)

    return scan
