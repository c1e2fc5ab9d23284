"""Rewards and group-relative advantages: pure functions over text.

No Ray, no torch, no files. The reward workers in `cluster/` call `score_group` once a group.
"""

from rewards.advantages import group_advantages
from rewards.score import score_group

__all__ = ["group_advantages", "score_group"]
