"""Meta-actions: the words a plan is made of, and the strict reading of an answer.

Here lives the vocabulary (paper, section 3.1) and the one strict parser used by rewards and
evaluation alike. Labelling rules that derive plans from trajectories do not live here.
"""

import re
from dataclasses import dataclass
from typing import Literal, get_args

Speed = Literal["KEEP", "ACCELERATE", "DECELERATE", "STOP"]
Path = Literal["STRAIGHT", "RIGHT_CHANGE", "LEFT_CHANGE", "RIGHT_TURN", "LEFT_TURN"]

SPEEDS: tuple[Speed, ...] = get_args(Speed)
PATHS: tuple[Path, ...] = get_args(Path)

_ANSWER = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.DOTALL)
_WELL_FORMED = re.compile(
    r"\s*<think>((?:(?!</?think>|</?answer>).)+)</think>\s*<answer>((?:(?!</?answer>|</?think>).)+)</answer>\s*",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do in the next three seconds: one speed word and one path word."""

    speed: Speed
    path: Path

    def __str__(self) -> str:
        return f"{self.speed}, {self.path}"


def parse_plan(text: str) -> Plan | None:
    """Read `"KEEP, STRAIGHT"`: exactly one SPEED and one PATH word, any order, case and spacing.

    Returns None for anything else (a missing, repeated or unknown word).

    >>> parse_plan("left_turn , keep")
    Plan(speed='KEEP', path='LEFT_TURN')
    >>> parse_plan("KEEP, STOP") is None
    True
    """
    words = [word.strip().upper() for word in text.split(",")]
    speeds = [word for word in SPEEDS if word in words]
    paths = [word for word in PATHS if word in words]
    if len(words) != 2 or len(speeds) != 1 or len(paths) != 1:
        return None
    return Plan(speeds[0], paths[0])


def parse_answer(text: str) -> Plan | None:
    """Read the plan in the last complete `<answer> … </answer>` of a completion, strictly.

    None means invalid: no complete answer, or its content is no plan (see `parse_plan`). Total and
    linear in the length of the text.
    """
    answers = _ANSWER.findall(text)
    return parse_plan(answers[-1]) if answers else None


def is_well_formed(text: str) -> bool:
    """Whether the whole text is one non-empty `<think>…</think>` and one `<answer>…</answer>`.

    The paper's format reward (section 3.3) is 1 exactly here.
    """
    return _WELL_FORMED.fullmatch(text) is not None
