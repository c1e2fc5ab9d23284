"""What decides whether a teacher's answer enters the dataset: pure functions over its text.

The checks in order, each with the name it has in `rejected.jsonl`; the first that fails counts:

    format        complete, one paragraph that ends as a sentence does
    markup        no special token, tag or Markdown
    length        MIN_WORDS to MAX_WORDS words
    label_words   says something beside the plan, the question's own words and the navigation command
    agreement     names the true speed action, and the true path action unless that is STRAIGHT
    other_plan    names no other action; slowing down is part of a STOP
    visible       (second pass) every object it names is in the image
"""

import re
import unicodedata
from dataclasses import dataclass

from alphadrive.actions import Plan
from alphadrive.data.checks import MARKUP
from alphadrive.prompts import PATH_WORDS, SPEED_WORDS
from alphadrive.teacher.mentions import named_actions
from alphadrive.teacher.request import Answer

MIN_WORDS, MAX_WORDS = 8, 100
MIN_OWN_WORDS = 4
"""Different words that come from neither the plan nor the question."""

_MARKDOWN = re.compile(r"\*\*|__|```|`|^\s*(?:#|[-*•] |\d+[.)] )|</?[a-zA-Z][^<>]{0,40}>|\[/?INST\]")
_UNWRITABLE = ("Cc", "Cs", "Zl", "Zp")
"""Control characters, halves of surrogate pairs (no file can hold them), separators of lines."""
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")
_NOT_OWN = frozenset(
    _WORD.findall("""
    a an and are as at be because been being but by can do does for from has have i in into is it its may
    must no not of on or our should since so that the their them then there therefore these this those
    thus to up us was we were when while will with would

    action answer ahead car choice command commanded current currently decide decided decides decision
    driver driving ego explanation given image known maneuver manoeuvre name navigation navigational next
    option path plan planned reason reasoning right seconds sentence speed state three vehicle view

    accelerate accelerates accelerating acceleration brake braking change changes changing come
    decelerate decelerates decelerating deceleration down forward go goes going halt keep keeping keeps
    lane left maintain maintaining proceed slow slowing slows stop stopping stops straight turn turning
    turns
    """)
)
"""Function words, the words of the question, the words of plans."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why an answer was refused. `problem` can be read by a person and by the teacher."""

    check: str
    problem: str


def refusal_of(answer: Answer, plan: Plan, navigation: str) -> Refusal | None:
    """Why an answer may not explain `plan`, or None when it passes all checks of the text."""
    text = answer.text.strip()
    if problem := _format_problem(text, answer.finish_reason):
        return Refusal(check="format", problem=problem)
    if found := MARKUP.search(text) or _MARKDOWN.search(text):
        return Refusal(check="markup", problem=f"it contains {found.group().strip()!r}, expected plain words")
    num_words = len(text.split())
    if not MIN_WORDS <= num_words <= MAX_WORDS:
        problem = f"it has {num_words} words, expected {MIN_WORDS} to {MAX_WORDS}"
        return Refusal(check="length", problem=problem)
    if own := _too_few_own_words(text, navigation):
        return Refusal(check="label_words", problem=own)
    return _plan_refusal(text, plan, navigation)


def _format_problem(text: str, finish_reason: str) -> str | None:
    if finish_reason == "length":
        return "it was cut off at the longest answer allowed, expected one or two sentences"
    if finish_reason == "content_filter":
        return "the endpoint's content filter withheld it"
    if not text:
        return "it was empty"
    if "\n" in text or "\r" in text:
        return "it has line breaks, expected one paragraph"
    if any(unicodedata.category(char) in _UNWRITABLE for char in text):
        return "it has control characters or damaged Unicode, expected plain text"
    if not text.rstrip("\"')").endswith((".", "!")):
        return f"it ends {text[-20:]!r}, expected the end of a sentence"
    return None


def _too_few_own_words(text: str, navigation: str) -> str | None:
    known = _NOT_OWN | {word.lower() for word in _WORD.findall(navigation)}
    own = {word.lower() for word in _WORD.findall(text)} - known
    if len(own) >= MIN_OWN_WORDS:
        return None
    return (
        f"it repeats the decision and gives no reason ({len(own)} words of its own, expected "
        f"{MIN_OWN_WORDS} or more)"
    )


def _plan_refusal(text: str, plan: Plan, navigation: str) -> Refusal | None:
    named = named_actions(text, navigation)
    if plan.speed not in named:
        return Refusal(check="agreement", problem=f"it does not say '{SPEED_WORDS[plan.speed]}'")
    if plan.path != "STRAIGHT" and plan.path not in named:
        return Refusal(check="agreement", problem=f"it does not say '{PATH_WORDS[plan.path]}'")
    allowed = {plan.speed, plan.path, *(("DECELERATE",) if plan.speed == "STOP" else ())}
    for word, phrase in named.items():
        if word not in allowed:
            return Refusal(check="other_plan", problem=f"it names another manoeuvre ('{phrase}')")
    return None


def seen_objects(text: str) -> dict[str, bool] | None:
    """Read the reply to the visibility question: a line an object, `red traffic light: yes`.

    `none` alone names no object: an empty result. None for a reply that cannot be read.

    >>> seen_objects("red light: yes\\n- a bus: no")
    {'red light': True, 'a bus': False}
    """
    lines = [line.strip(" \t-*•.") for line in text.strip().splitlines() if line.strip()]
    if [line.lower() for line in lines] == ["none"]:
        return {}
    seen: dict[str, bool] = {}
    for line in lines:
        name, _, word = line.rpartition(":")
        if not name.strip() or word.strip().lower() not in ("yes", "no"):
            return None
        seen[name.strip()] = word.strip().lower() == "yes"
    return seen or None
