"""What the driver sees of a scored group, and of one that is not scored yet."""

import statistics
from dataclasses import dataclass

from alphadrive.types import GroupHeader, RolloutGroup, ScoredGroup, WeightVersion


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupReceipt:
    """What an engine tells the driver of a group it has drawn; the group itself stays a reference."""

    ticket: int
    engine_id: str
    weight_version: WeightVersion
    num_tokens: int


def receipt_of(group: RolloutGroup) -> GroupReceipt:
    """The receipt of a group; `weight_version` is that of its oldest token."""
    return GroupReceipt(
        ticket=group.ticket,
        engine_id=group.engine_id,
        weight_version=group.oldest_version,
        num_tokens=num_tokens(group),
    )


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
