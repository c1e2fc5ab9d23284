"""What K sampled answers a query are worth. Read beside the accuracy: variety alone rewards error."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from alphadrive.actions import Plan
from alphadrive.errors import DataError
from alphadrive.metrics.judging import Judgement
from alphadrive.metrics.statistics import mean


@dataclass(frozen=True, slots=True, kw_only=True)
class VarietyMetrics:
    """Means over queries that have K samples each.

    `pass_at[k]`: chance that at least one of k samples is acceptable, for k = 1, 2, 4, … and K; `pass_at[1]`
    is the accuracy of one sample. `distinct_plans`: different valid plans among the K, `distinct_share` the
    same over K; `distinct_acceptable`: different acceptable ones. `entropy_bits`: of the K samples' valid
    plans, 0 where all agree, at most log2 K. `invalid_rate`: share of all samples.
    """

    num_rows: int
    num_samples: int
    pass_at: dict[int, float]
    invalid_rate: float
    distinct_plans: float
    distinct_share: float
    distinct_acceptable: float
    entropy_bits: float


def variety_metrics(rows: Sequence[Sequence[Judgement]]) -> VarietyMetrics:
    """The figures of the judged samples of each query, the same K for all. Raises DataError for none."""
    if not rows:
        raise DataError("no answers to judge; the data set is empty")
    num_samples = len(rows[0])
    valid = [[judgement.plan for judgement in row if judgement.plan is not None] for row in rows]
    good = [[judgement.plan for judgement in row if judgement.is_acceptable] for row in rows]
    return VarietyMetrics(
        num_rows=len(rows),
        num_samples=num_samples,
        pass_at={
            k: mean(pass_at_k(num_samples, len(plans), k) for plans in good) for k in _steps(num_samples)
        },
        invalid_rate=mean(judgement.plan is None for row in rows for judgement in row),
        distinct_plans=mean(len(set(plans)) for plans in valid),
        distinct_share=mean(len(set(plans)) / num_samples for plans in valid),
        distinct_acceptable=mean(len(set(plans)) for plans in good),
        entropy_bits=mean(map(entropy_bits, valid)),
    )


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """Unbiased estimate, from n samples of which c are right, of the chance that one of k is right.

    1 - C(n-c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374, equation 1), for 1 <= k <= n.

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    return 1.0 - math.comb(num_samples - num_right, k) / math.comb(num_samples, k)


def entropy_bits(plans: Sequence[Plan]) -> float:
    """Entropy of the plans' frequencies, in bits; 0 for none."""
    counts = Counter(plans).values()
    return sum(count / len(plans) * math.log2(len(plans) / count) for count in counts)


def _steps(num_samples: int) -> list[int]:
    powers = [1 << exponent for exponent in range(num_samples.bit_length())]
    return sorted({*powers, num_samples})
