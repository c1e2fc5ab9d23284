"""What is known of a system's parts, and how they are to be put together. Plain values."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alphadrive.config import Config
from alphadrive.planning.engine import EngineSpeed

Seconds = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverCosts:
    """Processor time of the driver's event loop: for a group, from its slot to its step; for a call of an
    actor with its answer; for an engine in a weight sync; for watching an engine for a second."""

    group_s: float = 0.0
    call_s: float = 0.0
    sync_engine_s: float = 0.0
    watch_engine_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What runs have shown. Arrays are samples, drawn from at random.

    `tokens` [groups, group size]: tokens of every completion. `spread`: how much longer than its tokens say a
    group took. `flat_share`: of the groups, those whose rewards were all equal. `hop_s`: from one process to
    another. A learner's step takes `step_s + tokens * token_s`, times one of `step_spread`, with `num_ranks`
    ranks. A weight sync: `export_s`, then every engine one of `sync_engine_s`, of which it draws nothing for
    one of `paused_s`, then the learner `canary_s` for every engine.
    """

    tokens: NDArray[np.int64]
    prompt_tokens: float
    flat_share: float
    engine: EngineSpeed
    spread: Seconds
    score_s: Seconds
    hop_s: float
    step_s: float
    token_s: float
    step_spread: Seconds
    num_ranks: int
    export_s: Seconds
    sync_engine_s: Seconds
    paused_s: Seconds
    canary_s: float
    engine_start_s: float
    driver: DriverCosts


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What is simulated. `seats` are the sequences an engine draws at once, `fail_rate` the deaths of an
    engine in an hour; `steps` are simulated after `warmup_steps`."""

    num_engines: int
    num_rewards: int
    num_ranks: int
    group_size: int
    groups_per_step: int
    max_policy_lag: int
    sync_every: int
    seats: int
    skips_flat_groups: bool
    waits_for_groups: bool = False
    """Whether an engine is updated when its groups have ended (`rollout.update_mode: wait`)."""
    fail_rate: float = 0.0
    steps: int = 40
    warmup_steps: int = 8

    @property
    def lag_bound(self) -> int:
        """The most versions a trained group may be behind."""
        return self.max_policy_lag + self.sync_every - 1


def setup_of(config: Config, num_engines: int, **changes: Any) -> Setup:
    """A configuration's setup with so many engines."""
    values: dict[str, Any] = {
        "num_engines": num_engines,
        "num_rewards": config.rewards.num_workers,
        "num_ranks": config.learner.num_ranks,
        "group_size": config.grpo.group_size,
        "groups_per_step": config.grpo.groups_per_step,
        "max_policy_lag": config.grpo.max_policy_lag,
        "sync_every": config.grpo.sync_every,
        "seats": config.rollout.max_num_seqs,
        "skips_flat_groups": config.grpo.kl_coef == 0,
        "waits_for_groups": config.rollout.update_mode == "wait",
    }
    return Setup(**(values | changes))
