"""Variant `paper`: the four rewards of arXiv 2503.07608, section 3.3 and Algorithm 1.

    speed  = F1(speed) * W[speed word] * div        planning accuracy, action-weighted, diverse
    path   = F1(path)  * W[path word]  * div
    format = 1 if the whole text is <think> … </think> <answer> … </answer>, else 0

Answers are read strictly by `alphadrive.actions`, so a word counts only as a whole word of the last
complete `<answer>`, and a text that cannot be read earns no speed and no path reward.
"""

from collections import Counter
from collections.abc import Sequence

from alphadrive.actions import Plan, is_well_formed, parse_answer
from rewards.action_weights import plan_terms

MAX_REPETITION_PENALTY = 0.2


def diversity_factor(count: int, group_size: int) -> float:
    """`1 - min(0.2, count / group_size)`, in [0.8, 1).

    `count` is how many completions of the group gave this whole plan, itself included, so the factor
    does not depend on the order of the group. For `group_size` <= 5 it is always 0.8 and carries no
    signal; with 8, only a plan given once (0.875) is spared the full penalty.
    """
    return 1.0 - min(MAX_REPETITION_PENALTY, count / group_size)


def paper_terms(texts: Sequence[str], acceptable: Sequence[Plan]) -> list[dict[str, float]]:
    """The terms of every text of one group: `speed`, `path` in [0, 1), `format` 0 or 1."""
    answers = [parse_answer(text) for text in texts]
    counts = Counter(answers)
    rewards = []
    for text, answer in zip(texts, answers, strict=True):
        speed, path = plan_terms(answer, acceptable, diversity_factor(counts[answer], len(answers)))
        rewards.append({"speed": speed, "path": path, "format": 1.0 if is_well_formed(text) else 0.0})
    return rewards
