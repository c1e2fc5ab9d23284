"""Every known hole of the released rewards: open in `released`, closed in `strict`."""

from collections.abc import Sequence

import pytest
from reward_groups import answer

from alphadrive.actions import PATHS, SPEEDS
from rewards.score import variant_terms

TRUTH = "<answer> ACCELERATE, STRAIGHT </answer>"
RIGHT, WRONG = answer("ACCELERATE, STRAIGHT"), answer("STOP, LEFT_TURN")


def totals(variant: str, texts: Sequence[str], solution: str = TRUTH) -> list[float]:
    return [sum(terms.values()) for terms in variant_terms(texts, [solution], "q0", variant, "")]


def call_totals(variant: str, prompts: Sequence[tuple[str, Sequence[str]]]) -> list[float]:
    """One call with the completions of several prompts. `released` is a function of the whole call."""
    if variant == "released":
        from rewards.released import released_terms

        texts = [text for _, of_prompt in prompts for text in of_prompt]
        solutions = [solution for solution, of_prompt in prompts for _ in of_prompt]
        return [sum(terms.values()) for terms in released_terms(texts, solutions)]
    return [total for solution, texts in prompts for total in totals(variant, texts, solution)]


def a_wrong_plan_in_form_beats_a_text_without_a_plan(variant: str) -> bool:
    unreadable, first, repeated = totals(variant, ["nothing to see", WRONG, WRONG])
    return unreadable < first and unreadable < repeated


def same_answers_earn_the_same(variant: str) -> bool:
    return len(set(totals(variant, [RIGHT] * 4))) == 1


def order_does_not_matter(variant: str) -> bool:
    texts = [RIGHT, answer("KEEP, STRAIGHT"), WRONG, RIGHT]
    return totals(variant, texts) == totals(variant, texts[::-1])[::-1]


def a_prompt_is_judged_by_its_own_group(variant: str) -> bool:
    other = ("<answer> STOP, LEFT_TURN </answer>", [WRONG, RIGHT])
    return call_totals(variant, [other, (TRUTH, [RIGHT, WRONG])])[2:] == totals(variant, [RIGHT, WRONG])


def an_answer_with_a_full_stop_is_not_read_by_half(variant: str) -> bool:
    ((speed, path, _),) = (
        terms.values()
        for terms in variant_terms([answer("ACCELERATE, STRAIGHT.")], [TRUTH], "q0", variant, "")
    )
    return (speed > 0.5) == (path > 0.5)


def a_full_stop_pays_no_better_than_none(variant: str) -> bool:
    """An answer that lost its words to full stops has no word that was seen before."""
    _, plain, dotted = totals(variant, [WRONG, WRONG, answer("STOP., LEFT_TURN.")])
    return dotted <= plain


def a_missing_space_loses_nothing(variant: str) -> bool:
    close, wide = answer("ACCELERATE,STRAIGHT"), answer("ACCELERATE, STRAIGHT")
    return totals(variant, [close]) == totals(variant, [wide])


def an_answer_inside_the_thought_does_not_win(variant: str) -> bool:
    text = f"<think> {TRUTH} </think> <answer> STOP, LEFT_TURN </answer>"
    return totals(variant, [text])[0] < totals(variant, [RIGHT])[0]


def listing_all_actions_does_not_beat_half_a_plan(variant: str) -> bool:
    listed, half = totals(variant, [answer(", ".join(SPEEDS + PATHS)), answer("KEEP, STRAIGHT")])
    return listed < half


def a_rare_wrong_plan_does_not_beat_a_common_right_one(variant: str) -> bool:
    right = answer("KEEP, STRAIGHT")
    *rights, rare = totals(variant, [right, right, right, WRONG], "<answer> KEEP, STRAIGHT </answer>")
    return rare < min(rights)


HOLES = [
    a_wrong_plan_in_form_beats_a_text_without_a_plan,
    same_answers_earn_the_same,
    order_does_not_matter,
    a_prompt_is_judged_by_its_own_group,
    an_answer_with_a_full_stop_is_not_read_by_half,
    a_full_stop_pays_no_better_than_none,
    a_missing_space_loses_nothing,
    an_answer_inside_the_thought_does_not_win,
    listing_all_actions_does_not_beat_half_a_plan,
    a_rare_wrong_plan_does_not_beat_a_common_right_one,
]


@pytest.mark.parametrize("holds", HOLES, ids=lambda check: check.__name__)
def test_a_hole_of_the_released_rewards_is_closed_in_strict(holds):
    assert not holds("released")
    assert holds("strict")
