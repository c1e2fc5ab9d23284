"""The gradient norms of a run, and which of them stand out."""

import math
import statistics
from collections import deque
from collections.abc import Iterable

SPIKE_FACTOR = 10.0
WINDOW = 100
FEWEST = 10
"""With fewer norms seen, none is called a spike."""


class GradientNorms:
    """The last `WINDOW` gradient norms of applied updates."""

    def __init__(self, norms: Iterable[float] = ()) -> None:
        self._norms = deque(norms, WINDOW)

    def add(self, norm: float) -> bool:
        """Take the norm of an update; whether it is a spike: above ten times the median of those before.

        >>> norms = GradientNorms([1.0] * 10)
        >>> [norms.add(norm) for norm in (9.0, 11.0, 1.0)]
        [False, True, False]
        """
        is_known = len(self._norms) >= FEWEST
        is_spike = is_known and norm > SPIKE_FACTOR * statistics.median(self._norms)
        if math.isfinite(norm):
            self._norms.append(norm)
        return is_spike

    def state(self) -> list[float]:
        """What a checkpoint keeps."""
        return list(self._norms)
