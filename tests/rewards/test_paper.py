"""Variants `paper` and `random` on hand-worked groups, and what every variant refuses."""

import dataclasses
import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reward_groups import answer, group_of, terms

from alphadrive.actions import PATHS, SPEEDS, Plan, is_well_formed, parse_answer
from alphadrive.errors import ConfigError, RewardError
from rewards import score_group
from rewards.action_weights import PATH_WEIGHTS, SPEED_WEIGHTS, plan_terms
from rewards.paper import diversity_factor

score = functools.partial(score_group, variant="paper")


def test_group_of_two_right_answers_pays_weight_times_eight_tenths():
    scored = score(group_of([answer("ACCELERATE, STRAIGHT")] * 2))
    assert terms(scored) == [(0.72, 0.64, 1.0)] * 2
    assert scored.rewards[0].total == pytest.approx(2.36)
    assert scored.advantages == (0.0, 0.0)


def test_half_right_answer_pays_its_half():
    scored = score(group_of([answer("KEEP, STRAIGHT"), answer("ACCELERATE, STRAIGHT")]))
    assert terms(scored) == [(0.0, 0.64, 1.0), (0.72, 0.64, 1.0)]
    # Two rewards always lie one sample standard deviation / sqrt(2) from their mean.
    assert scored.advantages == pytest.approx((-0.70711, 0.70711), abs=2e-4)


def test_group_of_eight_spares_a_plan_given_once_the_full_penalty():
    right, wrong = answer("ACCELERATE, STRAIGHT"), answer("STOP, STRAIGHT")
    scored = score(group_of([right] + [wrong] * 7))
    assert terms(scored)[0] == (round(0.9 * 0.875, 6), round(0.8 * 0.875, 6), 1.0)
    assert terms(scored)[1] == (0.0, 0.64, 1.0)


@pytest.mark.parametrize(
    ("count", "size", "factor"), [(1, 2, 0.8), (1, 5, 0.8), (1, 8, 0.875), (2, 8, 0.8), (1, 10, 0.9)]
)
def test_diversity_factor(count, size, factor):
    assert diversity_factor(count, size) == pytest.approx(factor)


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_diversity_carries_no_signal_up_to_five_completions(size):
    assert {diversity_factor(count, size) for count in range(1, size + 1)} == {0.8}


def test_full_stop_or_missing_space_inside_the_answer():
    """A missing space loses nothing; a full stop is no plan word and makes the answer invalid."""
    scored = score(group_of([answer("ACCELERATE,STRAIGHT"), answer("ACCELERATE, STRAIGHT.")]))
    assert terms(scored) == [(0.72, 0.64, 1.0), (0.0, 0.0, 1.0)]


def test_listing_all_nine_actions_earns_the_format_reward_only():
    scored = score(group_of([answer(", ".join(SPEEDS + PATHS)), answer("KEEP, STRAIGHT")]))
    assert terms(scored)[0] == (0.0, 0.0, 1.0)


@pytest.mark.parametrize("text", ["", "KEEP, STRAIGHT", "<answer> KEEP", "no plan at all"])
def test_unparsable_text_earns_nothing(text):
    scored = score(group_of([text, answer("STOP, LEFT_TURN")]))
    assert terms(scored) == [(0.0, 0.0, 0.0), (0.0, 0.0, 1.0)]
    assert scored.rewards[0].total < scored.rewards[1].total


def test_answer_inside_the_thought_does_not_win_over_the_last_one():
    text = "<think> <answer> STOP, STRAIGHT </answer> </think> <answer> ACCELERATE, STRAIGHT </answer>"
    assert terms(score(group_of([text, text]))) == [(0.72, 0.64, 0.0)] * 2


def test_answer_without_thought_is_read_but_earns_no_format_reward():
    text = "<answer> ACCELERATE, STRAIGHT </answer>"
    assert terms(score(group_of([text, text])))[0] == (0.72, 0.64, 0.0)


