"""The maths of the GRPO update, over completion tokens. Pure functions of tensors.

Legend: T, the completion tokens of a microbatch, of all completions one after another; every
`*_T` is one number a token, float32.

The behaviour policy is the engine that sampled: its own log-probabilities (`rollout_logprobs`) are
the denominator of the ratio, so a group drawn under an older version, or under the engine's
slightly different arithmetic, is corrected for. Losses are sums over tokens divided by the number
of completion tokens of the whole step: the update does not depend on how the step was cut into
microbatches and ranks.

Sources: PPO, arXiv 1707.06347, eq. 7; GRPO, arXiv 2402.03300, eq. 3 and 4; asymmetric clipping and
the token-level mean, DAPO, arXiv 2503.14476, eq. 8; the k3 estimator, J. Schulman, "Approximating
KL divergence" (2020).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to ±20 before `exp`: far outside any clip range, and finite in float32."""


def log_ratio(policy_logprobs_T: Tensor, rollout_logprobs_T: Tensor) -> Tensor:
    """log(pi / pi_rollout) of each token, clamped to ±`MAX_LOG_RATIO`."""
    return (policy_logprobs_T - rollout_logprobs_T).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def clipped_policy_loss(
    ratio_T: Tensor, advantages_T: Tensor, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """PPO's clipped surrogate with separate lower and upper ranges (DAPO, eq. 8), negated.

    Returns the loss of each token, `-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)`, and whether
    the clipped term was the smaller one (no gradient flows there).

    >>> clipped_policy_loss(torch.tensor([1.5]), torch.tensor([1.0]), 0.2, 0.28)
    (tensor([-1.2800]), tensor([True]))
    """
    unclipped_T = -ratio_T * advantages_T
    clipped_T = -ratio_T.clamp(1 - clip_low, 1 + clip_high) * advantages_T
    return torch.maximum(unclipped_T, clipped_T), clipped_T > unclipped_T


def k3_kl(policy_logprobs_T: Tensor, ref_logprobs_T: Tensor) -> Tensor:
    """The k3 estimate of KL(pi || pi_ref) at each token (GRPO, eq. 4).

    `exp(d) - d - 1` with d = log pi_ref - log pi. Never negative; unbiased for tokens drawn from pi.
    """
    delta_T = log_ratio(ref_logprobs_T, policy_logprobs_T)
    return delta_T.exp() - delta_T - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpoLoss:
    """The loss of a microbatch and the sums its metrics are made of.

    `loss` is a scalar with gradient. `sums` are sums over the microbatch's tokens and `maxima`
    maxima, both plain detached scalars by metric name; divide the summed `sums` of a step by its
    number of tokens.
    """

    loss: Tensor
    sums: dict[str, Tensor]
    maxima: dict[str, Tensor]


def grpo_loss(
    *,
    policy_logprobs_T: Tensor,
    rollout_logprobs_T: Tensor,
    advantages_T: Tensor,
    entropy_T: Tensor,
    loss_mask_T: Tensor,
    num_step_tokens: int,
    clip_low: float,
    clip_high: float,
    kl_coef: float = 0.0,
    ref_logprobs_T: Tensor | None = None,
) -> GrpoLoss:
    """GRPO's objective (eq. 3), negated, over the tokens of one microbatch.

    `num_step_tokens` counts the loss tokens of the whole optimizer step, over all ranks and
    microbatches; `loss_mask_T` is 1 for tokens that count and 0 for those of a filler microbatch.
    `ref_logprobs_T` is needed when `kl_coef` is not 0.
    """
    log_ratio_T = log_ratio(policy_logprobs_T, rollout_logprobs_T)
    pg_loss_T, is_clipped_T = clipped_policy_loss(log_ratio_T.exp(), advantages_T, clip_low, clip_high)
    loss_T = pg_loss_T
    per_token = {
        "pg_loss": pg_loss_T,
        "ppo_kl": -log_ratio_T,
        "pg_clipfrac": is_clipped_T.float(),
        "entropy": entropy_T,
    }
    if kl_coef:
        assert ref_logprobs_T is not None, "kl_coef is not 0: reference log-probabilities are needed"
        kl_T = k3_kl(policy_logprobs_T, ref_logprobs_T)
        loss_T = loss_T + kl_coef * kl_T
        per_token["kl_loss"] = kl_T
    probs_diff_T = (policy_logprobs_T.detach().exp() - rollout_logprobs_T.exp()).abs() * loss_mask_T
    per_token["rollout_probs_diff"] = probs_diff_T
    return GrpoLoss(
        loss=(loss_T * loss_mask_T).sum() / num_step_tokens,
        sums={name: (value_T.detach() * loss_mask_T).sum() for name, value_T in per_token.items()},
        maxima={"rollout_probs_diff": probs_diff_T.max()},
    )


def sft_loss(policy_logprobs_T: Tensor, loss_mask_T: Tensor, num_step_tokens: int) -> Tensor:
    """Cross-entropy of the target tokens, a mean over the tokens of the whole optimizer step."""
    return -(policy_logprobs_T * loss_mask_T).sum() / num_step_tokens
