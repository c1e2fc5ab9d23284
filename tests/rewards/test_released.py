"""Variant `released` against worked cases of the published rules (truth `ACCELERATE, STRAIGHT`)."""

import pytest
from reward_groups import answer, group_of, terms

from alphadrive.actions import PATHS, SPEEDS
from rewards import score_group
from rewards.released import released_terms

TRUTH = "<answer> ACCELERATE, STRAIGHT </answer>"
RIGHT = answer("ACCELERATE, STRAIGHT")


def released(texts, solution=TRUTH):
    return [tuple(rewards.values()) for rewards in released_terms(texts, [solution] * len(texts))]


CASES = [
    ("right, right", [RIGHT, RIGHT], [(1.299998, 1.199998, 1), (0.499998, 0.399998, 1)]),
    ("half right, right", [answer("KEEP, STRAIGHT"), RIGHT], [(0.4, 1.199998, 1), (1.299998, 0.399998, 1)]),
    ("full stop", [answer("ACCELERATE, STRAIGHT.")], [(1.299998, 0.4, 1)]),
    ("all nine actions", [answer(", ".join(SPEEDS + PATHS))], [(0.769999, 0.72, 1)]),
    ("empty", [""], [(0.4, 0.4, 0)]),
    ("no known word", ["nothing to see"], [(0.4, 0.4, 0)]),
    ("missing space", [answer("ACCELERATE,STRAIGHT")], [(0.4, 0.4, 1)]),
    ("lower case", [answer("accelerate, straight")], [(0.4, 0.4, 1)]),
    ("wrong twice", [answer("STOP, LEFT_TURN")] * 2, [(0.4, 0.4, 1), (-0.4, -0.4, 1)]),
    ("no tags at all", ["ACCELERATE, STRAIGHT"], [(1.299998, 1.199998, 0)]),
    ("answer over two lines", ["<answer>ACCELERATE,\nSTRAIGHT</answer>"], [(0.4, 0.4, 0)]),
    ("first answer wins", [f"<think> {TRUTH} </think> <answer> STOP </answer>"], [(1.299998, 1.199998, 1)]),
    ("text after the answer", [f"{RIGHT} "], [(1.299998, 1.199998, 0)]),
]  # fmt: skip


@pytest.mark.parametrize(("texts", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_worked_case_comes_out_to_six_places(texts, expected):
    for got, wanted in zip(released(texts), expected, strict=True):
        assert got == pytest.approx(wanted, abs=1e-6)


def test_totals_of_the_worked_cases():
    totals = [sum(values) for values in released([RIGHT, RIGHT])]
    assert totals == pytest.approx([3.499996, 1.899996], abs=2e-6)
    totals = [sum(values) for values in released([answer("KEEP, STRAIGHT"), RIGHT])]
    assert totals == pytest.approx([2.599998, 2.699996], abs=2e-6)


def test_a_solution_without_tags_pays_nothing_and_counts_no_word():
    rewards = released_terms([RIGHT, RIGHT], ["ACCELERATE, STRAIGHT", TRUTH])
    assert [tuple(terms.values()) for terms in rewards] == [
        (0.0, 0.0, 1.0),
        pytest.approx((1.299998, 1.199998, 1.0), abs=1e-6),
    ]


def test_a_solution_without_a_known_word_leaves_the_diversity_term():
    assert released([answer("FLY, AWAY")], "<answer> HOVER </answer>") == [(0.4, 0.4, 1.0)]


def test_a_group_is_scored_against_its_recorded_plan():
    plans = ("ACCELERATE, STRAIGHT", "KEEP, STRAIGHT")
    scored = score_group(group_of([RIGHT, RIGHT], plans), "released")
    assert terms(scored) == [(1.299998, 1.199998, 1.0), (0.499998, 0.399998, 1.0)]
