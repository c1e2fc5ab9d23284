"""Term `trajectory`: how near a stated trajectory is to the driven one, and whether it is comfortable.

    value = (1 - min(ADE, cap) / cap) * (share of the four comfort bounds kept)          0 to 1

ADE is the mean distance of the six points from the recorded ones. The bounds are those that Alpamayo-R1
(arXiv 2511.00088) states. A text without a readable trajectory earns 0: it is a malformed completion.
The format is in `alphadrive.trajectory`.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

from alphadrive.data.records import WAYPOINT_STEP_S
from alphadrive.errors import RewardError
from alphadrive.trajectory import Waypoints, average_displacement_m, parse_trajectory, waypoints_problem
from alphadrive.types import Completion, DrivingQuery

LONGITUDINAL_MPS2 = (-4.05, 2.40)
LATERAL_MPS2 = 4.89
JERK_MPS3 = 8.37
YAW_RATE_RADPS = 0.95
MIN_SPEED_MPS = 0.5
"""Below this the direction between two points says nothing about the car's course."""


def trajectory_values(query: DrivingQuery, completions: Sequence[Completion], cap_m: float) -> list[float]:
    """The value of every completion, each in [0, 1]. Raises RewardError for a query without six waypoints."""
    problem = waypoints_problem(query.waypoints)
    if query.waypoints is None or problem is not None:
        raise RewardError(str(problem))
    values = []
    for completion in completions:
        stated = parse_trajectory(completion.text)
        if stated is None:
            values.append(0.0)
            continue
        error_m = average_displacement_m(stated, query.waypoints)
        comfort = sum(bounds_kept(stated, query.speed_mps)) / 4
        values.append((1.0 - min(error_m, cap_m) / cap_m) * comfort)
    return values


def bounds_kept(waypoints: Waypoints, speed_mps: float) -> tuple[bool, bool, bool, bool]:
    """Whether longitudinal acceleration, lateral acceleration, jerk and yaw rate stay within their bounds.

    By differences: the speed between two points holds at the middle of their interval, `speed_mps` at
    the start; the course at the start is straight ahead.
    """
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise([(0.0, 0.0), *waypoints])]
    speeds = [speed_mps, *(math.hypot(*step) / WAYPOINT_STEP_S for step in steps)]
    times_s = [0.0, *(WAYPOINT_STEP_S * (i + 0.5) for i in range(len(steps)))]
    accelerations = _rates(speeds, times_s)
    jerks = _rates(accelerations, [(a + b) / 2 for a, b in pairwise(times_s)])
    courses = [0.0]
    for step, speed in zip(steps, speeds[1:], strict=True):
        courses.append(math.atan2(step[1], step[0]) if speed >= MIN_SPEED_MPS else courses[-1])
    turns = [math.remainder(b - a, math.tau) for a, b in pairwise(courses)]
    yaw_rates = [turn / (b - a) for turn, (a, b) in zip(turns, pairwise(times_s), strict=True)]
    laterals = [
        rate * (before + after) / 2 for rate, (before, after) in zip(yaw_rates, pairwise(speeds), strict=True)
    ]
    low, high = LONGITUDINAL_MPS2
    return (
        all(low <= value <= high for value in accelerations),
        all(abs(value) <= LATERAL_MPS2 for value in laterals),
        all(abs(value) <= JERK_MPS3 for value in jerks),
        all(abs(value) <= YAW_RATE_RADPS for value in yaw_rates),
    )


def _rates(values: Sequence[float], times_s: Sequence[float]) -> list[float]:
    return [
        (after - before) / (end - start)
        for (before, after), (start, end) in zip(pairwise(values), pairwise(times_s), strict=True)
    ]
