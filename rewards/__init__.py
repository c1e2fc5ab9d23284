"""Rewards and group-relative advantages: functions over the texts of one group.

One module a variant (`strict`, `paper`, `released`, `noise`), one a further term; `score` puts them
together. No Ray, no torch. The variants are pure; of the further terms `judge` asks a server and a
user's function does what it does. The reward workers in `cluster/` call `score_group` once a group.
"""

from rewards.advantage import group_advantages
from rewards.score import score_group

__all__ = ["group_advantages", "score_group"]
