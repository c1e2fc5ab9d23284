"""Meta-actions: the words a plan is made of, and the strict reading of an answer.

Here lives the vocabulary (paper, section 3.1) and the one strict parser used by rewards and
evaluation alike. Labelling rules that derive plans from trajectories do not live here.
"""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from alphadrive.trajectory import read_waypoints

Speed = Literal["KEEP", "ACCELERATE", "DECELERATE", "STOP"]
Path = Literal["STRAIGHT", "RIGHT_CHANGE", "LEFT_CHANGE", "RIGHT_TURN", "LEFT_TURN"]

SPEEDS: tuple[Speed, ...] = get_args(Speed)
PATHS: tuple[Path, ...] = get_args(Path)

_TAG = re.compile(r"</?(?:think|trajectory|answer)>")
_WELL_FORMED = (
    ("<think>", "</think>", "<answer>", "</answer>"),
    ("<think>", "</think>", "<trajectory>", "</trajectory>", "<answer>", "</answer>"),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do in the next three seconds: one speed word and one path word."""

    speed: Speed
    path: Path

    def __str__(self) -> str:
        return f"{self.speed}, {self.path}"


_PLANS: dict[tuple[str, str], Plan] = {
    words: Plan(speed, path) for speed in SPEEDS for path in PATHS for words in ((speed, path), (path, speed))
}


def parse_plan(text: str) -> Plan | None:
    """Read `"KEEP, STRAIGHT"`: exactly one SPEED and one PATH word, any order, case and spacing.

    Returns None for anything else: a missing, repeated or unknown word, or a letter that is not ASCII
    (some of those become A to Z when their case is changed, and only look like these words).

    >>> parse_plan("left_turn , keep")
    Plan(speed='KEEP', path='LEFT_TURN')
    >>> parse_plan("KEEP, STOP") is None
    True
    """
    words = text.upper().split(",", 2) if text.isascii() else []
    return _PLANS.get((words[0].strip(), words[1].strip())) if len(words) == 2 else None


def parse_answer(text: str) -> Plan | None:
    """Read the plan in the last complete `<answer> … </answer>` of a completion, strictly.

    None means invalid: no complete answer, or its content is no plan (see `parse_plan`). Total and
    linear in the length of the text.
    """
    answer, start = None, None
    for tag in _TAG.finditer(text):
        if tag.group() == "<answer>":
            start = tag.end()
        elif tag.group() == "</answer>":
            answer, start = (answer if start is None else text[start : tag.start()]), None
    return None if answer is None else parse_plan(answer)


def is_well_formed(text: str) -> bool:
    """Whether the whole text is one non-empty `<think>…</think>` and one `<answer>…</answer>`.

    The paper's format reward (section 3.3) is 1 exactly here. A trajectory that can be read may stand
    between the two (see `alphadrive.trajectory`). Total and linear in the length of the text.
    """
    tags = list(_TAG.finditer(text))
    if tuple(tag.group() for tag in tags) not in _WELL_FORMED:
        return False
    position = 0
    for opening, closing in zip(tags[::2], tags[1::2], strict=True):
        if text[position : opening.start()].strip() or opening.end() == closing.start():
            return False
        position = closing.end()
    if text[position:].strip():
        return False
    return len(tags) == 4 or read_waypoints(text[tags[2].end() : tags[3].start()]) is not None


def reasoning_of(text: str) -> str:
    """What stands in the last complete `<think> … </think>` of a completion, stripped; empty where there is
    none."""
    before, closed, _ = text.rpartition("</think>")
    _, opened, reasoning = before.rpartition("<think>")
    return reasoning.strip() if opened and closed else ""
