"""How often each recorded plan is drawn: balanced, or as on real roads.

`boreas` matches how often each SPEED and each PATH word occurs in 4,258 windows of two Boreas drives
(University of Toronto), one every half second, labelled by the default rule: both margins exactly. Which
go together is not matched: STOP is always straight on, and of the other speeds each has the same shares
of paths.
"""

from collections.abc import Mapping

from alphadrive.world.choices import Frequencies
from alphadrive.world.sampling import PLAN_SHARES

BOREAS_SPEEDS = {"KEEP": 1648, "ACCELERATE": 1023, "DECELERATE": 829, "STOP": 758}
BOREAS_PATHS = {
    "STRAIGHT": 3810,
    "LEFT_TURN": 193,
    "RIGHT_TURN": 234,
    "LEFT_CHANGE": 10.5,
    "RIGHT_CHANGE": 10.5,
}
"""Windows of each word. The 21 lane changes are counted together there; here half go to each side."""


def plan_shares(frequencies: Frequencies) -> Mapping[str, float]:
    """The share of each recorded plan; they sum to 1.

    >>> round(sum(share for plan, share in plan_shares("boreas").items() if "KEEP" in plan) * 4258, 6)
    1648.0
    """
    return PLAN_SHARES if frequencies == "balanced" else _boreas_shares()


def _boreas_shares() -> dict[str, float]:
    total = sum(BOREAS_SPEEDS.values())
    halted = BOREAS_SPEEDS["STOP"]
    shares = {"STOP, STRAIGHT": halted / total}
    for path, count in BOREAS_PATHS.items():
        moving = (count - halted if path == "STRAIGHT" else count) / (total - halted)
        for speed in ("KEEP", "ACCELERATE", "DECELERATE"):
            shares[f"{speed}, {path}"] = BOREAS_SPEEDS[speed] / total * moving
    return shares
