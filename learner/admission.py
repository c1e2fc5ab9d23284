"""Which groups may train the policy. Pure; the GRPO rank asks before every step."""

import math
from collections.abc import Sequence

from alphadrive.types import RolloutGroup, WeightVersion


def version_problem(groups: Sequence[RolloutGroup], now: WeightVersion, max_lag: int) -> str | None:
    """Why these groups must not train the policy `now`; None when they may.

    Every token must be of this attempt, not newer than `now`, and at most `max_lag` versions older.
    """
    for group in groups:
        for version in {span.version for answer in group.completions for span in answer.weight_versions}:
            lag = now.step - version.step
            if version.attempt != now.attempt:
                expected = f"attempt {now.attempt}: the learner was restarted since"
            elif lag < 0:
                expected = f"step {now.step} or older: this version does not exist yet"
            elif lag > max_lag:
                bound = f"grpo.max_policy_lag + grpo.sync_every - 1 = {max_lag}"
                expected = f"step {now.step - max_lag} or newer ({bound})"
            else:
                continue
            return f"{_name(group)} has tokens of version {version}; expected {expected}"
    return None


def completion_problem(groups: Sequence[RolloutGroup]) -> str | None:
    """Which completion cannot be trained on, and why; None when all can.

    One without tokens (no engine here gives any) can: it counts as a completion and adds nothing to the loss.
    """
    for group in groups:
        for index, answer in enumerate(group.completions):
            num_logprobs, num_spans = len(answer.rollout_logprobs), len(answer.weight_versions)
            if num_logprobs != len(answer.token_ids) or not num_spans:
                return (
                    f"{_name(group)}: completion {index} has {len(answer.token_ids)} tokens, {num_logprobs} "
                    f"log-probabilities and {num_spans} spans of weight versions; expected a log-probability "
                    "a token and at least one span"
                )
            if not all(map(math.isfinite, answer.rollout_logprobs)):
                return (
                    f"{_name(group)}: completion {index} has log-probabilities {answer.rollout_logprobs}; "
                    "expected finite numbers: a sampled token is never impossible"
                )
    return None


def num_completion_tokens(group: RolloutGroup) -> int:
    """Tokens of all completions of a group."""
    return sum(len(completion.token_ids) for completion in group.completions)


def _name(group: RolloutGroup) -> str:
    return f"ticket {group.ticket} (query {group.query.query_id}, engine {group.engine_id})"
