"""The maths of the update, token by token. Pure functions of tensors.

    ratio of the policy to the old policy ──▶ clipped (grpo, dr_grpo, dapo, gspo) or as a weight (cispo)
    policy and reference                  ──▶ estimates of their KL

What is made of a microbatch's tokens (weights, sums, the coefficient of the KL) is in `learner.objective`.

Legend: T, the completion tokens of a microbatch, of all completions one after another; S, its
completions; every `*_T` is one number a token, float32.

Sources: PPO, arXiv 1707.06347, eq. 7; GRPO, arXiv 2402.03300, eq. 3 and 4; asymmetric clipping, DAPO,
arXiv 2503.14476, eq. 8; dual clipping, arXiv 1912.09729; GSPO, arXiv 2507.18071, sections 4.1 and 4.3; CISPO,
arXiv 2506.13585, eq. 4 and 5; KL estimators, J. Schulman, "Approximating KL divergence" (2020).
"""

import torch
from torch import Tensor

from alphadrive.errors import ConfigError

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to ±20 before `exp`: far outside any clip range, and finite in float32."""


def log_ratio(policy_logprobs_T: Tensor, old_logprobs_T: Tensor) -> Tensor:
    """log(pi / pi_old) of each token, clamped to ±`MAX_LOG_RATIO`."""
    return (policy_logprobs_T - old_logprobs_T).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def sequence_sums(values_T: Tensor, sequence_T: Tensor, num_sequences: int) -> Tensor:
    """The sum over the tokens of each completion, (S,); 0 for a completion without tokens.

    `sequence_T` (int64) says which completion a token belongs to, 0 to `num_sequences` - 1.

    >>> sequence_sums(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 0, 2]), 3)
    tensor([3., 0., 4.])
    """
    return values_T.new_zeros(num_sequences).index_add(0, sequence_T, values_T)


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


def dual_clipped_loss(loss_T: Tensor, advantages_T: Tensor, clip_dual: float) -> tuple[Tensor, Tensor]:
    """The loss of tokens with a negative advantage, at most `clip_dual` times it (dual-clip PPO).

    Without it one token that became far more likely than it was drawn outweighs a whole batch. Returns
    the loss and whether it was bounded (no gradient flows there).

    >>> dual_clipped_loss(torch.tensor([10.0, -10.0]), torch.tensor([-1.0, 1.0]), 3.0)
    (tensor([  3., -10.]), tensor([ True, False]))
    """
    bound_T = -clip_dual * advantages_T
    is_bounded_T = (advantages_T < 0) & (loss_T > bound_T)
    return torch.where(is_bounded_T, bound_T, loss_T), is_bounded_T


def gspo_ratio(
    policy_logprobs_T: Tensor,
    log_ratio_T: Tensor,
    loss_mask_T: Tensor,
    sequence_T: Tensor,
    num_sequences: int,
) -> Tensor:
    """The ratio of the whole completion at each of its tokens: exp of the mean log-ratio (GSPO, 4.1).

    In the token form (4.3): the value is the completion's, the gradient of a token is that of its own
    log-probability. Averaged over a completion whose tokens share one advantage it is the gradient of
    GSPO's objective; and a token can be given a weight, or none.

    Log-ratios [log 2, log 8] of one completion give [4, 4], the geometric mean.
    """
    lengths_S = sequence_sums(loss_mask_T, sequence_T, num_sequences).clamp(min=1.0)
    mean_S = sequence_sums(log_ratio_T.detach() * loss_mask_T, sequence_T, num_sequences) / lengths_S
    return (mean_S[sequence_T] + policy_logprobs_T - policy_logprobs_T.detach()).exp()


def cispo_loss(
    policy_logprobs_T: Tensor, ratio_T: Tensor, advantages_T: Tensor, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """REINFORCE weighted by the clipped ratio, which gets no gradient (CISPO, eq. 4), negated.

    Returns `-sg(clip(r, 1 - clip_low, 1 + clip_high)) A log pi` and whether the ratio was clipped: such
    tokens still learn, with a smaller weight. `clip_low` = 1 sets no lower bound, as the paper does.

    Ratio 8, advantage 0.5, log pi = -2, bounds 0 and 5: loss 5, gradient -2.5.
    """
    weight_T = ratio_T.detach().clamp(1 - clip_low, 1 + clip_high)
    return -weight_T * advantages_T * policy_logprobs_T, weight_T != ratio_T


def kl_estimate(policy_logprobs_T: Tensor, ref_logprobs_T: Tensor, estimator: str = "k3") -> Tensor:
    """An estimate of KL(pi || pi_ref) at each token, with d = log pi_ref - log pi.

        k1   -d               unbiased, of either sign; as a loss its expected gradient is zero
        k2   d^2 / 2          biased, never negative; its expected gradient is that of the KL
        k3   exp(d) - d - 1   unbiased, never negative (GRPO, eq. 4); gradient of KL(pi_ref || pi)

    Unbiased for tokens drawn from pi. For the gradients see arXiv 2506.09477. With pi_ref = 2 pi:
    k1 = -0.693147, k2 = 0.240227, k3 = 0.306853. Raises ConfigError for another estimator.
    """
    delta_T = log_ratio(ref_logprobs_T, policy_logprobs_T)
    if estimator == "k1":
        return -delta_T
    if estimator == "k2":
        return delta_T.square() / 2
    if estimator == "k3":
        return delta_T.exp() - delta_T - 1
    raise ConfigError(f"grpo.kl_estimator={estimator!r}: expected k1, k2 or k3")


def sft_loss(policy_logprobs_T: Tensor, loss_mask_T: Tensor, num_step_tokens: int) -> Tensor:
    """Cross-entropy of the target tokens, a mean over the tokens of the whole optimizer step."""
    return -(policy_logprobs_T * loss_mask_T).sum() / num_step_tokens
