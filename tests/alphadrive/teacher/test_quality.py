"""The checks that decide what enters a dataset, over texts written by hand and texts made elsewhere."""

import json
from pathlib import Path

import pytest

from alphadrive.actions import PATHS, SPEEDS, Plan, parse_answer, parse_plan
from alphadrive.prompts import PATH_WORDS, SPEED_WORDS, teacher_prompt
from alphadrive.teacher.mentions import named_actions
from alphadrive.teacher.quality import MAX_WORDS, MIN_WORDS, refusal_of, seen_objects
from alphadrive.teacher.request import Answer
from alphadrive.world.sampling import sample_scene
from alphadrive.world.teacher import reasoning

METAAD = Path(__file__).resolve().parents[4] / "shared" / "data" / "metaad" / "example.json"
ALL_PLANS = [Plan(speed, path) for speed in SPEEDS for path in PATHS]
GOOD = (
    "The traffic light ahead is red and pedestrians are on the crosswalk, so come to a stop and go straight."
)


def answer(text, finish_reason="stop"):
    return Answer(text=text, finish_reason=finish_reason, prompt_tokens=1, completion_tokens=1)


def check_of(text, plan="STOP, STRAIGHT", navigation="Straight in 100 m", **fields):
    refusal = refusal_of(answer(text, **fields), parse_plan(plan), navigation)
    return refusal.check if refusal else None


def test_good_answer_passes():
    assert check_of(GOOD) is None


@pytest.mark.parametrize(
    ("text", "check"),
    [
        ("", "format"),
        ("   ", "format"),
        ("The light is red.\n\nSo come to a stop behind the line and wait.", "format"),
        ("The light ahead is red and people cross the road, so come to a", "format"),
        (GOOD.replace("red", "red \ud83d"), "format"),  # half of a surrogate pair: no file takes it
        (GOOD.replace("red", "red \x1b[31m"), "format"),
        (GOOD.replace(" and", ".\u2028So"), "format"),
        (f"<think> {GOOD} </think> ok.", "markup"),
        (f"{GOOD}<|im_end|>.", "markup"),
        (GOOD.replace("red", "**red**"), "markup"),
        (f"- {GOOD}", "markup"),
        (f"1. {GOOD}", "markup"),
        (f"<b>{GOOD}</b> yes.", "markup"),
        ("Red light, come to a stop.", "length"),
        (GOOD + " Red light and people." * 30, "length"),
        ("STOP, STRAIGHT. The decision is to STOP and go STRAIGHT now.", "label_words"),
        (
            "The vehicle should come to a stop and go straight because the navigation command is straight.",
            "label_words",
        ),
        ("The traffic light is green and the wide road ahead is empty of people.", "agreement"),
        (GOOD.replace("come to a stop", "keep the current speed"), "agreement"),
        (GOOD.replace("go straight", "turn left"), "other_plan"),
        (GOOD.replace("go straight", "accelerate afterwards"), "other_plan"),
        (GOOD.replace("go straight", "do not turn right yet"), "other_plan"),
    ],
)
def test_bad_answers_are_refused_by_name(text, check):
    assert check_of(text) == check


def test_cut_off_and_withheld_answers_are_refused():
    assert check_of(GOOD, finish_reason="length") == "format"
    assert check_of(GOOD, finish_reason="content_filter") == "format"


def test_length_bounds_are_inclusive():
    words = "Red light ahead beyond wet asphalt, so stop."
    assert len(words.split()) == MIN_WORDS and check_of(words) is None
    assert check_of(words.replace("wet ", "")) == "length"
    longest = " ".join(["wet"] * (MAX_WORDS - MIN_WORDS)) + " " + words
    assert check_of(longest) is None
    assert check_of(f"very {longest}") == "length"


