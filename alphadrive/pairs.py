"""Counterfactual pairs in an evaluation: two queries that differ in one deciding fact, judged together.

A query belongs to a pair when its id ends in `#FACT=VALUE` (`…000012#light=red`); the other has the same
beginning and another value. No plan is acceptable in both, so whoever does not look at the fact is right
in one of the two at most. `alphadrive.world.counterfactual` makes such data; `alphadrive eval` prints this.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table

from alphadrive.evaluation import Prediction

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


def pair_counts(predictions: Iterable[Prediction]) -> dict[str, PairCounts]:
    """The counts of every fact that the predictions hold whole pairs of; empty without any."""
    answers: dict[tuple[str, str], list[bool]] = {}
    for prediction in predictions:
        if mark := _MARK.fullmatch(prediction.query_id):
            answers.setdefault((mark["fact"], mark["pair"]), []).append(prediction.is_acceptable)
    right: dict[str, Counter[int]] = {}
    for (fact, _), verdicts in answers.items():
        if len(verdicts) == 2:
            right.setdefault(fact, Counter())[sum(verdicts)] += 1
    return {
        fact: PairCounts(num_pairs=counts.total(), both=counts[2], one=counts[1], neither=counts[0])
        for fact, counts in right.items()
    }


def pairs_as_dict(predictions: Iterable[Prediction]) -> dict[str, dict[str, object]]:
    """The same as plain values for JSON, the accuracy of each fact first."""
    counts = pair_counts(predictions)
    return {fact: {"accuracy": each.accuracy, **asdict(each)} for fact, each in counts.items()}


def print_pairs(predictions: Iterable[Prediction], console: Console | None = None) -> None:
    """Print a table of the pairs; nothing where there are none."""
    counts = pair_counts(predictions)
    if not counts:
        return
    table = Table(title="counterfactual pairs")
    for name in ("fact", "pairs", "both right", "one", "neither"):
        table.add_column(name, justify="left" if name == "fact" else "right")
    for fact, each in counts.items():
        table.add_row(
            fact.replace("_", " "),
            str(each.num_pairs),
            f"{100 * each.accuracy:.1f} %",
            *(f"{100 * count / each.num_pairs:.1f} %" for count in (each.one, each.neither)),
        )
    (console or Console()).print(table)
