"""Group-relative advantages (GRPO: DeepSeekMath, arXiv 2402.03300, equation 4.1.2)."""

import math
from collections.abc import Sequence

from alphadrive.errors import RewardError

STD_EPSILON = 1e-4


def group_advantages(totals: Sequence[float]) -> tuple[float, ...]:
    """`(r - mean) / (std + 1e-4)` over the rewards of one group; they sum to 0.

    `std` is the sample standard deviation (divided by G - 1), as in TRL and the authors' released
    code: with G = 2 the advantages are +-0.7071 whatever the gap. Exactly zero for all when all
    rewards are equal. Exact sums make the result independent of the order of the group.
    Each value lies in [-(G-1)/sqrt(G), (G-1)/sqrt(G)].

    Raises RewardError for an empty group or a reward that is not finite.

    >>> [round(value, 3) for value in group_advantages([1.0, 0.0, 0.0, 0.0])]
    [1.5, -0.5, -0.5, -0.5]
    """
    if not totals:
        raise RewardError("advantages of an empty group: expected at least one reward")
    if not all(math.isfinite(total) for total in totals):
        raise RewardError(f"rewards {list(totals)}: expected finite numbers; a reward function is broken")
    if min(totals) == max(totals):
        return (0.0,) * len(totals)
    mean = math.fsum(totals) / len(totals)
    deviations = [total - mean for total in totals]
    std = math.sqrt(math.fsum(value * value for value in deviations) / (len(totals) - 1))
    return tuple(value / (std + STD_EPSILON) for value in deviations)
