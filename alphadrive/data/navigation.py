"""Navigation for sources that have none: a command read off the path beyond the planning horizon.

What happens within the horizon is the answer and never looked at, except for how far away its end is;
distances are therefore rounded up to 50 m, more than a car covers in 3 s in town, so that they do not
give its speed away. Called by `alphadrive.data.drive_rows`.
"""

import math

import numpy as np

from alphadrive.data.checks import MAX_SPEED_MPS
from alphadrive.data.trajectory import HORIZON_S, MOVING_MPS, STEP_S, BoolArray, FloatArray, Track
from alphadrive.prompts import NO_NAVIGATION

NAVIGATION_RULE = "path-ahead/1"
LOOK_M = 200.0
TURN_DEG = 45.0
TURN_OVER_M = 30
ROUND_TO_M = 50
MIN_KNOWN_M = 50.0
_MAX_BREAK_S = 1.0
_MAX_STEP_M = 2 * MAX_SPEED_MPS * STEP_S
"""A longer step is a jump, which rows near it are rejected for; it must not lengthen the path by metres that
would all have to be held."""


class PathAhead:
    """The path of one drive by distance, in steps of 1 m; answers for any moment of the drive.

    The rule `path-ahead/1`: beyond the point where the vehicle is in 3 s and up to 200 m from where it
    is now, the first 45° of turning within 30 m are a turn. It is announced with the distance at which
    half of that is turned, rounded up to 50 m: "turn left in 100 m". Without one, "go straight" where
    at least 50 m beyond the horizon are known, else "no navigation". A break in the recording of more than
    1 s ends what is known.
    """

    def __init__(self, track: Track) -> None:
        self._track = track
        is_break = np.diff(track.time_s) > _MAX_BREAK_S
        self._time = _grid(track.time_s, is_break)
        steps = np.hypot(*np.diff(track.positions(self._time), axis=0).T).clip(max=_MAX_STEP_M)
        moving = track.speeds(self._time) > MOVING_MPS
        self._way = np.concatenate([[0.0], np.cumsum(np.where(moving[1:], steps, 0.0))])
        self._course_by_m = np.zeros(0)
        if moving.any():
            course = np.unwrap(track.courses(self._time[moving]))
            metres = np.arange(0.0, self._way[-1] + 1.0)
            self._course_by_m = np.interp(metres, self._way[moving], course)
        self._breaks = track.time_s[:-1][is_break]

    def command(self, time_s: float) -> str:
        """The navigation command at a moment of the drive."""
        later = self._breaks[self._breaks >= time_s]
        known_until = float(later[0]) if len(later) else float(self._time[-1])
        here, horizon, known = np.interp(
            [time_s, min(time_s + HORIZON_S, known_until), known_until], self._time, self._way
        )
        end = min(here + LOOK_M, known)
        course = self._course_by_m[math.ceil(horizon) : math.floor(end) + 1]
        if (turn := _first_turn(np.degrees(course))) is not None:
            ahead_m, side = turn
            distance_m = math.ceil((horizon + ahead_m - here) / ROUND_TO_M) * ROUND_TO_M
            return f"turn {side} in {max(distance_m, ROUND_TO_M)} m"
        return "go straight" if end - horizon >= MIN_KNOWN_M else NO_NAVIGATION


def _grid(time_s: FloatArray, is_break: BoolArray) -> FloatArray:
    """Steps of 0.1 s from the first time, those within long breaks left out: however long the breaks, as
    many as the recording has."""
    places = (time_s - time_s[0]) / STEP_S
    breaks = np.flatnonzero(is_break)
    starts = np.floor(places[np.concatenate([[0], breaks + 1])])
    stops = np.concatenate([np.ceil(places[breaks]) + 1, np.ceil(places[-1:] + 0.5)])
    numbers = [np.arange(start, stop) for start, stop in zip(starts, stops, strict=True)]
    grid: FloatArray = time_s[0] + STEP_S * np.unique(np.concatenate(numbers))
    return grid


def _first_turn(course_deg: FloatArray) -> tuple[int, str] | None:
    """Distance in m to the middle of the first turn along a path given every metre, and its side."""
    if len(course_deg) < 2:
        return None
    ends = np.minimum(np.arange(len(course_deg)) + TURN_OVER_M, len(course_deg) - 1)
    turned = np.flatnonzero(np.abs(course_deg[ends] - course_deg) >= TURN_DEG)
    if not len(turned):
        return None
    start = int(turned[0])
    change = course_deg[start : ends[start] + 1] - course_deg[start]
    middle = int(np.flatnonzero(np.abs(change) >= TURN_DEG / 2)[0])
    return start + middle, "left" if change[-1] > 0 else "right"
