"""CIDEr-D of one candidate against one reference a row (Vedantam et al. 2015, arXiv 1411.5726, section 4-6).

The cosine of TF-IDF vectors of n-grams (n = 1 to 4), the candidate's counts clipped to the reference's,
times a Gaussian penalty on the difference in length, averaged over n and scaled by 10. Document
frequencies are those of the references themselves, so a score depends on the whole set: it compares
models on the same rows, never rows of different sets.
"""

import math
from collections import Counter
from collections.abc import Sequence

MAX_N = 4
SIGMA = 6.0
"""Of the length penalty, in words."""
SCALE = 10.0

Ngram = tuple[str, ...]
Vector = dict[Ngram, float]


def cider_d(candidates: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> list[float]:
    """The score of each tokenised candidate against the reference of the same row, each in [0, 10].

    With a single row every inverse document frequency, and so the score, is 0. Raises ValueError for
    different numbers of candidates and references.
    """
    counted = [_ngrams(words) for words in references]
    frequency = Counter(ngram for counts in counted for ngram in counts)
    log_rows = math.log(len(references)) if references else 0.0

    def vector(counts: Counter[Ngram]) -> Vector:
        return {
            ngram: count * (log_rows - math.log(max(1, frequency[ngram]))) for ngram, count in counts.items()
        }

    scores = []
    for candidate, reference, counts in zip(candidates, references, counted, strict=True):
        similarity = _mean_cosine(vector(_ngrams(candidate)), vector(counts))
        gap = len(candidate) - len(reference)
        scores.append(SCALE * similarity * math.exp(-(gap**2) / (2 * SIGMA**2)))
    return scores


def _ngrams(words: Sequence[str]) -> Counter[Ngram]:
    return Counter(tuple(words[at : at + n]) for n in range(1, MAX_N + 1) for at in range(len(words) - n + 1))


def _mean_cosine(candidate: Vector, reference: Vector) -> float:
    products, candidate_norms, reference_norms = ([0.0] * MAX_N for _ in range(3))
    for ngram, weight in candidate.items():
        candidate_norms[len(ngram) - 1] += weight**2
        right = reference.get(ngram, 0.0)
        products[len(ngram) - 1] += min(weight, right) * right
    for ngram, weight in reference.items():
        reference_norms[len(ngram) - 1] += weight**2
    norms = (math.sqrt(a * b) for a, b in zip(candidate_norms, reference_norms, strict=True))
    cosines = (product / norm if norm else 0.0 for product, norm in zip(products, norms, strict=True))
    return sum(cosines) / MAX_N
