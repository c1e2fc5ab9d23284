"""The derived command says what comes after the planning horizon, and nothing of what is within it."""

import math

import numpy as np
import pytest

from alphadrive.data.navigation import PathAhead
from alphadrive.data.trajectory import Track
from alphadrive.prompts import NO_NAVIGATION

from .conftest import make_track

LEFT, RIGHT = math.radians(90), math.radians(-90)


@pytest.mark.parametrize(
    ("turn_at_m", "turn_rad", "expected"),
    [
        (50.0, LEFT, "turn left in 100 m"),  # 50 m away, the middle of it a little further
        (40.0, LEFT, "turn left in 50 m"),
        (90.0, RIGHT, "turn right in 100 m"),
        (180.0, RIGHT, "turn right in 200 m"),
        (250.0, LEFT, "go straight"),
        (40.0, 0.1 * LEFT, "go straight"),
        (5.0, LEFT, "go straight"),  # over before the horizon: not for the navigation to tell
    ],
)
def test_a_turn_beyond_the_horizon_is_announced(turn_at_m: float, turn_rad: float, expected: str) -> None:
    assert PathAhead(make_track([10.0] * 400, turn_at_m, turn_rad)).command(0.0) == expected


def test_what_happens_within_the_horizon_changes_nothing() -> None:
    """The same road, 50 m to the junction: keeping, braking and accelerating hear the same command."""
    commands = []
    for last in (0.5, 4.0, 8.0, 12.0):
        speeds = [*np.linspace(8.0, last, 31), *[8.0] * 300]
        commands.append(PathAhead(make_track(speeds, 50.0, LEFT)).command(0.0))
    assert commands == ["turn left in 100 m"] * 4


def test_the_end_and_a_break_of_the_recording_end_what_is_known() -> None:
    assert PathAhead(make_track([10.0] * 70)).command(0.0) == NO_NAVIGATION
    assert PathAhead(make_track([10.0] * 90)).command(0.0) == "go straight"
    track = make_track([10.0] * 400, 60.0, LEFT)
    late = np.where(track.time_s > 4.0, track.time_s + 60.0, track.time_s)
    broken = Track(time_s=late, x_m=track.x_m, y_m=track.y_m, speed_mps=track.speed_mps)
    assert PathAhead(track).command(0.0) == "turn left in 100 m"
    assert PathAhead(broken).command(0.0) == NO_NAVIGATION


def test_a_stop_on_the_way_does_not_hide_the_turn() -> None:
    speeds = [10.0] * 40 + [0.0] * 300 + [10.0] * 100
    noise = np.random.default_rng(0).normal(0, 0.02, (2, len(speeds)))
    track = make_track(speeds, 50.0, RIGHT)
    noisy = Track(
        time_s=track.time_s, x_m=track.x_m + noise[0], y_m=track.y_m + noise[1], speed_mps=track.speed_mps
    )
    assert PathAhead(noisy).command(0.0) == "turn right in 100 m"


def test_a_drive_that_never_moves_has_no_command() -> None:
    assert PathAhead(make_track([0.0] * 100)).command(0.0) == NO_NAVIGATION


@pytest.mark.parametrize(("shift_s", "shift_m"), [(1.6e9, 0.0), (0.0, 1e13), (0.0, 1e300)])
def test_a_clock_or_a_position_that_jumps_far_takes_no_memory(shift_s: float, shift_m: float) -> None:
    track = make_track([10.0] * 400, 60.0, LEFT)
    is_late = track.time_s > 30.0
    jumped = Track(
        time_s=track.time_s + np.where(is_late, shift_s, 0.0),
        x_m=track.x_m + np.where(is_late, shift_m, 0.0),
        y_m=track.y_m,
        speed_mps=track.speed_mps,
    )
    assert PathAhead(jumped).command(0.0) == "turn left in 100 m"
