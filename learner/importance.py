"""Weights for tokens that another policy drew than the one their gradient is taken at.

    mu, the engine that drew them  ──▶  pi_old, the learner at the step's start  ──▶  pi, the learner now
                 │   other arithmetic, and older weights   │     optimizer steps of this step    │
                 └── the weight of this module ────────────┘     └── the clipped ratio ──────────┘

With `grpo.old_policy: rollout` the clipped ratio spans both and a weight would count the left part twice:
then only the mask is applied. Pure functions of tensors; the legend is in `learner.losses`.

Sources: truncation, F. Yao et al., "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training"
(2025); masking of tokens, IcePop (Ring-1T, arXiv 2510.18855); masking and truncation of sequences, J. Liu et
al., "When Speed Kills Stability" (2025); the split of the ratio, decoupled PPO, arXiv 2110.00641.
"""

import torch
from torch import Tensor

from alphadrive.errors import ConfigError
from learner.losses import MAX_LOG_RATIO, sequence_sums


def mismatch_ratio(
    log_ratio_T: Tensor, loss_mask_T: Tensor, sequence_T: Tensor, num_sequences: int, level: str
) -> Tensor:
    """How much likelier than for the engine that drew it is each token, or its whole completion. (T,)

    `log_ratio_T` is log(pi_old / mu). `level` is `token`, or `sequence`: the product over the tokens of a
    completion, at each of them. No gradient flows. Raises ConfigError for another level.

    Ratios [2, 3 | 0.5] of two completions: at level `sequence` [6, 6 | 0.5].
    """
    log_ratio_T = log_ratio_T.detach()
    if level == "sequence":
        sums_S = sequence_sums(log_ratio_T * loss_mask_T, sequence_T, num_sequences)
        log_ratio_T = sums_S[sequence_T].clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    elif level != "token":
        raise ConfigError(f"grpo.importance_level={level!r}: expected token or sequence")
    return log_ratio_T.exp()


def truncated(ratio_T: Tensor, cap: float | None) -> Tensor:
    """The weight min(ratio, cap); the ratio itself where no cap is given.

    >>> truncated(torch.tensor([0.5, 1.0, 8.0]), 2.0)
    tensor([0.5000, 1.0000, 2.0000])
    """
    return ratio_T if cap is None else ratio_T.clamp(max=cap)


def is_trusted(ratio_T: Tensor, bounds: tuple[float, float] | None) -> Tensor:
    """Whether each ratio lies within [low, high], ends included; all do where no bounds are given.

    >>> is_trusted(torch.tensor([0.4, 0.5, 5.0, 5.1]), (0.5, 5.0))
    tensor([False,  True,  True, False])
    """
    if bounds is None:
        return torch.ones_like(ratio_T, dtype=torch.bool)
    low, high = bounds
    return (ratio_T >= low) & (ratio_T <= high)
