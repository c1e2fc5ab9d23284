"""Rewards over all completions of a step, worked out from the headers of its groups."""

import statistics

import pytest

from alphadrive import metric_names as names
from alphadrive.types import (
    Completion,
    DrivingQuery,
    RewardBreakdown,
    RolloutGroup,
    ScoredGroup,
    VersionSpan,
    WeightVersion,
)
from cluster.headers import header_of
from cluster.recorder import drawn_metrics


def scored_group(totals: tuple[float, ...]) -> ScoredGroup:
    span = VersionSpan(version=WeightVersion(0, 0), start=0, end=1)
    completion = Completion(
        text="", token_ids=(1,), rollout_logprobs=(-1.0,), finish_reason="stop", weight_versions=(span,)
    )
    group = RolloutGroup(
        ticket=0,
        query=DrivingQuery(query_id="q", row=0, speed_mps=0.0, navigation="", plans=("KEEP, STRAIGHT",)),
        prompt_token_ids=(1,),
        completions=(completion,) * len(totals),
        engine_id="engine-0",
    )
    rewards = tuple(RewardBreakdown(terms={"speed": total / 2}, total=total) for total in totals)
    return ScoredGroup(group=group, rewards=rewards, advantages=(0.0,) * len(totals))


def test_a_term_is_spread_within_and_between_groups() -> None:
    groups = [(1.0, 3.0), (5.0, 5.0), (0.0, 2.0)]
    metrics = drawn_metrics([header_of(scored_group(totals), None) for totals in groups])
    terms = [total / 2 for totals in groups for total in totals]
    assert metrics[names.reward_term_mean("speed")] == pytest.approx(statistics.fmean(terms))
    assert metrics[names.reward_term_std("speed")] == pytest.approx(statistics.pstdev(terms))
    assert metrics[names.SCORE_MEAN] == pytest.approx(16 / 6)
    assert (metrics[names.SCORE_MIN], metrics[names.SCORE_MAX]) == (0.0, 5.0)
    assert metrics[names.ZERO_VARIANCE_SHARE] == pytest.approx(1 / 3)