def test_of_several_acceptable_plans_the_best_paying_whole_one_counts():
    plans = ("KEEP, STRAIGHT", "DECELERATE, LEFT_CHANGE")
    scored = score(group_of([answer("DECELERATE, LEFT_CHANGE"), answer("DECELERATE, STRAIGHT")], plans))
    assert terms(scored) == [
        (0.8, 0.8, 1.0),
        # DECELERATE of the second (1.0) pays more than STRAIGHT of the first (0.8); never both.
        (0.8, 0.0, 1.0),
    ]


def test_recorded_plan_counts_among_equally_paying_ones():
    assert plan_terms(
        Plan("KEEP", "STRAIGHT"), [Plan("KEEP", "LEFT_TURN"), Plan("STOP", "STRAIGHT")], diversity=1.0
    ) == (0.8, 0.0)


def test_weights_cover_the_vocabulary():
    assert set(SPEED_WEIGHTS) == set(SPEEDS)
    assert set(PATH_WEIGHTS) == set(PATHS)


def test_random_variant_knows_nothing_of_the_text_and_repeats_with_its_seed():
    right, wrong = group_of([answer("ACCELERATE, STRAIGHT")] * 4), group_of(["nonsense"] * 4)
    first = score_group(right, "random", seed=3)
    assert first.rewards == score_group(wrong, "random", seed=3).rewards
    assert first.rewards != score_group(right, "random", seed=4).rewards
    assert first.rewards != score_group(dataclasses.replace(right, ticket=1), "random", seed=3).rewards
    assert all(0 <= reward.total < 1 and set(reward.terms) == {"random"} for reward in first.rewards)
    assert len({reward.total for reward in first.rewards}) == 4


def test_random_variant_averages_one_half():
    totals = [
        reward.total
        for ticket in range(500)
        for reward in score_group(group_of(["x"] * 8, ticket=ticket), "random").rewards
    ]
    assert sum(totals) / len(totals) == pytest.approx(0.5, abs=0.02)


def test_unknown_variant_is_refused():
    with pytest.raises(ConfigError, match=r"rewards\.variant='papper'.*strict, paper, released, random"):
        score_group(group_of(["x"]), "papper")


@pytest.mark.parametrize("plans", [(), ("KEEP",), ("KEEP, STRAIGHT", "FLY, STRAIGHT")])
def test_broken_truth_is_an_error_and_never_a_zero(plans):
    with pytest.raises(RewardError, match="query q0"):
        score(group_of([answer("KEEP, STRAIGHT")], plans))


_FRAGMENTS = [
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "KEEP",
    ", ",
    "STOP",
    "LEFT_TURN",
    "\n",
    " ",
    "x",
    ".",
]
_TEXTS = st.one_of(
    st.text(max_size=60),
    st.lists(st.sampled_from(_FRAGMENTS), max_size=20).map("".join),
    st.tuples(st.sampled_from(SPEEDS), st.sampled_from(PATHS)).map(lambda plan: answer(", ".join(plan))),
)


@given(st.lists(_TEXTS, min_size=1, max_size=9), st.randoms())
def test_reward_does_not_depend_on_the_order_of_the_group(texts, rng):
    order = list(range(len(texts)))
    rng.shuffle(order)
    scored = score(group_of(texts))
    shuffled = score(group_of([texts[index] for index in order]))
    assert shuffled.rewards == tuple(scored.rewards[index] for index in order)
    assert shuffled.advantages == tuple(scored.advantages[index] for index in order)


@given(st.lists(_TEXTS, min_size=1, max_size=9))
def test_terms_stay_in_their_stated_ranges(texts):
    for text, reward in zip(texts, score(group_of(texts)).rewards, strict=True):
        assert 0 <= reward.terms["speed"] < 1
        assert 0 <= reward.terms["path"] < 1
        assert reward.terms["format"] == float(is_well_formed(text))
        assert reward.total == sum(reward.terms.values())


@given(_TEXTS)
def test_parser_reads_any_text_without_raising(text):
    assert parse_answer(text) is None or isinstance(parse_answer(text), Plan)
