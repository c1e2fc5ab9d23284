"""Counterfactual pairs in an evaluation: two queries that differ in one deciding fact, judged together.

A query belongs to a pair when its id ends in `#FACT=VALUE` (`…000012#light=red`); the other has the same
beginning and another value. No plan is acceptable in both, so whoever does not look at the fact is right
in one of the two at most. `alphadrive.world.counterfactual` makes such data.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass

_MARK = re.compile(r"(?P<pair>.+#(?P<fact>[a-z_]+))=[a-z]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class PairCounts:
    """How the pairs of one fact were answered: both right, one of the two, neither."""

    num_pairs: int
    both: int
    one: int
    neither: int

    @property
    def accuracy(self) -> float:
        """Share of pairs with both answers right; 0 for who never looks at the fact."""
        return self.both / self.num_pairs

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON, the accuracy first."""
        return {"accuracy": self.accuracy, **asdict(self)}


def pair_counts(verdicts: Iterable[tuple[str, bool]]) -> dict[str, PairCounts]:
    """The counts of every fact that (query id, whether the answer is acceptable) hold whole pairs of;
    empty without any."""
    answers: dict[tuple[str, str], list[bool]] = {}
    for query_id, is_acceptable in verdicts:
        if mark := _MARK.fullmatch(query_id):
            answers.setdefault((mark["fact"], mark["pair"]), []).append(is_acceptable)
    right: dict[str, Counter[int]] = {}
    for (fact, _), both in answers.items():
        if len(both) == 2:
            right.setdefault(fact, Counter())[sum(both)] += 1
    return {
        fact: PairCounts(num_pairs=counts.total(), both=counts[2], one=counts[1], neither=counts[0])
        for fact, counts in right.items()
    }
