"""Variant `strict`: worked groups, its stated bounds, and a search for texts that beat an honest answer."""

import itertools
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reward_groups import answer, group_of, terms

from alphadrive.actions import PATHS, SPEEDS, Plan, is_well_formed, parse_answer, parse_plan
from rewards import score_group
from rewards.strict import strict_terms

ALL_PLANS = [Plan(speed, path) for speed in SPEEDS for path in PATHS]
RIGHT, WRONG = answer("ACCELERATE, STRAIGHT"), answer("STOP, LEFT_TURN")
WORDS = "|".join((*SPEEDS, *PATHS))
HONEST = re.compile(
    rf"\s*<think>[^<]+</think>\s*<answer>\s*({WORDS})\s*,\s*({WORDS})\s*</answer>\s*",
    re.ASCII | re.IGNORECASE,
)
"""An honest form, told apart without the shared parser."""


def totals(texts, acceptable):
    return [sum(rewards.values()) for rewards in strict_terms(texts, acceptable)]


def test_right_wrong_and_half_right_in_a_group_of_four():
    scored = score_group(group_of([RIGHT, RIGHT, answer("KEEP, STRAIGHT"), WRONG]))
    right = 1 - 0.2 / 3
    assert terms(scored) == [
        (round(0.9 * right, 6), round(0.8 * right, 6), 1.0),
        (round(0.9 * right, 6), round(0.8 * right, 6), 1.0),
        (0.0, 0.64, 1.0),
        (0.0, 0.0, 1.0),
    ]


def test_strict_is_the_default():
    group = group_of([RIGHT, WRONG])
    assert score_group(group) == score_group(group, "strict")


def test_diversity_spans_its_range_at_every_group_size():
    for size in (2, 3, 4, 5, 8, 16):
        alone = totals([RIGHT] + [WRONG] * (size - 1), [Plan("ACCELERATE", "STRAIGHT")])[0]
        same = totals([RIGHT] * size, [Plan("ACCELERATE", "STRAIGHT")])[0]
        assert (alone, same) == pytest.approx((2.7, 1 + 1.7 * 0.8))


@pytest.mark.parametrize("size", [3, 4, 5, 8])
def test_the_rarer_of_two_equally_weighted_acceptable_plans_earns_more(size):
    plans = [Plan("STOP", "LEFT_TURN"), Plan("STOP", "RIGHT_TURN")]
    rare, *common = totals([answer(plans[0])] + [answer(plans[1])] * (size - 1), plans)
    assert rare > max(common)


def test_a_rare_wrong_plan_gains_nothing_from_being_rare():
    plans = [Plan("ACCELERATE", "STRAIGHT")]
    rare = totals([RIGHT] * 7 + [answer("KEEP, STRAIGHT")], plans)[-1]
    common = totals([RIGHT] + [answer("KEEP, STRAIGHT")] * 7, plans)[-1]
    assert rare == common == pytest.approx(1.64)


@pytest.mark.parametrize("num_plans", [1, 2, 3])
def test_bounds_over_all_plans_and_the_largest_and_smallest_diversity(num_plans):
    """Many choices of acceptable plans, each answer once rare, once common: the bounds of the docstring."""
    for acceptable in itertools.islice(itertools.combinations(ALL_PLANS, num_plans), 0, None, 7):
        for plan in ALL_PLANS:
            for others in ([WRONG] * 3, [answer(plan)] * 3):
                rewards = strict_terms([answer(plan), *others], acceptable)[0]
                pay = rewards["speed"] + rewards["path"]
                assert (1.28 - 1e-9 <= pay <= 2) if plan in acceptable else (0 <= pay <= 0.8)
                bare = strict_terms([f"<answer> {plan} </answer>", *others], acceptable)[0]
                assert bare == rewards | {"format": 0.0}


@pytest.mark.parametrize(
    "content",
    [
        ", ".join(SPEEDS + PATHS),
        "ACCELERATE, STRAIGHT.",
        "ACCELERATE, STRAIGHT, STRAIGHT",
        "ACCELERATE, KEEP",
        "ACCELERATE",
        "ACCELERATE STRAIGHT",
        "",
        "x",
        "ACCELERATE, \u017ftraight",  # long s: its upper case is S
        "ACCELERATE, STRA\u0131GHT",  # dotless i: its upper case is I
        "\uff21CCELERATE, STRAIGHT",  # full-width A
        "\u0410CCELERATE, STRAIGHT",  # Cyrillic A
        "ACCELERATE,\u200bSTRAIGHT",  # zero-width space
    ],
)
def test_what_is_no_plan_earns_nothing_at_all(content):
    assert terms(score_group(group_of([answer(content), RIGHT])))[0] == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    "text",
    [
        f"{RIGHT} {RIGHT}",
        f"<answer> STOP, STRAIGHT </answer> {RIGHT}",
        "<think> <answer> ACCELERATE, STRAIGHT </answer> </think>",
        "<think> a <think> b </think> </think> <answer> ACCELERATE, STRAIGHT </answer>",
        "<think> a </think> so <answer> ACCELERATE, STRAIGHT </answer>",
        "<think></think> <answer> ACCELERATE, STRAIGHT </answer>",
        "<think> a <answer> b </think> <answer> ACCELERATE, STRAIGHT </answer>",
        "<answer> ACCELERATE, STRAIGHT </answer>",
        f"{RIGHT} trailing words",
        "<think> a </think> <trajectory> soon </trajectory> <answer> ACCELERATE, STRAIGHT </answer>",
    ],
)
def test_a_right_plan_out_of_form_earns_its_plan_and_no_format(text):
    bad, good = score_group(group_of([text, RIGHT])).rewards
    assert parse_answer(text) == Plan("ACCELERATE", "STRAIGHT")
    assert (bad.terms["format"], good.total - bad.total) == (0.0, pytest.approx(1.0))


