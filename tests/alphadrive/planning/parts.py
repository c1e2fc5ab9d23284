"""Measured parts without any spread, for sums that can be done by hand."""

import numpy as np

from alphadrive.planning.engine import EngineSpeed
from alphadrive.planning.measured import DriverCosts, Measured, Setup

NOTHING = np.zeros(1)


def measured(**changes) -> Measured:
    """Groups of 8 take 1 s whatever the load, a step 0.5 s; all else is free."""
    values = {
        "tokens": np.full((4, 8), 100),
        "prompt_tokens": 0.0,
        "flat_share": 0.0,
        "engine": EngineSpeed(token_s=0.01, sequence_token_s=0.0, prompt_tokens=0.0),
        "spread": np.ones(1),
        "score_s": NOTHING,
        "hop_s": 0.0,
        "step_s": 0.5,
        "token_s": 0.0,
        "step_spread": np.ones(1),
        "num_ranks": 1,
        "export_s": NOTHING,
        "sync_engine_s": NOTHING,
        "paused_s": NOTHING,
        "canary_s": 0.0,
        "engine_start_s": 30.0,
        "driver": DriverCosts(),
    }
    return Measured(**(values | changes))


def setup(**changes) -> Setup:
    """One engine with room for 4 groups, which are a step."""
    values = {
        "num_engines": 1,
        "num_rewards": 1,
        "num_ranks": 1,
        "group_size": 8,
        "groups_per_step": 4,
        "max_policy_lag": 0,
        "sync_every": 1,
        "seats": 32,
        "skips_flat_groups": True,
    }
    return Setup(**(values | changes))
