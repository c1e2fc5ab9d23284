"""How near a planner's reasoning comes to the reference of its row, in words: BLEU-4, CIDEr-D, METEOR.

All three compare wording. A reasoning that is right in other words scores low, one that is wrong by a
single word ("red" for "green") scores high. Rows without a reference are left out and not counted.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alphadrive.metrics.cider import cider_d
from alphadrive.metrics.statistics import mean

EXACT_AND_STEM = "exact and stem matching (WordNet's synonyms are not installed)"
WITH_SYNONYMS = "exact, stem and WordNet synonym matching"

_WORD = re.compile(r"\d+\.\d+|\w+(?:['-]\w+)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningMetrics:
    """Corpus BLEU-4 in [0, 1], mean CIDEr-D in [0, 10], mean METEOR in [0, 1] over `num_rows` rows.

    `meteor_matching` says which words METEOR took for the same.
    """

    num_rows: int
    bleu4: float
    cider_d: float
    meteor: float
    meteor_matching: str


def words(text: str) -> list[str]:
    """Lower-case words and numbers; punctuation is dropped, as in coco-caption.

    >>> words("Speed 8.3, don't stop-and-go.")
    ['speed', '8.3', "don't", 'stop-and-go']
    """
    return _WORD.findall(text.lower())


def reasoning_metrics(pairs: Sequence[tuple[str, str]]) -> ReasoningMetrics | None:
    """The figures of (reasoning, reference) pairs; None where there is no pair."""
    if not pairs:
        return None
    candidates = [words(reasoning) for reasoning, _ in pairs]
    references = [words(reference) for _, reference in pairs]
    score, matching = meteor(candidates, references)
    return ReasoningMetrics(
        num_rows=len(pairs),
        bleu4=bleu4(candidates, references),
        cider_d=mean(cider_d(candidates, references)),
        meteor=score,
        meteor_matching=matching,
    )


def bleu4(candidates: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> float:
    """Corpus BLEU-4 (Papineni et al. 2002) in [0, 1] over words, without smoothing: 0 where no four words
    in a row agree anywhere."""
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU(tokenize="none", smooth_method="none", force=True)
    joined = [[" ".join(row) for row in rows] for rows in (candidates, references)]
    return float(metric.corpus_score(joined[0], [joined[1]]).score) / 100


def meteor(candidates: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> tuple[float, str]:
    """Mean sentence METEOR (Lavie and Agarwal 2007: alpha 0.9, beta 3, gamma 0.5) in [0, 1], and how words
    were matched: by synonyms too where WordNet's data is installed. Nothing is ever downloaded."""
    from nltk.translate.meteor_score import single_meteor_score  # type: ignore[import-untyped]

    synonyms, matching = _synonyms()
    scores = (
        single_meteor_score(reference, candidate, wordnet=synonyms)
        for candidate, reference in zip(candidates, references, strict=True)
    )
    return mean(scores), matching


class _NoSynonyms:
    """Stands in for WordNet where its data is absent."""

    def synsets(self, word: str) -> tuple[()]:
        return ()


def _synonyms() -> tuple[Any, str]:
    from nltk.corpus import wordnet  # type: ignore[import-untyped]

    try:
        wordnet.ensure_loaded()
    except LookupError:
        return _NoSynonyms(), EXACT_AND_STEM
    return wordnet, WITH_SYNONYMS
