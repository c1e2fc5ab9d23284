"""Where a vehicle went: a whole drive as a track, and the three seconds after a moment cut out of it.

Importers fill a `Track`; `trajectory_at` resamples it, so that labelling rules see the same points
whatever the source's rate. Rules live in `alphadrive.data.labels`.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from alphadrive.data.records import NUM_WAYPOINTS, WAYPOINT_STEP_S

FloatArray = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]

HORIZON_S = NUM_WAYPOINTS * WAYPOINT_STEP_S
STEP_S = 0.1
MAX_GAP_S = 0.25
"""Longest time between two samples across which a path is still interpolated."""
MOVING_MPS = 0.5
"""Below this speed the direction between two positions is noise."""
_COURSE_BASE_S = 0.25
_SPEED_BASE_S = 0.5
_TIME_TOLERANCE_S = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Track:
    """One drive: arrays of one length, times strictly increasing.

    `x_m`, `y_m` are in any right-handed plane (x east, y north, say), `yaw_rad` counter-clockwise from
    x. Without `yaw_rad` the vehicle points where it goes.
    """

    time_s: FloatArray
    x_m: FloatArray
    y_m: FloatArray
    speed_mps: FloatArray
    yaw_rad: FloatArray | None = None

    def positions(self, time_s: FloatArray) -> FloatArray:
        """Positions at the given times, [T, 2], interpolated; held beyond the ends."""
        x, y = (np.interp(time_s, self.time_s, values) for values in (self.x_m, self.y_m))
        return np.stack([x, y], axis=-1)

    def speeds(self, time_s: FloatArray) -> FloatArray:
        """Speeds at the given times, m/s, interpolated; held beyond the ends."""
        return np.interp(time_s, self.time_s, self.speed_mps)

    def courses(self, time_s: FloatArray) -> FloatArray:
        """Directions of travel at the given times, rad, from the velocity: the positions 0.125 s before
        and after. Noise where the vehicle stands."""
        half = _COURSE_BASE_S / 2
        velocity = self.positions(time_s + half) - self.positions(time_s - half)
        return np.arctan2(velocity[:, 1], velocity[:, 0])

    def yaw_at(self, time_s: float) -> float:
        """Where the vehicle points, rad: `yaw_rad` where there is one, else its course as soon as it
        moves, else its course when it last moved."""
        if self.yaw_rad is not None:
            return float(np.interp(time_s, self.time_s, np.unwrap(self.yaw_rad)))
        ahead = time_s + STEP_S * np.arange(round(HORIZON_S / STEP_S) + 1)
        moving = ahead[self.speeds(ahead) > MOVING_MPS]
        if not len(moving):
            moving = self.time_s[(self.time_s <= time_s) & (self.speed_mps > MOVING_MPS)][-1:]
        return float(self.courses(moving[:1])[0]) if len(moving) else 0.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trajectory:
    """The 3 s after a moment in steps of 0.1 s (31 points, the first at 0 s) in the ego frame of that
    moment: x forward, y left. `course_rad` is the direction of travel, noise below 0.5 m/s."""

    time_s: FloatArray
    x_m: FloatArray
    y_m: FloatArray
    speed_mps: FloatArray
    course_rad: FloatArray

    def waypoints(self) -> tuple[tuple[float, float], ...]:
        """The (x, y) at 0.5 s, 1.0 s, … 3.0 s, in metres."""
        every = round(WAYPOINT_STEP_S / STEP_S)
        pairs = zip(self.x_m[every::every], self.y_m[every::every], strict=True)
        return tuple((float(x), float(y)) for x, y in pairs)


def trajectory_at(track: Track, time_s: float) -> Trajectory | None:
    """The 3 s of a track after `time_s`; None where the track does not reach that far or has a gap of
    more than 0.25 s within it."""
    end = time_s + HORIZON_S
    if time_s < track.time_s[0] - _TIME_TOLERANCE_S or end > track.time_s[-1] + _TIME_TOLERANCE_S:
        return None
    first = max(int(np.searchsorted(track.time_s, time_s + _TIME_TOLERANCE_S)) - 1, 0)
    last = int(np.searchsorted(track.time_s, end - _TIME_TOLERANCE_S))
    if np.diff(track.time_s[first : last + 1]).max(initial=0.0) > MAX_GAP_S + _TIME_TOLERANCE_S:
        return None
    offsets = STEP_S * np.arange(round(HORIZON_S / STEP_S) + 1)
    times = time_s + offsets
    yaw = track.yaw_at(time_s)
    moved = track.positions(times) - track.positions(times[:1])
    return Trajectory(
        time_s=offsets,
        x_m=np.cos(yaw) * moved[:, 0] + np.sin(yaw) * moved[:, 1],
        y_m=np.cos(yaw) * moved[:, 1] - np.sin(yaw) * moved[:, 0],
        speed_mps=track.speeds(times),
        course_rad=track.courses(times) - yaw,
    )


def disagreement(trajectory: Trajectory) -> str | None:
    """Says so where positions and speeds cannot both be right (wrong units, a jump), or None.

    They disagree when the way along the path and the speed over time differ by more than half of the
    larger one and 5 m.
    """
    way_m = float(np.hypot(np.diff(trajectory.x_m), np.diff(trajectory.y_m)).sum())
    driven_m = float(np.trapezoid(trajectory.speed_mps, trajectory.time_s))
    if math.isfinite(way_m) and abs(way_m - driven_m) <= 5.0 + 0.5 * max(way_m, driven_m):
        return None
    return (
        f"the positions of the next 3 s are {way_m:.1f} m apart along the path, the speeds say "
        f"{driven_m:.1f} m; expected them to agree: check the units and look for jumps"
    )


def speeds_from_positions(time_s: FloatArray, x_m: FloatArray, y_m: FloatArray) -> FloatArray:
    """Speeds in m/s for a source that has only poses: the way from 0.25 s before to 0.25 s after."""
    before = np.maximum(time_s - _SPEED_BASE_S / 2, time_s[0])
    after = np.minimum(time_s + _SPEED_BASE_S / 2, time_s[-1])
    dx, dy = (np.interp(after, time_s, v) - np.interp(before, time_s, v) for v in (x_m, y_m))
    speeds: FloatArray = np.hypot(dx, dy) / np.maximum(after - before, 1e-6)
    return speeds
