"""Bootstrap intervals, and means that may be undefined."""

from collections.abc import Iterable, Sequence

import numpy as np


def bootstrap_interval(
    values: Sequence[float], seed: int = 0, num_resamples: int = 10_000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values`, rows drawn with replacement.

    Drawing how often each distinct value occurs (a multinomial) is the same as drawing rows. Raises
    ValueError when there are none.
    """
    if not len(values):
        raise ValueError("bootstrap of no values")
    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(values), counts / len(values), size=num_resamples)
    means = draws @ distinct / len(values)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_difference(
    before: Sequence[float], after: Sequence[float], seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """Mean of `after - before` over the same rows, and its 95 % paired bootstrap interval.

    `before[i]` and `after[i]` are the scores (for accuracy: 0 or 1) of row i. Raises ValueError for
    different lengths.
    """
    differences = [late - early for early, late in zip(before, after, strict=True)]
    return float(np.mean(differences)), bootstrap_interval(differences, seed)


def mean(values: Iterable[float]) -> float:
    """The mean of at least one value; of truth values, the share that is true."""
    return float(np.mean(list(values)))


def rate(claims: Iterable[bool]) -> float | None:
    """The share of claims that hold, None where there is no claim at all."""
    listed = list(claims)
    return mean(listed) if listed else None
