"""Variant `released`: what the authors' published code computes, to 1e-6, for reproduction only.

    r      = F1 * mean weight of the predicted words +- 0.4          for speed and for path
    format = 1 if the whole text is <think>…</think>, white space, <answer>…</answer>, else 0

Its quirks are kept. Words are those of the first `<answer>…</answer>` that lies on one line, or, without
one, of the whole text less the answer tags; they are split at a comma and one space, and only exact ones
count. +0.4 goes to a text all of whose words are seen for the first time in the call, which is also the case
of a text without words. A solution without `<answer>` pays 0. docs/rewards.md says what follows from these
rules; train with `strict`.
"""

import re
from collections import Counter
from collections.abc import Sequence

from rewards.action_weights import PATH_WEIGHTS, SPEED_WEIGHTS

DIVERSITY_BONUS = 0.4
EPSILON = 1e-6

_SPEEDS: dict[str, float] = {str(word): weight for word, weight in SPEED_WEIGHTS.items()}
_PATHS: dict[str, float] = {str(word): weight for word, weight in PATH_WEIGHTS.items()}
_ANSWER = re.compile(r"<answer>(.*?)</answer>")
_ANSWER_TAG = re.compile(r"</?answer>")
_FORMAT = re.compile(r"<think>.*?</think>\s*<answer>.*?</answer>", re.DOTALL)


def released_terms(texts: Sequence[str], solutions: Sequence[str]) -> list[dict[str, float]]:
    """The terms of one call: `speed` and `path` in [-0.4, 1.4], `format` 0 or 1, in the order of the texts.

    `solutions[i]` is the true answer, with its tags, of `texts[i]`. A call of the published trainer held
    the completions of several prompts, and words were counted over all of them.
    """
    speeds = _dimension(texts, solutions, _SPEEDS)
    paths = _dimension(texts, solutions, _PATHS)
    return [
        {"speed": speed, "path": path, "format": 1.0 if _FORMAT.fullmatch(text) else 0.0}
        for text, speed, path in zip(texts, speeds, paths, strict=True)
    ]


def _dimension(texts: Sequence[str], solutions: Sequence[str], weights: dict[str, float]) -> list[float]:
    seen: Counter[str] = Counter()
    rewards = []
    for text, solution in zip(texts, solutions, strict=True):
        truth = _ANSWER.search(solution)
        if truth is None:
            rewards.append(0.0)
            continue
        answer = _ANSWER.search(text)
        content = answer.group(1).strip() if answer else _ANSWER_TAG.sub("", text)
        predicted = _words(content, weights)
        seen.update(predicted)
        is_new = all(seen[word] == 1 for word in predicted)
        weight = sum(weights[word] for word in predicted) / (len(predicted) + EPSILON)
        f1 = _f1(predicted, _words(truth.group(1).strip(), weights))
        rewards.append(f1 * weight + (DIVERSITY_BONUS if is_new else -DIVERSITY_BONUS))
    return rewards


def _words(content: str, weights: dict[str, float]) -> set[str]:
    return {word for word in content.split(", ") if word in weights}


def _f1(predicted: set[str], truth: set[str]) -> float:
    if not predicted and not truth:
        return 0.0
    hits = len(predicted & truth)
    precision, recall = hits / (len(predicted) + EPSILON), hits / (len(truth) + EPSILON)
    return 2 * precision * recall / (precision + recall + EPSILON)