@pytest.mark.parametrize(
    "part",
    ["<answer>", "</answer>", "<think>", "<answer></answer>", "<answer>KEEP,", " ", "<", "STOP, ", "\u017f"],
)
def test_a_very_long_text_is_read_in_linear_time(part):
    """A million characters: a reading that is not linear would not come back."""
    text = part * (1_000_000 // len(part))
    assert totals([text, RIGHT], [Plan("ACCELERATE", "STRAIGHT")])[0] < 1


_PIECES = [
    "<think>", "</think>", "<answer>", "</answer>", "<trajectory>", "</trajectory>", "<ANSWER>", "< answer>",
    "&lt;answer&gt;", *SPEEDS, *PATHS, *(word.lower() for word in SPEEDS), "KEEP, STRAIGHT", ", ", ",",
    ".", ";", " ", "\n", "\t", "\u00a0", "\u200b", "\u017ftop", "r\u0131ght_turn", "\uff2b\uff25\uff25\uff30",
    "\u041aEEP", "x", "(1.0, 2.0)", " (4.0, 0.0) (8.0, 0.0) (12.0, 0.0) (16.0, 0.0) (20.0, 0.0) (24.0, 0.0) ",
]  # fmt: skip
_PLAN_SETS = st.lists(st.sampled_from(ALL_PLANS), min_size=1, max_size=4, unique=True)


@st.composite
def attacked(draw):
    """Acceptable plans, and texts that try to gain from them: any text, a grammar of pieces, the true plans
    in and out of form."""
    acceptable = draw(_PLAN_SETS)
    pieces = st.sampled_from([*_PIECES, *map(str, acceptable)])
    few = st.lists(pieces, max_size=6).map("".join)
    plans = st.sampled_from(acceptable) | st.sampled_from(ALL_PLANS)
    attack = st.one_of(
        st.text(max_size=80),
        st.lists(pieces, max_size=25).map("".join),
        st.tuples(few, few).map(lambda part: f"<think> a {part[0]} </think> <answer> {part[1]} </answer>"),
        plans.map(answer),
        plans.map(lambda plan: f"<answer> {plan} </answer>"),
    )
    return acceptable, draw(st.lists(attack, min_size=2, max_size=7))


@settings(max_examples=500, deadline=None)
@given(attacked(), st.integers(1, 4))
@example(([Plan("KEEP", "STRAIGHT")], [answer("STOP, STRAIGHT")]), 7)
def test_no_text_beats_an_honest_right_answer(case, num_honest):
    acceptable, attacks = case
    honest = answer(acceptable[0])
    earned = totals([honest] * num_honest + attacks, acceptable)
    for attack, total in zip(attacks, earned[num_honest:], strict=True):
        found = HONEST.fullmatch(attack)
        if found is not None and parse_plan(", ".join(found.groups())) in acceptable:
            continue  # honest and right itself
        is_same = parse_answer(attack) == acceptable[0] and is_well_formed(attack)
        assert total <= earned[0] if is_same else total < earned[0]


@settings(max_examples=150, deadline=None)
@given(attacked(), st.data())
def test_turning_a_member_wrong_never_lifts_it_above_a_right_one(case, data):
    acceptable, others = case
    wrong = data.draw(st.sampled_from([plan for plan in ALL_PLANS if plan not in acceptable]))
    before = totals([answer(acceptable[0]), *others], acceptable)[0]
    after = totals([answer(wrong), answer(acceptable[0]), *others], acceptable)
    assert after[0] < before
    assert after[0] < after[1]


@settings(max_examples=150, deadline=None)
@given(attacked(), st.randoms())
def test_order_bounds_and_form(case, rng):
    acceptable, texts = case
    order = list(range(len(texts)))
    rng.shuffle(order)
    rewards = strict_terms(texts, acceptable)
    assert strict_terms([texts[i] for i in order], acceptable) == [rewards[i] for i in order]
    for text, found in zip(texts, rewards, strict=True):
        assert 0 <= found["speed"] <= 1 and 0 <= found["path"] <= 1 and found["format"] in (0, 1)
        if found["format"]:
            assert is_well_formed(text) and parse_answer(text) is not None
