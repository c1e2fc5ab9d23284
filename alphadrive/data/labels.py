"""Labelling rules: the meta-actions of a recorded trajectory, as named, versioned, parametrised rules.

A rule is a frozen dataclass whose fields are its parameters; a change of what it computes is a new
version. `plans_of` applies one, `describe_rule` writes what stands in the column `label_rule`.
Importers call both through `alphadrive.data.drive_rows`.
"""

import dataclasses
import difflib
import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from alphadrive.actions import Path, Plan, Speed
from alphadrive.data.records import WAYPOINT_STEP_S
from alphadrive.data.trajectory import FloatArray, Trajectory
from alphadrive.errors import ConfigError

NearThreshold = Literal["both", "drop", "ignore"]
"""What becomes of a row that another label would fit if a threshold were moved by 20 %."""
NEAR_SHARE = 0.2
_EPS = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class AlphaDriveRule:
    """Our default.

    v0 is the mean speed of the first 0.3 s, vH of the last 0.5 s. STOP where vH < `stop_mps`; else
    ACCELERATE or DECELERATE where vH - v0 is beyond max(`tau_mps`, `tau_share` v0); else KEEP.

    The turn is the change of course over the points faster than `moving_mps`. LEFT_TURN or RIGHT_TURN
    where it reaches `turn_deg` with a curvature of `turn_curvature_1pm` over some `chunk_m`. A lane
    change only where it is below `change_max_deg` over more than `change_min_travel_m`, and the end
    lies `change_offset_m` beside the arc of the mean curvature (experimental: there is no map). Else
    STRAIGHT.
    """

    version: ClassVar[str] = "alphadrive/1"
    thresholds: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("stop_mps",),
        ("tau_mps", "tau_share"),
        ("turn_deg",),
        ("turn_curvature_1pm",),
        ("change_max_deg",),
        ("change_min_travel_m",),
        ("change_offset_m",),
    )

    v0_window_s: float = 0.3
    vh_window_s: float = 0.5
    stop_mps: float = 0.5
    tau_mps: float = 1.0
    tau_share: float = 0.1
    moving_mps: float = 0.5
    turn_deg: float = 20.0
    turn_curvature_1pm: float = 0.02
    chunk_m: float = 2.0
    change_max_deg: float = 8.0
    change_min_travel_m: float = 10.0
    change_offset_m: float = 1.5

    def plan(self, trajectory: Trajectory) -> Plan:
        """The plan of a trajectory."""
        return Plan(self._speed(trajectory), self._path(trajectory))

    def _speed(self, trajectory: Trajectory) -> Speed:
        time_s, speed = trajectory.time_s, trajectory.speed_mps
        v0 = float(speed[time_s < max(self.v0_window_s, time_s[1]) - _EPS].mean())
        vh = float(speed[time_s > min(time_s[-1] - self.vh_window_s, time_s[-2]) + _EPS].mean())
        if vh < self.stop_mps:
            return "STOP"
        tau = max(self.tau_mps, self.tau_share * v0)
        if abs(vh - v0) <= tau:
            return "KEEP"
        return "ACCELERATE" if vh > v0 else "DECELERATE"

    def _path(self, trajectory: Trajectory) -> Path:
        moving = trajectory.speed_mps > self.moving_mps
        if np.count_nonzero(moving) < 2:
            return "STRAIGHT"
        course = np.unwrap(trajectory.course_rad[moving])
        x, y = trajectory.x_m[moving], trajectory.y_m[moving]
        way = np.concatenate([[0.0], np.cumsum(np.hypot(np.diff(x), np.diff(y)))])
        turn = float(course[-1] - course[0])
        if abs(turn) >= math.radians(self.turn_deg):
            if _max_curvature(course, way, self.chunk_m) >= self.turn_curvature_1pm:
                return "LEFT_TURN" if turn > 0 else "RIGHT_TURN"
        elif abs(turn) < math.radians(self.change_max_deg) and way[-1] > self.change_min_travel_m:
            dx, dy = float(x[-1] - x[0]), float(y[-1] - y[0])
            aside = math.cos(course[0]) * dy - math.sin(course[0]) * dx
            offset = aside - turn * float(way[-1]) / 2  # κ̄L²/2 with κ̄ = turn / L
            if abs(offset) >= self.change_offset_m:
                return "LEFT_CHANGE" if offset > 0 else "RIGHT_CHANGE"
        return "STRAIGHT"


def _max_curvature(course: FloatArray, way: FloatArray, chunk_m: float) -> float:
    """Largest |change of course| / m over `chunk_m` of the way, from any point; 0 for a shorter way."""
    starts = way + chunk_m <= way[-1]
    changes = np.interp(way[starts] + chunk_m, way, course) - course[starts]
    return float(np.abs(changes).max(initial=0.0)) / chunk_m


