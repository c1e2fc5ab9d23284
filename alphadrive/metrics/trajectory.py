"""How near the trajectories that answers state are to the driven ones."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from alphadrive.trajectory import average_displacement_m, parse_trajectory
from alphadrive.types import DrivingQuery


@dataclass(frozen=True, slots=True, kw_only=True)
class TrajectoryMetrics:
    """`num_rows` rows have waypoints; a readable trajectory is stated in `stated_share` of them, and `ade_m`
    is its mean distance from the driven one there (six points up to 3 s), None where none is readable. Read
    the two together: who states only easy trajectories has a small ADE."""

    num_rows: int
    stated_share: float
    ade_m: float | None


def trajectory_metrics(answers: Iterable[tuple[DrivingQuery, str]]) -> TrajectoryMetrics | None:
    """Of (query, answer text) pairs. None where no answer speaks of a trajectory or no row has one."""
    texts = [(query.waypoints, text) for query, text in answers if query.waypoints is not None]
    if not any("<trajectory>" in text for _, text in texts):
        return None
    stated = [(driven, parse_trajectory(text)) for driven, text in texts]
    errors_m = [average_displacement_m(points, driven) for driven, points in stated if points is not None]
    return TrajectoryMetrics(
        num_rows=len(texts),
        stated_share=len(errors_m) / len(texts),
        ade_m=math.fsum(errors_m) / len(errors_m) if errors_m else None,
    )
