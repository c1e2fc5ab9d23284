"""Scoring one group: texts in, every reward term and the advantages out.

Pure: the same group gives the same result in any process. Called by the reward workers in
`cluster/`, and directly in single-process debug mode.
"""

import random
from collections import Counter
from functools import lru_cache

from alphadrive.actions import Plan, is_well_formed, parse_answer, parse_plan
from alphadrive.errors import ConfigError, RewardError
from alphadrive.types import DrivingQuery, RewardBreakdown, RolloutGroup, ScoredGroup
from rewards.advantages import group_advantages
from rewards.terms import diversity_factor, plan_terms

VARIANTS = ("paper", "random")


def score_group(group: RolloutGroup, variant: str = "paper", seed: int = 0) -> ScoredGroup:
    """Give every completion of a group its reward terms and its advantage.

    `variant` `paper`: terms `speed`, `path` in [0, 1), `format` 0 or 1 (see `rewards.terms`), their
    sum as total in [0, 3). `random`: one term `random`, uniform in [0, 1), which depends on `seed`,
    query id, ticket and place in the group alone: a control, a reward that knows nothing.

    Raises RewardError if the query's acceptable plans cannot be read or the group is empty,
    ConfigError for an unknown variant.
    """
    if variant == "paper":
        rewards = _paper_rewards(group)
    elif variant == "random":
        rewards = _random_rewards(group, seed)
    else:
        raise ConfigError(f"rewards.variant={variant!r}: expected one of {', '.join(VARIANTS)}")
    advantages = group_advantages([reward.total for reward in rewards])
    return ScoredGroup(group=group, rewards=rewards, advantages=advantages)


def _paper_rewards(group: RolloutGroup) -> tuple[RewardBreakdown, ...]:
    acceptable = acceptable_plans(group.query)
    answers = [parse_answer(completion.text) for completion in group.completions]
    counts = Counter(answers)
    rewards = []
    for completion, answer in zip(group.completions, answers, strict=True):
        diversity = diversity_factor(counts[answer], len(answers))
        speed, path = plan_terms(answer, acceptable, diversity)
        well_formed = 1.0 if is_well_formed(completion.text) else 0.0
        terms = {"speed": speed, "path": path, "format": well_formed}
        rewards.append(RewardBreakdown(terms=terms, total=speed + path + well_formed))
    return tuple(rewards)


def _random_rewards(group: RolloutGroup, seed: int) -> tuple[RewardBreakdown, ...]:
    noise = random.Random(f"{seed}/{group.query.query_id}/{group.ticket}")
    draws = [noise.random() for _ in group.completions]
    return tuple(RewardBreakdown(terms={"random": draw}, total=draw) for draw in draws)


def acceptable_plans(query: DrivingQuery) -> tuple[Plan, ...]:
    """The query's acceptable plans, read. Raises RewardError naming the query if one is no plan."""
    plans = [_parsed(text) for text in query.plans]
    readable = tuple(plan for plan in plans if plan is not None)
    if not plans or len(readable) != len(plans):
        raise RewardError(
            f"query {query.query_id}: acceptable plans {list(query.plans)}: expected at least one "
            "'SPEED, PATH' each; run `alphadrive data validate` on the data set"
        )
    return readable


@lru_cache(maxsize=256)
def _parsed(text: str) -> Plan | None:
    return parse_plan(text)
