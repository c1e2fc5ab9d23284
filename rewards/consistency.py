"""Term `consistency`: does the reasoning end on another plan than the answer?

The rule, for speed and path each: of the actions that the text in `<think>` names, the one named last must
be the answer's. Naming none is fine. Only the last counts, so naming all of them gains nothing. An action
right after a negation ("no need to stop") is not named.

What it cannot see: it knows these English phrases and the plan words only, not what they are about ("the
car ahead may stop" names STOP), and reasons that contradict the plan without naming one.
"""

import re
from collections.abc import Sequence

from alphadrive.actions import PATHS, SPEEDS, Plan, parse_answer, reasoning_of
from alphadrive.types import Completion

_CHANGE = r"(?:chang|mov|merg|shift)(?:e|es|ing)"
_PHRASES: dict[str, str] = {
    "KEEP": r"(?:keep|maintain|hold)(?:s|ing)? (?:\w+ ){0,2}(?:speed|pace)|constant speed",
    "ACCELERATE": r"accelerat(?:e|es|ing|ion)|speed(?:s|ing)? up|increas(?:e|es|ing) (?:\w+ ){0,2}speed",
    "DECELERATE": r"decelerat(?:e|es|ing|ion)|slow(?:s|ing)? down|reduc(?:e|es|ing) (?:\w+ ){0,2}speed",
    "STOP": r"(?:stop|stops|stopping|halt)(?! (?:sign|line))|come to a standstill",
    "STRAIGHT": r"(?:go|goes|going|continue|continuing|proceed|proceeding|drive|driving) straight",
    "LEFT_TURN": r"turn(?:s|ing)? (?:to the )?left|left turn",
    "RIGHT_TURN": r"turn(?:s|ing)? (?:to the )?right|right turn",
    "LEFT_CHANGE": rf"left lane change|{_CHANGE} (?:lanes? )?(?:in)?to the left",
    "RIGHT_CHANGE": rf"right lane change|{_CHANGE} (?:lanes? )?(?:in)?to the right",
}
_NAMED = re.compile(
    r"\b(?:" + "|".join(rf"(?P<{word}>{word}|(?i:{_PHRASES[word]}))" for word in _PHRASES) + r")\b"
)
_SPACES = re.compile(r"\s+")
_NEGATED = re.compile(
    r"(?:\bnot|n't|\bnever|\bwithout|\bno need to|\binstead of|\brather than) (?:\w+ )?$", re.I
)
_LOOK_BACK = 40


def consistency_values(completions: Sequence[Completion]) -> list[float]:
    """0 for a completion whose reasoning names no other plan at its end, -0.5 for each of speed and path
    that it does, -1 without a plan in the answer (so that leaving it out gains nothing)."""
    return [_value(completion.text) for completion in completions]


def _value(text: str) -> float:
    answer = parse_answer(text)
    return -1.0 if answer is None else -0.5 * len(contradictions(reasoning_of(text), answer))


def contradictions(reasoning: str, answer: Plan) -> list[str]:
    """The actions that the reasoning names last and that the answer does not take: none, one or two.

    >>> contradictions("The light is red, so slow down and stop.", Plan("KEEP", "STRAIGHT"))
    ['STOP']
    """
    named = named_actions(reasoning)
    speeds, paths = ([word for word in named if word in words] for words in (SPEEDS, PATHS))
    last = [*speeds[-1:], *paths[-1:]]
    return [word for word in last if word not in (answer.speed, answer.path)]


def named_actions(reasoning: str) -> list[str]:
    """The actions a text names, as plan words, in the order of the text."""
    text = _SPACES.sub(" ", reasoning)
    return [
        str(found.lastgroup)
        for found in _NAMED.finditer(text)
        if not _NEGATED.search(text[max(0, found.start() - _LOOK_BACK) : found.start()])
    ]
