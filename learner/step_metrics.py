"""What a step reports: sums and maxima over all ranks under the names of `alphadrive.metric_names`."""

from collections import defaultdict
from collections.abc import Sequence

import torch

from alphadrive import metric_names as names
from alphadrive.types import ScoredGroup
from learner.engine import TrainingEngine
from learner.losses import GrpoLoss

_MEANS = {
    "pg_loss": names.PG_LOSS,
    "ppo_kl": names.PPO_KL,
    "pg_clipfrac": names.PG_CLIPFRAC,
    "entropy": names.ENTROPY,
    "kl_loss": names.KL_LOSS,
    "rollout_probs_diff": names.ROLLOUT_PROBS_DIFF_MEAN,
}
_MAXIMA = {"rollout_probs_diff": names.ROLLOUT_PROBS_DIFF_MAX}


class LossStatistics:
    """Adds up the token sums of a step's microbatches."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros(()))
        self._maxima: dict[str, torch.Tensor] = defaultdict(lambda: torch.tensor(-torch.inf))

    def add(self, loss: GrpoLoss) -> None:
        """Take one microbatch."""
        for name, value in loss.sums.items():
            self._sums[name] = value + self._sums[name].to(value.device)
        for name, value in loss.maxima.items():
            self._maxima[name] = torch.maximum(value, self._maxima[name].to(value.device))

    def reduced(self, engine: TrainingEngine, num_step_tokens: int) -> dict[str, float]:
        """Means over all tokens of the step, and maxima, over all ranks."""
        sums = engine.all_reduce([float(value) for value in self._sums.values()])
        maxima = engine.all_reduce([float(value) for value in self._maxima.values()], largest=True)
        means = {_MEANS[name]: value / num_step_tokens for name, value in zip(self._sums, sums, strict=True)}
        return means | {_MAXIMA[name]: value for name, value in zip(self._maxima, maxima, strict=True)}


def group_metrics(
    engine: TrainingEngine, groups: Sequence[ScoredGroup], policy_step: int, seconds: float
) -> dict[str, float]:
    """Rewards, lengths, lag and speed of a step, over all ranks. `seconds` is this rank's time."""
    rewards = [reward.total for scored in groups for reward in scored.rewards]
    advantages = [advantage for scored in groups for advantage in scored.advantages]
    completions = [completion for scored in groups for completion in scored.group.completions]
    lengths = [len(completion.token_ids) for completion in completions]
    lags = [policy_step - scored.group.oldest_version.step for scored in groups]
    prompt_tokens = sum(len(scored.group.prompt_token_ids) for scored in groups)
    flat = [max(totals) - min(totals) < 1e-6 for totals in ([r.total for r in g.rewards] for g in groups)]
    num_clipped = sum(completion.finish_reason == "length" for completion in completions)
    sums = engine.all_reduce(
        [
            len(groups),
            len(completions),
            sum(rewards),
            sum(lengths),
            sum(lags),
            prompt_tokens,
            sum(flat),
            num_clipped,
        ]
    )
    num_groups, num_completions, reward_sum, length_sum, lag_sum, prompt_sum, num_flat, clipped_sum = sums
    lows = [-min(values, default=float("inf")) for values in (rewards, advantages)]
    highs = [max(values, default=float("-inf")) for values in (rewards, advantages, lengths, lags)]
    maxima = engine.all_reduce([*lows, *highs, seconds], largest=True)
    slowest = maxima[-1]
    return {
        names.REWARD_MEAN: reward_sum / num_completions,
        names.REWARD_MIN: -maxima[0],
        names.REWARD_MAX: maxima[2],
        names.ADVANTAGE_MIN: -maxima[1],
        names.ADVANTAGE_MAX: maxima[3],
        names.ZERO_VARIANCE_SHARE: num_flat / num_groups,
        names.RESPONSE_LENGTH_MEAN: length_sum / num_completions,
        names.RESPONSE_LENGTH_MAX: maxima[4],
        names.RESPONSE_LENGTH_CLIP_RATIO: clipped_sum / num_completions,
        names.PROMPT_LENGTH_MEAN: prompt_sum / num_groups,
        names.POLICY_LAG_MEAN: lag_sum / num_groups,
        names.POLICY_LAG_MAX: maxima[5],
        names.NUM_TOKENS: prompt_sum + length_sum,
        names.TOKENS_PER_S: (prompt_sum + length_sum) / slowest / engine.world_size,
        names.SAMPLES_PER_S: num_completions / slowest,
        names.UPDATE_S: slowest,
    }
