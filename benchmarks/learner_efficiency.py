"""What the learner loses around its arithmetic: `python benchmarks/learner_efficiency.py runs/demo`.

Replays a run's rollouts from disk, so that nothing else runs, through two learners in one process:

    system   `LearnerRank.step`: images read, packed, forward, loss, backward, DeepSpeed, metrics, checks
    bare     the same packs, made beforehand: forward, loss, backward, clip, torch's AdamW

Steps of both alternate on the same groups. `learner_efficiency` is the ratio of their median times, bare to
system; the run's own configuration, model and groups are used.
"""

import argparse
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import torch

sys.path.pop(0)  # benchmarks/learner.py would hide the package

from alphadrive.config import Config, load_config
from alphadrive.data.parquet import DrivingDataset
from alphadrive.model_source import model_folder_of
from alphadrive.types import (
    Completion,
    RewardBreakdown,
    RolloutGroup,
    ScoredGroup,
    VersionSpan,
    WeightVersion,
)
from cluster.remote import free_port
from learner.losses import grpo_loss
from learner.rank import LearnerRank


def load_groups(folder: Path, dataset: DrivingDataset, number: int) -> list[ScoredGroup]:
    """The first trained groups (advantages not all 0) of a run's rollouts, at version 0.0.

    The prompt's tokens are not among a run's rollouts: `with_prompts` adds them.
    """
    groups: list[ScoredGroup] = []
    for part in sorted(folder.glob("*.parquet")):
        for row in pq.read_table(part).to_pylist():
            if any(row["advantages"]):
                groups.append(_group(row, dataset))
            if len(groups) == number:
                return groups
    raise SystemExit(f"{folder}: {len(groups)} groups with a signal, expected {number}; lower --steps")