@pytest.mark.parametrize("plan", ALL_PLANS, ids=str)
def test_words_the_teacher_is_told_name_their_plan_and_no_other(plan):
    """Of all twenty plans, an explanation of one passes for no other, slowing down to a STOP aside."""
    decision = f"{SPEED_WORDS[plan.speed]} and {PATH_WORDS[plan.path]}"
    assert decision in teacher_prompt(3.0, "Straight", plan)
    text = f"A crossing lies beyond a parked van in daylight, so {decision}."
    passing = [other for other in ALL_PLANS if refusal_of(answer(text), other, "") is None]
    assert passing == [plan]


@pytest.mark.parametrize(
    ("text", "actions"),
    [
        ("The truck ahead is braking at the stop line, so slow down.", {"DECELERATE"}),
        ("The vehicle in front has stopped, so the vehicle should halt.", {"STOP"}),
        ("The lane is blocked by a stopped car, so merge into the left lane.", {"LEFT_CHANGE"}),
        ("Traffic is slowing and cars are turning left, so reduce the speed.", {"DECELERATE"}),
        ("The brake lights of the car ahead are on.", set()),
        ("The ego vehicle is in the left turn lane, so make a left turn.", {"LEFT_TURN"}),
        ("A car turning left is ahead, keep a safe distance.", set()),
        ("The ego vehicle is turning left and maintaining its speed.", {"LEFT_TURN", "KEEP"}),
        ("The vehicle is slowing down.", {"DECELERATE"}),
        ("There is no need to stop, so speed up.", {"STOP", "ACCELERATE"}),
        ("Stay in the current lane at a constant speed.", {"STRAIGHT", "KEEP"}),
        ("Move over to the right, then turn right.", {"RIGHT_CHANGE", "RIGHT_TURN"}),
        ("The road to the left is empty and the bus stop is right there.", set()),
        ("The navigation says Turn Left in 200 m, so keep going straight.", {"STRAIGHT"}),
        ("KEEP, LEFT_TURN", set()),
    ],
)
def test_actions_named_for_the_driver(text, actions):
    assert set(named_actions(text, "turn left in 200 m")) == actions


def test_speed_of_explanations_made_elsewhere_is_recognised():
    """The rule-made teacher of the rendered world words its reasons its own way."""
    for seed in range(80):
        scene, _ = sample_scene(seed)
        for speed in SPEEDS:
            text = reasoning(scene, Plan(speed, "STRAIGHT"))
            assert {word for word in named_actions(text, "") if word in SPEEDS} == {speed}, text


@pytest.mark.skipif(not METAAD.is_file(), reason=f"needs the published MetaAD row in {METAAD}")
def test_published_reasoning_passes_for_its_own_plan_only():
    row = json.loads(METAAD.read_text())
    text = row["thinking"].replace("<think>", "").replace("</think>", "").strip()
    plan = parse_answer(row["solution"])
    navigation = "{'100m': 'Straight', '200m': 'Straight'}"
    assert refusal_of(answer(text), plan, navigation) is None
    for other in ALL_PLANS:
        if other != plan:
            assert refusal_of(answer(text), other, navigation) is not None, other


def test_problem_of_a_refused_answer_goes_into_the_next_question():
    refusal = refusal_of(answer(GOOD), Plan("KEEP", "STRAIGHT"), "")
    first, second, third = (
        teacher_prompt(3.0, "Straight", Plan("KEEP", "STRAIGHT"), [refusal.problem] * number)
        for number in range(3)
    )
    assert refusal.problem == "it does not say 'keep the current speed'"
    assert second == f"{first} Earlier answers were refused: {refusal.problem}."
    assert len({first, second, third}) == 3


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("red light: yes\n- a bus : No\n", {"red light": True, "a bus": False}),
        ("time 3:15 sign: yes", {"time 3:15 sign": True}),
        ("None", {}),
        ("none.", {}),
        ("", None),
        ("Everything is visible.", None),
        ("red light: yes\nI am sure.", None),
        ("red light: maybe", None),
        (": yes", None),
    ],
)
def test_reply_about_visibility_is_read_strictly(text, seen):
    assert seen_objects(text) == seen
