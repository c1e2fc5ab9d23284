"""What the driver sees of a scored group, and of one that is not scored yet.

The receipt is made from the group where it was drawn, and checked by the driver against what it asked for:
an engine that returns garbage is noticed before anything is scored.
"""

import math
import statistics
from dataclasses import dataclass

from alphadrive.errors import GarbageError
from alphadrive.types import Completion, DrivingQuery, GroupHeader, RolloutGroup, ScoredGroup, WeightVersion

MAX_LOGPROB = 1e-3
"""Above 0 by rounding only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupReceipt:
    """What an engine tells the driver of a group it has drawn; the group itself stays a reference.

    `oldest_version` and `newest_version` are of any token; `problem` says what is wrong with a completion.
    """

    ticket: int
    query_id: str
    engine_id: str
    num_completions: int
    oldest_version: WeightVersion | None
    newest_version: WeightVersion | None
    problem: str | None


def receipt_of(group: RolloutGroup) -> GroupReceipt:
    """The receipt of a group, whatever is in it."""
    versions = [span.version for completion in group.completions for span in completion.weight_versions]
    problems = (_problem(completion) for completion in group.completions)
    return GroupReceipt(
        ticket=group.ticket,
        query_id=group.query.query_id,
        engine_id=group.engine_id,
        num_completions=len(group.completions),
        oldest_version=min(versions, default=None),
        newest_version=max(versions, default=None),
        problem=next((problem for problem in problems if problem is not None), None),
    )


def _problem(completion: Completion) -> str | None:
    num_tokens, logprobs = len(completion.token_ids), completion.rollout_logprobs
    if num_tokens == 0 or num_tokens != len(logprobs):
        return f"a completion of {num_tokens} tokens with {len(logprobs)} log-probabilities"
    wrong = [logprob for logprob in logprobs if not math.isfinite(logprob) or logprob > MAX_LOGPROB]
    if wrong:
        return f"a log-probability of {wrong[0]}"
    ends = [0, *(span.end for span in completion.weight_versions)]
    starts = [*(span.start for span in completion.weight_versions), num_tokens]
    if ends != starts:
        return f"weight versions for {completion.weight_versions}, not for each of its {num_tokens} tokens"
    return None


def check_receipt(
    receipt: GroupReceipt,
    engine_id: str,
    ticket: int,
    query: DrivingQuery,
    num_completions: int,
    versions: tuple[WeightVersion | None, WeightVersion | None],
) -> None:
    """Raise GarbageError unless this is the group that `engine_id` was asked for.

    `versions` are those the engine had proved when it was asked and when it was done.
    """
    asked = (engine_id, ticket, query.query_id, num_completions)
    got = (receipt.engine_id, receipt.ticket, receipt.query_id, receipt.num_completions)
    problem = receipt.problem
    if got != asked:
        problem = f"got engine, ticket, query and number of completions {got}, expected {asked}"
    oldest, newest = receipt.oldest_version, receipt.newest_version
    first, last = versions
    if problem is None and (oldest is None or newest is None):
        problem = "no completion says which weights it was drawn from"
    elif problem is None and first is not None and last is not None and not first <= oldest <= newest <= last:
        problem = f"tokens of versions {oldest} to {newest}, expected {first} to {last}"
    if problem is not None:
        raise GarbageError(f"{engine_id} returned garbage for ticket {ticket} ({query.query_id}): {problem}")


def header_of(scored: ScoredGroup, reference: object) -> GroupHeader:
    """The header of a scored group. `reference` is what the learner will fetch the group by."""
    totals = [reward.total for reward in scored.rewards]
    names = sorted({name for reward in scored.rewards for name in reward.terms})
    terms = {name: [reward.terms.get(name, 0.0) for reward in scored.rewards] for name in names}
    return GroupHeader(
        ticket=scored.group.ticket,
        query_id=scored.group.query.query_id,
        row=scored.group.query.row,
        weight_version=scored.group.oldest_version,
        reward_mean=statistics.fmean(totals),
        reward_std=statistics.pstdev(totals),
        reward_min=min(totals),
        reward_max=max(totals),
        term_means={name: statistics.fmean(values) for name, values in terms.items()},
        term_stds={name: statistics.pstdev(values) for name, values in terms.items()},
        num_tokens=num_tokens(scored.group),
        scored=reference,
    )


def num_tokens(group: RolloutGroup) -> int:
    """Tokens sampled for a group."""
    return sum(len(completion.token_ids) for completion in group.completions)
