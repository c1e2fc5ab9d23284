"""Text metrics against the libraries the field uses, and against hand-worked numbers."""

import math
import random

import pytest

from alphadrive.actions import reasoning_of
from alphadrive.metrics import reasoning
from alphadrive.metrics.cider import cider_d
from alphadrive.metrics.reasoning import bleu4, meteor, reasoning_metrics, words

VOCABULARY = (
    *("red", "green", "light", "ahead", "vehicle", "braking", "so", "stop", "keep", "speed"),
    *("the", "lane", "is", "free", "person", "on", "road", "left"),
)


def sentences(seed, count):
    """Pairs that share stretches of words, of different lengths, some with nothing in common."""
    draw = random.Random(seed)
    pairs = []
    for index in range(count):
        reference = draw.choices(VOCABULARY, k=draw.randint(1, 18))
        at = draw.randint(0, len(reference))
        candidate = [*reference[:at], *draw.choices(VOCABULARY, k=draw.randint(0, 8))]
        pairs.append((["nothing", "alike"] if index % 9 == 0 else candidate, reference))
    return [candidate for candidate, _ in pairs], [reference for _, reference in pairs]


@pytest.mark.parametrize("seed", range(5))
def test_bleu_is_that_of_nltk(seed):
    from nltk.translate.bleu_score import corpus_bleu

    # Of a candidate without n-grams of a length, nltk counts one all the same.
    pairs = [pair for pair in zip(*sentences(seed, 60), strict=True) if len(pair[0]) >= 4]
    candidates, references = zip(*pairs, strict=True)
    expected = corpus_bleu([[reference] for reference in references], candidates)
    assert 0.2 < expected < 0.8
    assert bleu4(candidates, references) == pytest.approx(expected)


def test_bleu_by_hand():
    # 5 of 6 words, 3 of 5 pairs, 2 of 4 triples, 1 of 3 fours; one word shorter than the reference.
    score = bleu4([words("so stop at the red light")], [words("and so stop at the green light")])
    assert score == pytest.approx((5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** (1 / 4) * math.exp(1 - 7 / 6))
    assert bleu4([words("stop at the light")], [words("stop at the sign")]) == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_cider_d_is_that_of_pycocoevalcap(seed):
    from pycocoevalcap.cider.cider import Cider

    candidates, references = sentences(seed, 80)
    truth = {row: [" ".join(reference)] for row, reference in enumerate(references)}
    said = {row: [" ".join(candidate)] for row, candidate in enumerate(candidates)}
    mean, scores = Cider().compute_score(truth, said)
    found = cider_d(candidates, references)
    assert found == pytest.approx(scores.tolist(), abs=1e-9)
    assert sum(found) / len(found) == pytest.approx(mean)
    assert mean > 1


def test_cider_d_of_the_references_themselves_is_ten():
    references = [["a", "b", "c", "d"], ["e", "f", "g", "h"]]
    assert cider_d(references, references) == pytest.approx([10.0, 10.0])


def test_cider_d_needs_more_than_one_row():
    assert cider_d([["a", "b"]], [["a", "b"]]) == [0.0]


def test_meteor_by_hand(monkeypatch):
    monkeypatch.setattr(reasoning, "_synonyms", lambda: (reasoning._NoSynonyms(), reasoning.EXACT_AND_STEM))
    # All five words match, "stops" by its stem, in four chunks: the | red | car stops | here.
    candidate, reference = words("the red car stops here"), words("the car stopping at red here")
    precision, recall = 5 / 5, 5 / 6
    f_mean = precision * recall / (0.9 * precision + 0.1 * recall)
    expected = (1 - 0.5 * (4 / 5) ** 3) * f_mean
    assert meteor([candidate], [reference]) == (pytest.approx(expected), reasoning.EXACT_AND_STEM)


def test_meteor_of_a_single_stretch_and_of_nothing():
    same = words("keep the speed")
    score, _ = meteor([same, words("no"), []], [same, words("stop"), words("stop")])
    assert score == pytest.approx((1 - 0.5 * (1 / 3) ** 3) / 3)


def test_absent_synonyms_are_said_and_never_fetched(monkeypatch):
    import nltk
    from nltk.corpus.reader import WordNetCorpusReader
    from nltk.corpus.util import LazyCorpusLoader

    def download(*_, **__):
        raise AssertionError("a download was tried")

    monkeypatch.setattr(nltk, "download", download)
    monkeypatch.setattr(nltk.corpus, "wordnet", LazyCorpusLoader("not-installed", WordNetCorpusReader, None))
    score, matching = meteor([["car"]], [["automobile"]])
    assert (score, matching) == (0.0, "exact and stem matching (WordNet's synonyms are not installed)")


def test_reasoning_is_what_stands_between_the_last_think_tags():
    assert (
        reasoning_of("<think> a </think> <think> b\nc </think> <answer> KEEP, STRAIGHT </answer>") == "b\nc"
    )
    assert reasoning_of("<answer> KEEP, STRAIGHT </answer>") == ""
    assert reasoning_of("<think> never closed <answer> KEEP, STRAIGHT </answer>") == ""


def test_rows_without_references_are_no_figures():
    assert reasoning_metrics([]) is None
    found = reasoning_metrics([("Red light: stop.", "red light, stop"), ("", "keep on")])
    assert found.num_rows == 2
    assert 0 < found.meteor < 0.5