@dataclass(frozen=True, slots=True, kw_only=True)
class SennaRule:
    """The rule of Senna (arXiv 2410.22313), as its released code has it.

    Six points at 0.5 s to 3.0 s, speeds between neighbours. STOP where all are below `stop_mps`;
    ACCELERATE or DECELERATE where the last differs from the first by `speed_change_mps`; else KEEP. An end
    point more than `side_m` to the side is a turn where its bearing reaches `turn_deg`, else a lane
    change.
    """

    version: ClassVar[str] = "senna/1"
    thresholds: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("stop_mps",),
        ("speed_change_mps",),
        ("side_m",),
        ("turn_deg",),
    )

    stop_mps: float = 2.0
    speed_change_mps: float = 3.0
    side_m: float = 4.0
    turn_deg: float = 5.0

    def plan(self, trajectory: Trajectory) -> Plan:
        """The plan of a trajectory."""
        points = np.array(trajectory.waypoints())
        speeds = np.hypot(*np.diff(points, axis=0).T) / WAYPOINT_STEP_S
        change = float(speeds[-1] - speeds[0])
        speed: Speed = "KEEP"
        if speeds.max() < self.stop_mps:
            speed = "STOP"
        elif abs(change) >= self.speed_change_mps:
            speed = "ACCELERATE" if change > 0 else "DECELERATE"
        return Plan(speed, self._path(float(points[-1, 0]), float(points[-1, 1])))

    def _path(self, x_m: float, y_m: float) -> Path:
        if abs(y_m) <= self.side_m:
            return "STRAIGHT"
        if abs(math.degrees(math.atan2(y_m, x_m))) >= self.turn_deg:
            return "LEFT_TURN" if y_m > 0 else "RIGHT_TURN"
        return "LEFT_CHANGE" if y_m > 0 else "RIGHT_CHANGE"


LabelRule = AlphaDriveRule | SennaRule
"""`thresholds` are the parameters that decide between labels; those of one group are moved together."""
RULES: dict[str, type[LabelRule]] = {
    "alphadrive": AlphaDriveRule,
    "senna": SennaRule,
}


def plans_of(rule: LabelRule, trajectory: Trajectory, near: NearThreshold) -> tuple[Plan, ...]:
    """The acceptable plans of a trajectory, the rule's own first.

    A label is near a threshold when moving that threshold by 20 % either way changes it. `both` then
    gives every label so found, speed and path independently; `drop` gives none at all; `ignore` the
    rule's own alone.
    """
    own = rule.plan(trajectory)
    if near == "ignore":
        return (own,)
    found = [own, *(moved.plan(trajectory) for moved in _moved(rule))]
    speeds, paths = dict.fromkeys(p.speed for p in found), dict.fromkeys(p.path for p in found)
    plans = tuple(Plan(speed, path) for speed, path in itertools.product(speeds, paths))
    return () if near == "drop" and len(plans) > 1 else plans


@functools.cache
def _moved(rule: LabelRule) -> tuple[LabelRule, ...]:
    """The rule with one group of thresholds at 80 % or at 120 %, every group in turn."""
    moved: list[LabelRule] = []
    for group, factor in itertools.product(rule.thresholds, (1 - NEAR_SHARE, 1 + NEAR_SHARE)):
        changes = {name: getattr(rule, name) * factor for name in group}
        moved.append(dataclasses.replace(rule, **changes))
    return tuple(moved)


def describe_rule(rule: LabelRule, near: NearThreshold) -> str:
    """What made a label: `alphadrive/1(v0_window_s=0.3,...,near_threshold=both)`."""
    parameters = dataclasses.asdict(rule)
    values = [f"{name}={value:g}" for name, value in parameters.items()]
    return f"{rule.version}({','.join([*values, f'near_threshold={near}'])})"


def make_rule(name: str, parameters: Sequence[str] = ()) -> LabelRule:
    """A rule by name with `key=value` parameters.

    Raises ConfigError for an unknown name or key, and for a value that is no finite number above 0.
    """
    if name not in RULES:
        raise ConfigError(f"--label-rule {name}: no such rule; expected one of {', '.join(RULES)}")
    known = [field.name for field in dataclasses.fields(RULES[name])]
    values: dict[str, float] = {}
    for text in parameters:
        key, _, value = text.partition("=")
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(known)}"
            raise ConfigError(f"--rule-param {text}: the rule {name} has no parameter {key!r}; {hint}")
        try:
            values[key] = float(value)
        except ValueError:
            values[key] = math.nan
        if not (math.isfinite(values[key]) and values[key] > 0):
            raise ConfigError(f"--rule-param {text}: got {value!r}, expected a number above 0")
    return RULES[name](**values)
