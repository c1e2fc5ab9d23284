"""Scoring one group: texts in, every reward term and the advantages out.

    variant (strict, paper, released, random) ──▶ its terms ┐
    rewards.weights ──▶ further terms, weighted ────────────┴─▶ total ──▶ advantages

Without further terms pure: the same group gives the same result in any process. Called by the reward
workers in `cluster/`, directly in single-process debug mode, and by `alphadrive score`.
"""

from collections.abc import Sequence
from functools import lru_cache

from alphadrive.actions import Plan, parse_answer, parse_plan
from alphadrive.errors import ConfigError, RewardError
from alphadrive.reward_names import VARIANTS
from alphadrive.types import Completion, DrivingQuery, RewardBreakdown, RolloutGroup, ScoredGroup
from rewards.advantage import group_advantages
from rewards.further import FurtherTerm, term_values
from rewards.noise import random_terms
from rewards.paper import paper_terms
from rewards.released import released_terms
from rewards.strict import strict_terms


def score_group(
    group: RolloutGroup,
    variant: str = "strict",
    seed: int = 0,
    further: Sequence[FurtherTerm] = (),
    estimator: str = "grpo",
) -> ScoredGroup:
    """Give every completion of a group its reward terms and its advantage.

    `variant` names the module that makes the first terms: `strict`, `paper` and `released` make `speed`,
    `path` and `format`, `random` makes `random`, which depends on `seed`, query id, ticket and place in
    the group alone. `released` knows one true plan, the recorded one. The total is the sum of all terms.
    `estimator` is that of `rewards.advantage`.

    Raises RewardError if the query's acceptable plans cannot be read, the group is empty or a further
    term fails, ConfigError for an unknown variant.
    """
    query = group.query
    solutions = query.plans
    if variant == "released":
        acceptable_plans(query.plans, query.query_id)
        solutions = (f"<answer> {query.plans[0]} </answer>",)
    rewards = score_completions(
        group.completions,
        solutions,
        query,
        variant=variant,
        noise_key=f"{seed}/{query.query_id}/{group.ticket}",
        further=further,
    )
    advantages = group_advantages([reward.total for reward in rewards], estimator)
    return ScoredGroup(group=group, rewards=rewards, advantages=advantages)


def score_completions(
    completions: Sequence[Completion],
    solutions: Sequence[str],
    query: DrivingQuery,
    *,
    variant: str,
    noise_key: str,
    further: Sequence[FurtherTerm] = (),
) -> tuple[RewardBreakdown, ...]:
    """The reward of every completion of one group, in order.

    `solutions` are the acceptable plans, each bare (`KEEP, STRAIGHT`) or in `<answer>` tags; `released`
    reads the first alone, as it stands. Further terms see `query`. Raises as `score_group`.
    """
    texts = [completion.text for completion in completions]
    rewards = variant_terms(texts, solutions, query.query_id, variant, noise_key)
    for term in further:
        for terms, value in zip(rewards, term_values(term, query, completions), strict=True):
            terms[term.name] = value
    return tuple(RewardBreakdown(terms=terms, total=sum(terms.values())) for terms in rewards)


def variant_terms(
    texts: Sequence[str], solutions: Sequence[str], query_id: str, variant: str, noise_key: str
) -> list[dict[str, float]]:
    """The terms of one variant for every text of one group. See `score_completions`."""
    if variant == "strict":
        return strict_terms(texts, acceptable_plans(solutions, query_id))
    if variant == "paper":
        return paper_terms(texts, acceptable_plans(solutions, query_id))
    if variant == "released":
        return released_terms(texts, [solutions[0]] * len(texts))
    if variant == "random":
        return random_terms(len(texts), noise_key)
    raise ConfigError(f"rewards.variant={variant!r}: expected one of {', '.join(VARIANTS)}")


def acceptable_plans(solutions: Sequence[str], query_id: str) -> tuple[Plan, ...]:
    """The acceptable plans of a query, read. Raises RewardError naming the query if one is no plan."""
    plans = tuple(plan for plan in map(read_solution, solutions) if plan is not None)
    if not plans or len(plans) != len(solutions):
        raise RewardError(
            f"query {query_id}: acceptable plans {list(solutions)}: expected at least one "
            "'SPEED, PATH' each; run `alphadrive data validate` on the data set"
        )
    return plans


@lru_cache(maxsize=256)
def read_solution(text: str) -> Plan | None:
    """A true plan, bare or in `<answer>` tags; None where there is none."""
    return parse_plan(text) or parse_answer(text)
