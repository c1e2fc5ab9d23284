"""What a step reports: sums and maxima over all ranks under the names of `alphadrive.metric_names`."""

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence

import torch

from alphadrive import metric_names as names
from alphadrive.types import ScoredGroup
from learner.engine import TrainingEngine
from learner.objective import GrpoLoss

_MEANS = {
    "ppo_kl": names.PPO_KL,
    "pg_clipfrac": names.PG_CLIPFRAC,
    "pg_clipfrac_lower": names.PG_CLIPFRAC_LOWER,
    "entropy": names.ENTROPY,
    "kl_loss": names.KL_LOSS,
    "rollout_probs_diff": names.ROLLOUT_PROBS_DIFF_MEAN,
    "rollout_probs_diff_squared": names.ROLLOUT_PROBS_DIFF_STD,
    "rollout_is": names.ROLLOUT_IS_MEAN,
    "rollout_is_oob_ratio": names.ROLLOUT_IS_OOB_RATIO,
}
_MAXIMA = {"rollout_probs_diff": names.ROLLOUT_PROBS_DIFF_MAX, "rollout_is": names.ROLLOUT_IS_MAX}


class LossStatistics:
    """Adds up the token sums of an optimizer step's microbatches."""

    def __init__(self) -> None:
        self._pg_loss = torch.zeros(())
        self._sums: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros(()))
        self._maxima: dict[str, torch.Tensor] = defaultdict(lambda: torch.tensor(-torch.inf))

    def add(self, loss: GrpoLoss) -> None:
        """Take one microbatch."""
        self._pg_loss = loss.pg_loss + self._pg_loss.to(loss.pg_loss.device)
        for name, value in loss.sums.items():
            self._sums[name] = value + self._sums[name].to(value.device)
        for name, value in loss.maxima.items():
            self._maxima[name] = torch.maximum(value, self._maxima[name].to(value.device))

    def reduced(self, engine: TrainingEngine, num_tokens: int, normaliser: int) -> dict[str, float]:
        """Means over the tokens of the optimizer step, and maxima, over all ranks."""
        pg_loss, *sums = engine.all_reduce([float(self._pg_loss), *map(float, self._sums.values())])
        maxima = engine.all_reduce([float(value) for value in self._maxima.values()], largest=True)
        means = {_MEANS[name]: value / num_tokens for name, value in zip(self._sums, sums, strict=True)}
        variance = means[names.ROLLOUT_PROBS_DIFF_STD] - means[names.ROLLOUT_PROBS_DIFF_MEAN] ** 2
        means[names.ROLLOUT_PROBS_DIFF_STD] = math.sqrt(max(0.0, variance))
        largest = {_MAXIMA[name]: value for name, value in zip(self._maxima, maxima, strict=True)}
        return {names.PG_LOSS: pg_loss / normaliser} | means | largest


def mean_of_updates(updates: Sequence[dict[str, float]]) -> dict[str, float]:
    """The metrics of a step from those of its optimizer steps: means, and maxima of maxima."""
    merged = {}
    for name in updates[0]:
        values = [update[name] for update in updates]
        merged[name] = max(values) if name in _MAXIMA.values() else statistics.fmean(values)
    return merged


def group_metrics(
    engine: TrainingEngine, groups: Sequence[ScoredGroup], policy_step: int, seconds: float
) -> dict[str, float]:
    """Rewards, lengths, lag and speed of a step, over all ranks. `seconds` is this rank's time."""
    completions = [completion for scored in groups for completion in scored.group.completions]
    advantages = [advantage for scored in groups for advantage in scored.advantages]
    totals = [[reward.total for reward in scored.rewards] for scored in groups]
    lengths = [len(completion.token_ids) for completion in completions]
    values: dict[str, Sequence[float]] = {
        "reward": [total for of_group in totals for total in of_group],
        "advantage": advantages,
        "length": lengths,
        "prompt": [len(scored.group.prompt_token_ids) for scored in groups],
        "lag": [policy_step - scored.group.oldest_version.step for scored in groups],
    }
    sums = {name: sum(each) for name, each in values.items()} | {
        "groups": len(groups),
        "completions": len(completions),
        "flat": sum(max(of_group) - min(of_group) < 1e-6 for of_group in totals),
        "clipped": sum(completion.finish_reason == "length" for completion in completions),
        "empty": lengths.count(0),
        "token_advantage": sum(a * length for a, length in zip(advantages, lengths, strict=True)),
    }
    total = dict(zip(sums, engine.all_reduce([float(value) for value in sums.values()]), strict=True))
    lows = [-min(each, default=math.inf) for each in values.values()]
    highs = [max(each, default=-math.inf) for each in values.values()]
    *extremes, slowest = engine.all_reduce([*lows, *highs, seconds], largest=True)
    low = dict(zip(values, (0.0 - value for value in extremes), strict=False))
    high = dict(zip(values, extremes[len(values) :], strict=True))
    num_tokens = total["prompt"] + total["length"]
    return {
        names.REWARD_MEAN: total["reward"] / total["completions"],
        names.REWARD_MIN: low["reward"],
        names.REWARD_MAX: high["reward"],
        names.ADVANTAGE_MEAN: total["token_advantage"] / total["length"],
        names.ADVANTAGE_MIN: low["advantage"],
        names.ADVANTAGE_MAX: high["advantage"],
        names.ZERO_VARIANCE_SHARE: total["flat"] / total["groups"],
        names.RESPONSE_LENGTH_MEAN: total["length"] / total["completions"],
        names.RESPONSE_LENGTH_MIN: low["length"],
        names.RESPONSE_LENGTH_MAX: high["length"],
        names.RESPONSE_LENGTH_CLIP_RATIO: total["clipped"] / total["completions"],
        names.EMPTY_RESPONSE_RATIO: total["empty"] / total["completions"],
        names.PROMPT_LENGTH_MEAN: total["prompt"] / total["groups"],
        names.PROMPT_LENGTH_MIN: low["prompt"],
        names.PROMPT_LENGTH_MAX: high["prompt"],
        names.POLICY_LAG_MEAN: total["lag"] / total["groups"],
        names.POLICY_LAG_MAX: high["lag"],
        names.NUM_TOKENS: num_tokens,
        names.TOKENS_PER_S: num_tokens / slowest / engine.world_size,
        names.SAMPLES_PER_S: total["completions"] / slowest,
        names.UPDATE_S: slowest,
    }
