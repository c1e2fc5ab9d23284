"""Group-relative advantages: how much better each completion is than its siblings. Plain numbers in and out.

    estimator   advantage                    of the losses             source
    grpo        (r - mean) / (std + 1e-4)    all but dr_grpo           DeepSeekMath, arXiv 2402.03300, 4.1.2
    dr_grpo     r - mean                     dr_grpo                   Dr. GRPO, arXiv 2503.20783, section 3

Golden numbers, rewards [0.2, 0.5, 0.5, 0.8] (mean 0.5, std 0.244949):

    grpo        [-1.224245, 0, 0, 1.224245]
    dr_grpo     [-0.3, 0, 0, 0.3]

`std` is the sample standard deviation (divided by G - 1), as in TRL, verl and the authors' released code;
numpy's default, the population's, would give 1.413547 there. With G = 2 `grpo` gives +-0.7071 whatever the
gap.
"""

import math
from collections.abc import Sequence

from alphadrive.errors import RewardError

STD_EPSILON = 1e-4


def group_advantages(totals: Sequence[float], estimator: str = "grpo") -> tuple[float, ...]:
    """The advantage of every completion of one group, from their rewards; they sum to 0.

    Exactly zero for all when all rewards are equal, and for a group of one. Exact sums make the result
    independent of the order of the group. Those of `grpo` lie in [-(G-1)/sqrt(G), (G-1)/sqrt(G)].

    Raises RewardError for an empty group, a reward that is not finite, or an unknown estimator.

    >>> [round(value, 3) for value in group_advantages([1.0, 0.0, 0.0, 0.0])]
    [1.5, -0.5, -0.5, -0.5]
    >>> [round(value, 3) for value in group_advantages([1.0, 0.0, 0.0, 0.0], "dr_grpo")]
    [0.75, -0.25, -0.25, -0.25]
    """
    if estimator not in ("grpo", "dr_grpo"):
        raise RewardError(f"advantage estimator {estimator!r}: expected grpo or dr_grpo")
    if not totals:
        raise RewardError("advantages of an empty group: expected at least one reward")
    if not all(math.isfinite(total) for total in totals):
        raise RewardError(f"rewards {list(totals)}: expected finite numbers; a reward function is broken")
    if min(totals) == max(totals):
        return (0.0,) * len(totals)
    mean = math.fsum(totals) / len(totals)
    deviations = [total - mean for total in totals]
    if estimator == "dr_grpo":
        return tuple(deviations)
    std = math.sqrt(math.fsum(value * value for value in deviations) / (len(totals) - 1))
    return tuple(value / (std + STD_EPSILON) for value in deviations)
