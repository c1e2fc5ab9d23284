"""What a GRPO step minimises: the loss of a microbatch, made of the tokens' losses of `learner.losses`.

    loss_T = weight_T * policy-gradient loss_T + kl_coef * KL_T          a number a token
    loss   = sum over the microbatch's tokens / normaliser of the whole optimizer step

Nothing depends on how the groups of an optimizer step were cut into microbatches and ranks: the normaliser
counts all of them, and a completion lies whole in one microbatch.

    aggregation   a token's share of the loss            every ... counts the same
    token         1 / tokens                             token
    sequence      1 / (completions x its own length)     completion
    constant      1 / (completions x max_new_tokens)     token, in steps of long and short answers alike

Tokens that a mask leaves out stay in the normaliser: what is left does not grow. Completions without tokens
stay in `completions`. The legend is in `learner.losses`.
"""

from dataclasses import dataclass

from torch import Tensor

from alphadrive.config import GrpoConfig
from alphadrive.errors import ConfigError
from learner.importance import is_trusted, mismatch_ratio, truncated
from learner.losses import (
    cispo_loss,
    clipped_policy_loss,
    dual_clipped_loss,
    gspo_ratio,
    kl_estimate,
    log_ratio,
    sequence_sums,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSettings:
    """Everything that shapes the objective, nothing left open. Made by `loss_settings`; the keys of the same
    names are described in `alphadrive.config.GrpoConfig`."""

    loss: str = "grpo"
    aggregation: str = "token"
    clip_low: float = 0.2
    clip_high: float = 0.2
    clip_dual: float | None = None
    kl_coef: float = 0.0
    kl_estimator: str = "k3"
    old_policy: str = "rollout"
    importance_level: str | None = None
    importance_cap: float | None = None
    importance_mask: tuple[float, float] | None = None
    max_new_tokens: int = 256


_OWN: dict[str, tuple[str, float, float]] = {
    "grpo": ("token", 0.2, 0.2),
    "dr_grpo": ("constant", 0.2, 0.2),
    "dapo": ("token", 0.2, 0.28),
    "gspo": ("sequence", 3e-4, 4e-4),
    "cispo": ("token", 1.0, 4.0),
}
"""Aggregation, clip_low and clip_high of each loss where the configuration leaves them open.

The papers', but for two: `grpo` averages over tokens, not completions (as verl does, and as this project's
published results were made); the bound of `cispo`, a weight of 5 at most, is ScaleRL's (arXiv 2510.13786)."""


def loss_settings(grpo: GrpoConfig) -> LossSettings:
    """The settings of a configuration, each open key filled with the loss's own value."""
    aggregation, clip_low, clip_high = _OWN[grpo.loss]
    return LossSettings(
        loss=grpo.loss,
        aggregation=grpo.loss_aggregation or aggregation,
        clip_low=clip_low if grpo.clip_low is None else grpo.clip_low,
        clip_high=clip_high if grpo.clip_high is None else grpo.clip_high,
        clip_dual=grpo.clip_dual,
        kl_coef=grpo.kl_coef,
        kl_estimator=grpo.kl_estimator,
        old_policy=grpo.old_policy,
        importance_level=grpo.importance_level,
        importance_cap=grpo.importance_cap,
        importance_mask=None if grpo.importance_mask is None else tuple(grpo.importance_mask),
        max_new_tokens=grpo.max_new_tokens,
    )


def step_normaliser(settings: LossSettings, num_tokens: int, num_completions: int) -> int:
    """What the sums of an optimizer step are divided by, from its counts over all microbatches and ranks."""
    if settings.aggregation == "token":
        return num_tokens
    if settings.aggregation == "sequence":
        return num_completions
    if settings.aggregation == "constant":
        return num_completions * settings.max_new_tokens
    raise ConfigError(f"grpo.loss_aggregation={settings.aggregation!r}: expected token, sequence or constant")


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInputs:
    """What is known of every completion token of a microbatch.

    Log-probabilities: `policy` with gradient; `rollout`, the engine's; `old`, the learner's own at the step's
    start (for `old_policy` learner; None in the first optimizer step, where the policy is still that one);
    `ref`, the frozen starting policy's (None where `kl_coef` is 0). `loss_mask_T` is 1 for tokens that count
    and 0 for those of a filler microbatch; `sequence_T` (int64) says which of the `num_sequences` completions
    a token belongs to.
    """

    policy_logprobs_T: Tensor
    rollout_logprobs_T: Tensor
    advantages_T: Tensor
    entropy_T: Tensor
    loss_mask_T: Tensor
    sequence_T: Tensor
    num_sequences: int
    old_logprobs_T: Tensor | None = None
    ref_logprobs_T: Tensor | None = None

    @property
    def start_logprobs_T(self) -> Tensor:
        """The learner's log-probabilities at the step's start, without gradient."""
        return self.policy_logprobs_T.detach() if self.old_logprobs_T is None else self.old_logprobs_T


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpoLoss:
    """The loss of a microbatch and what its metrics are made of.

    `loss` is a scalar with gradient, this microbatch's share of the optimizer step's. `pg_loss` is the
    policy-gradient part of it, before the normaliser. `sums` are sums over the microbatch's tokens and
    `maxima` maxima, plain detached scalars by metric name; divide the summed `sums` of an optimizer step by
    its number of tokens.
    """

    loss: Tensor
    pg_loss: Tensor
    sums: dict[str, Tensor]
    maxima: dict[str, Tensor]


def grpo_loss(settings: LossSettings, tokens: LossInputs, normaliser: int) -> GrpoLoss:
    """The objective over the tokens of one microbatch, negated, and what its metrics are made of.

    `normaliser` is that of the whole optimizer step, see `step_normaliser`.

    Golden: `grpo`, clips 0.2 and 0.28, three tokens with ratios 2, 1/2, 1 and advantages 1, -1, 3: clipped at
    1.28, clipped at 0.8, on-policy; loss (-1.28 + 0.8 - 3) / 3 = -1.16, gradient 0, 0, -1.
    """
    is_bypass = settings.old_policy == "rollout"
    log_ratio_T = log_ratio(
        tokens.policy_logprobs_T, tokens.rollout_logprobs_T if is_bypass else tokens.start_logprobs_T
    )
    pg_loss_T, per_token = _policy_gradient_losses(settings, tokens, log_ratio_T)
    probs_diff_T = (tokens.start_logprobs_T.exp() - tokens.rollout_logprobs_T.exp()).abs()
    per_token |= {
        "ppo_kl": -log_ratio_T,
        "entropy": tokens.entropy_T,
        "rollout_probs_diff": probs_diff_T,
        "rollout_probs_diff_squared": probs_diff_T.square(),
    }
    maxima = {"rollout_probs_diff": probs_diff_T}
    if settings.importance_level is not None:
        weight_T, is_left_out_T = _importance_weights(settings, tokens, settings.importance_level)
        pg_loss_T = pg_loss_T * weight_T
        per_token |= {"rollout_is": weight_T, "rollout_is_oob_ratio": is_left_out_T.float()}
        maxima["rollout_is"] = weight_T
    loss_T = pg_loss_T
    if settings.kl_coef:
        assert tokens.ref_logprobs_T is not None, "kl_coef is not 0: reference log-probabilities are needed"
        kl_T = kl_estimate(tokens.policy_logprobs_T, tokens.ref_logprobs_T, settings.kl_estimator)
        loss_T = loss_T + settings.kl_coef * kl_T
        per_token["kl_loss"] = kl_T
    share_T = _share(settings.aggregation, tokens)
    mask_T = tokens.loss_mask_T
    return GrpoLoss(
        loss=(loss_T * share_T).sum() / normaliser,
        pg_loss=(pg_loss_T.detach() * share_T).sum(),
        sums={name: (value_T.detach() * mask_T).sum() for name, value_T in per_token.items()},
        maxima={name: (value_T * mask_T).max() for name, value_T in maxima.items()},
    )


def _policy_gradient_losses(
    settings: LossSettings, tokens: LossInputs, log_ratio_T: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The policy-gradient loss of each token, and which tokens were clipped."""
    policy_logprobs_T, advantages_T = tokens.policy_logprobs_T, tokens.advantages_T
    clips = settings.clip_low, settings.clip_high
    if settings.loss == "cispo":
        loss_T, is_clipped_T = cispo_loss(policy_logprobs_T, log_ratio_T.exp(), advantages_T, *clips)
        return loss_T, {"pg_clipfrac": is_clipped_T.float()}
    if settings.loss == "gspo":
        ratio_T = gspo_ratio(
            policy_logprobs_T, log_ratio_T, tokens.loss_mask_T, tokens.sequence_T, tokens.num_sequences
        )
    elif settings.loss in ("grpo", "dr_grpo", "dapo"):
        ratio_T = log_ratio_T.exp()
    else:
        raise ConfigError(f"grpo.loss={settings.loss!r}: expected one of {', '.join(_OWN)}")
    loss_T, is_clipped_T = clipped_policy_loss(ratio_T, advantages_T, *clips)
    flags = {"pg_clipfrac": is_clipped_T.float()}
    if settings.clip_dual is not None:
        loss_T, is_bounded_T = dual_clipped_loss(loss_T, advantages_T, settings.clip_dual)
        flags["pg_clipfrac_lower"] = is_bounded_T.float()
    return loss_T, flags


def _importance_weights(settings: LossSettings, tokens: LossInputs, level: str) -> tuple[Tensor, Tensor]:
    """The weight of each token for having been drawn by an engine, and whether the mask leaves it out."""
    ratio_T = mismatch_ratio(
        log_ratio(tokens.start_logprobs_T, tokens.rollout_logprobs_T),
        tokens.loss_mask_T,
        tokens.sequence_T,
        tokens.num_sequences,
        level,
    )
    is_trusted_T = is_trusted(ratio_T, settings.importance_mask)
    if settings.old_policy == "rollout":  # whose ratio holds this one already
        return is_trusted_T.to(ratio_T.dtype), ~is_trusted_T
    return truncated(ratio_T, settings.importance_cap) * is_trusted_T, ~is_trusted_T


def _share(aggregation: str, tokens: LossInputs) -> Tensor:
    """What each token's loss is multiplied by before the sum."""
    mask_T, sequence_T = tokens.loss_mask_T, tokens.sequence_T
    if aggregation != "sequence":
        return mask_T
    return mask_T / sequence_sums(mask_T, sequence_T, tokens.num_sequences).clamp(min=1.0)[sequence_T]
