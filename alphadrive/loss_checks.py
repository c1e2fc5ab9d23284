"""Checks of the keys that shape the GRPO loss. Pure; called by `alphadrive.config_checks`."""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alphadrive.config import GrpoConfig

_CLIPPED_BY_TOKEN = ("grpo", "dr_grpo", "dapo")
_CHOICES: dict[str, tuple[str | None, ...]] = {
    "loss": (*_CLIPPED_BY_TOKEN, "gspo", "cispo"),
    "loss_aggregation": (None, "token", "sequence", "constant"),
    "kl_estimator": ("k1", "k2", "k3"),
    "old_policy": ("rollout", "learner"),
    "importance_level": (None, "token", "sequence"),
}


def loss_problems(grpo: "GrpoConfig") -> list[str]:
    """What is wrong with the loss of a configuration, one sentence each."""
    problems = []
    for name, choices in _CHOICES.items():
        if getattr(grpo, name) not in choices:
            names = ", ".join("null" if choice is None else choice for choice in choices)
            problems.append(f"grpo.{name}={getattr(grpo, name)}: expected one of {names}")
    return [*problems, *_clip_problems(grpo), *_kl_problems(grpo), *_importance_problems(grpo)]


def _clip_problems(grpo: "GrpoConfig") -> list[str]:
    problems = []
    low, high, dual = grpo.clip_low, grpo.clip_high, grpo.clip_dual
    if low is not None and not 0 <= low <= 1:
        problems.append(f"grpo.clip_low={low}: expected 0 to 1 (no lower bound: a ratio is never below 0)")
    if high is not None and not 0 <= high < math.inf:
        problems.append(f"grpo.clip_high={high}: expected 0 or more")
    if dual is None:
        return problems
    if not 1 < dual < math.inf:
        problems.append(f"grpo.clip_dual={dual}: expected above 1, where an on-policy token is; usual is 3")
    if grpo.loss not in _CLIPPED_BY_TOKEN:
        problems.append(
            f"grpo.clip_dual={dual} has no meaning with grpo.loss={grpo.loss}: expected one of "
            f"{', '.join(_CLIPPED_BY_TOKEN)}, or null"
        )
    return problems


def _kl_problems(grpo: "GrpoConfig") -> list[str]:
    if not grpo.kl_coef > 0:
        return []
    if grpo.loss == "dapo":
        return [
            f"grpo.kl_coef={grpo.kl_coef} with grpo.loss=dapo: its dynamic sampling leaves out groups of "
            "equal rewards, which a KL needs; set grpo.kl_coef=0, or grpo.loss=grpo with grpo.clip_high=0.28"
        ]
    return []


def _importance_problems(grpo: "GrpoConfig") -> list[str]:
    problems = []
    level, cap, mask = grpo.importance_level, grpo.importance_cap, grpo.importance_mask
    if level is None and (cap is not None or mask is not None):
        key = "cap" if cap is not None else "mask"
        problems.append(
            f"grpo.importance_{key} has no effect: set grpo.importance_level to token or sequence"
        )
    if level is not None and cap is None and mask is None:
        problems.append(
            f"grpo.importance_level={level} corrects nothing by itself: set grpo.importance_cap (usual is 2) "
            "or grpo.importance_mask (usual is [0.5, 5])"
        )
    if cap is not None and not 0 < cap < math.inf:
        problems.append(f"grpo.importance_cap={cap}: expected above 0")
    if cap is not None and grpo.old_policy == "rollout":
        problems.append(
            f"grpo.importance_cap={cap} with grpo.old_policy=rollout: that ratio holds the correction "
            "already and would count twice; set grpo.old_policy=learner, or use grpo.importance_mask"
        )
    if mask is not None and not (len(mask) == 2 and 0 <= mask[0] < 1 < mask[1] and math.isfinite(mask[1])):
        problems.append(
            f"grpo.importance_mask={mask}: expected [low, high] with 0 <= low < 1 < high; 1 is full agreement"
        )
    return problems
