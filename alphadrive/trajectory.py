"""The trajectory a planner may state beside its plan: how it is written, read and checked.

    <think> … </think> <trajectory> (4.02, 0.00) … (23.60, 0.31) </trajectory> <answer> … </answer>

Six points (x, y) in metres, 0.5 s apart up to 3 s, in the frame of the car at the start: x forward, y
left. Prompts ask for it, SFT teaches it and rewards read it only where `data.trajectory` is set.
"""

import math
import re
from collections.abc import Sequence

from alphadrive.data.records import NUM_WAYPOINTS

Waypoints = tuple[tuple[float, float], ...]

_NUMBER = r"(-?[0-9]{1,3}(?:\.[0-9]{1,3})?)"
_POINT = re.compile(rf"\({_NUMBER}, ?{_NUMBER}\)")
_POINTS = re.compile(rf"\s*(?:\({_NUMBER}, ?{_NUMBER}\)\s*){{{NUM_WAYPOINTS}}}")
_BLOCK = re.compile(r"</?trajectory>")


def trajectory_text(waypoints: Sequence[Sequence[float]]) -> str:
    """Waypoints as a planner writes them, to the centimetre; values after x and y are left out.

    >>> trajectory_text([(4.0, 0.0), (8.0, -0.016)])
    '(4.00, 0.00) (8.00, -0.02)'
    """
    return " ".join(f"({_hundredths(point[0])}, {_hundredths(point[1])})" for point in waypoints)


def _hundredths(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"


def read_waypoints(text: str) -> Waypoints | None:
    """Read exactly six `(x, y)`, each of at most three digits before and after the point, else None.

    Total and linear in the length of the text.
    """
    if _POINTS.fullmatch(text) is None:
        return None
    return tuple((float(x), float(y)) for x, y in _POINT.findall(text))


def parse_trajectory(text: str) -> Waypoints | None:
    """The trajectory in a completion: its only `<trajectory> … </trajectory>`, or None."""
    tags = list(_BLOCK.finditer(text))
    if [tag.group() for tag in tags] != ["<trajectory>", "</trajectory>"]:
        return None
    return read_waypoints(text[tags[0].end() : tags[1].start()])


def average_displacement_m(stated: Waypoints, driven: Sequence[Sequence[float]]) -> float:
    """Mean distance between points of the same time (ADE), m."""
    distances = [math.dist(ours, theirs[:2]) for ours, theirs in zip(stated, driven, strict=True)]
    return math.fsum(distances) / len(distances)


def waypoints_problem(waypoints: Sequence[Sequence[float]] | None) -> str | None:
    """What keeps a row's waypoints from being a target, as `waypoints: got, expected`, or None."""
    num = len(waypoints or ())
    if num == NUM_WAYPOINTS:
        return None
    return (
        f"waypoints: got {num or 'none'}, expected {NUM_WAYPOINTS} (0.5 s apart up to 3 s) in every row, "
        "because data.trajectory is set: import the data with its trajectories, or leave data.trajectory out"
    )
