"""The labelling rules give the plan that a trajectory carries out, and both plans near a threshold."""

import csv
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from alphadrive.actions import Plan
from alphadrive.data.csv_table import csv_source
from alphadrive.data.drive_rows import RowOptions
from alphadrive.data.importing import import_dataset
from alphadrive.data.labels import AlphaDriveRule, SennaRule, describe_rule, make_rule, plans_of
from alphadrive.data.parquet import DrivingDataset
from alphadrive.data.trajectory import Track, Trajectory, disagreement, trajectory_at
from alphadrive.errors import ConfigError

from .conftest import SHARED, make_track

BOREAS = SHARED / "boreas"


def ramp(first_mps: float, last_mps: float) -> list[float]:
    return list(np.linspace(first_mps, last_mps, 31))


def trajectory(track: Track) -> Trajectory:
    found = trajectory_at(track, 0.0)
    assert found is not None
    return found


def lane_change(side_m: float) -> Track:
    """10 m/s along x, moving over by `side_m` on a smooth S within the 3 s."""
    time_s = 0.1 * np.arange(31)
    share = np.clip((time_s - 0.5) / 2.0, 0, 1)
    y = side_m * (share - np.sin(2 * np.pi * share) / (2 * np.pi))
    return Track(time_s=time_s, x_m=10.0 * time_s, y_m=y, speed_mps=np.full(31, 10.0))


@pytest.mark.parametrize(
    ("first_mps", "last_mps", "speed"),
    [
        (5.0, 5.5, "KEEP"),
        (5.0, 7.0, "ACCELERATE"),
        (20.0, 22.0, "KEEP"),  # within a tenth of 20 m/s
        (20.0, 23.5, "ACCELERATE"),
        (16.9, 14.0, "DECELERATE"),
        (5.0, 0.0, "STOP"),
        (0.0, 0.0, "STOP"),
        (0.0, 4.0, "ACCELERATE"),
    ],
)
def test_the_speed_word_compares_the_first_and_the_last_moments(
    first_mps: float, last_mps: float, speed: str
) -> None:
    # The last half second is held, so that its mean is `last_mps`.
    speeds = [*np.linspace(first_mps, last_mps, 25), *[last_mps] * 6]
    assert AlphaDriveRule().plan(trajectory(make_track(speeds))) == Plan(speed, "STRAIGHT")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("track", "path"),
    [
        (make_track([6.0] * 31, 6.0, math.radians(80)), "LEFT_TURN"),
        (make_track([6.0] * 31, 6.0, math.radians(-80)), "RIGHT_TURN"),
        (make_track([6.0] * 31, 6.0, math.radians(15)), "STRAIGHT"),
        (lane_change(3.5), "LEFT_CHANGE"),
        (lane_change(-3.5), "RIGHT_CHANGE"),
        (lane_change(0.8), "STRAIGHT"),
    ],
    ids=["left", "right", "bend", "to the left", "to the right", "within the lane"],
)
def test_the_path_word_follows_course_and_offset(track: Track, path: str) -> None:
    assert AlphaDriveRule().plan(trajectory(track)).path == path


def test_a_wide_bend_is_no_turn() -> None:
    """30° on a radius of 100 m: the road, not a junction."""
    angle = 0.2 * 0.1 * np.arange(31)  # 20 m/s
    track = Track(
        time_s=0.1 * np.arange(31),
        x_m=100 * np.sin(angle),
        y_m=100 * (1 - np.cos(angle)),
        speed_mps=np.full(31, 20.0),
    )
    assert math.degrees(angle[-1]) > 30
    assert AlphaDriveRule().plan(trajectory(track)).path == "STRAIGHT"
    assert AlphaDriveRule(turn_curvature_1pm=0.005).plan(trajectory(track)).path == "LEFT_TURN"


def test_noise_of_a_standing_vehicle_is_no_turn() -> None:
    noise = np.random.default_rng(0).normal(0, 0.05, (2, 31))
    track = Track(time_s=0.1 * np.arange(31), x_m=noise[0], y_m=noise[1], speed_mps=np.full(31, 0.02))
    assert AlphaDriveRule().plan(trajectory(track)) == Plan("STOP", "STRAIGHT")


def test_senna_needs_three_metres_per_second_and_four_metres() -> None:
    rule = SennaRule()
    assert rule.plan(trajectory(make_track(ramp(16.9, 14.0)))) == Plan("KEEP", "STRAIGHT")
    assert rule.plan(trajectory(make_track(ramp(16.0, 10.0)))).speed == "DECELERATE"
    assert rule.plan(trajectory(make_track([1.5] * 31))).speed == "STOP"
    assert rule.plan(trajectory(make_track([6.0] * 31, 6.0, math.radians(80)))).path == "LEFT_TURN"
    assert rule.plan(trajectory(lane_change(-3.5))).path == "STRAIGHT"
    far = Track(
        time_s=0.1 * np.arange(31),
        x_m=3.0 * np.arange(31),
        y_m=np.linspace(0, -5, 31),
        yaw_rad=np.zeros(31),
        speed_mps=np.full(31, 30.0),
    )
    assert rule.plan(trajectory(far)).path == "RIGHT_CHANGE"  # 5 m aside at 3.2°


def test_near_a_threshold_both_labels_or_none_are_given() -> None:
    near = trajectory(make_track([5.0] * 3 + [5.9] * 28))  # 0.9 of the 1.0 m/s that make an ACCELERATE
    rule = AlphaDriveRule()
    assert plans_of(rule, near, "ignore") == (Plan("KEEP", "STRAIGHT"),)
    assert plans_of(rule, near, "both") == (Plan("KEEP", "STRAIGHT"), Plan("ACCELERATE", "STRAIGHT"))
    assert plans_of(rule, near, "drop") == ()
    over = trajectory(make_track([5.0] * 3 + [6.1] * 28))
    assert plans_of(rule, over, "both")[0] == Plan("ACCELERATE", "STRAIGHT")
    clear = trajectory(make_track([5.0] * 3 + [6.3] * 28))
    assert plans_of(rule, clear, "both") == plans_of(rule, clear, "drop") == (Plan("ACCELERATE", "STRAIGHT"),)


def test_a_rule_is_named_with_its_version_and_every_parameter() -> None:
    rule = make_rule("senna", ["stop_mps=1.5"])
    assert rule == SennaRule(stop_mps=1.5)
    assert describe_rule(rule, "drop") == (
        "senna/1(stop_mps=1.5,speed_change_mps=3,side_m=4,turn_deg=5,near_threshold=drop)"
    )


@pytest.mark.parametrize(
    ("name", "parameters", "expected"),
    [
        ("sena", [], "expected one of alphadrive, senna"),
        ("senna", ["turn_degg=3"], "did you mean turn_deg"),
        ("alphadrive", ["nonsense"], "expected one of v0_window_s"),
        ("alphadrive", ["turn_deg=wide"], "got 'wide', expected a number above 0"),
        ("alphadrive", ["turn_deg=nan"], "got 'nan'"),
        ("alphadrive", ["turn_deg=-1"], "got '-1'"),
    ],
)
def test_a_wrong_rule_or_parameter_is_refused(name: str, parameters: list[str], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        make_rule(name, parameters)


def test_positions_and_speeds_that_contradict_each_other_are_told() -> None:
    track = make_track([10.0] * 31)
    assert disagreement(trajectory(track)) is None
    in_feet = Track(time_s=track.time_s, x_m=track.x_m * 3.28, y_m=track.y_m, speed_mps=track.speed_mps)
    assert "98.4 m apart along the path, the speeds say 30.0 m" in str(disagreement(trajectory(in_feet)))


def test_a_gap_or_the_end_of_the_recording_gives_no_trajectory() -> None:
    track = make_track([10.0] * 61)
    keep = np.ones(61, bool)
    keep[40:43] = False
    columns = (track.time_s, track.x_m, track.y_m, track.speed_mps)
    time_s, x, y, speed = (values[keep] for values in columns)
    gap = Track(time_s=time_s, x_m=x, y_m=y, speed_mps=speed)
    assert trajectory_at(gap, 0.5) is not None  # ends before the gap
    assert trajectory_at(gap, 1.5) is None
    assert trajectory_at(track, 1.5) is not None
    assert trajectory_at(track, 3.0) is not None and trajectory_at(track, 3.1) is None


def test_waypoints_are_in_the_ego_frame() -> None:
    """A drive to the north, 2 m/s, then 1 m to the west at the end."""
    time_s = 0.1 * np.arange(31)
    track = Track(
        time_s=time_s,
        x_m=500.0 - np.where(time_s > 2.95, 1.0, 0.0),
        y_m=2.0 * time_s,
        speed_mps=np.full(31, 2.0),
    )
    expected = [(1.0, 0.0), (2.0, 0.0), (3.0, 0.0), (4.0, 0.0), (5.0, 0.0), (6.0, 1.0)]
    assert np.allclose(trajectory(track).waypoints(), expected, atol=1e-6)


def boreas_tables(folder: Path) -> Path:
    """The two drives as CSV tables: positions and speeds, no heading."""
    for poses in sorted(BOREAS.glob("*/applanix/camera_poses.csv")):
        with poses.open() as source, (folder / f"{poses.parents[1].name}.csv").open("w") as table:
            table.write("time_s,x_m,y_m,speed_mps\n")
            for row in csv.DictReader(source):
                speed = math.hypot(float(row["vel_east"]), float(row["vel_north"]))
                time_s = int(row["GPSTime"]) / 1e6
                table.write(f"{time_s:.6f},{row['easting']},{row['northing']},{speed}\n")
    return folder


def test_the_two_boreas_drives_get_the_known_counts(tmp_path: Path) -> None:
    if not BOREAS.is_dir():
        pytest.skip(f"the Boreas drives are not at {BOREAS}")
    (tmp_path / "drives").mkdir()
    source = csv_source(
        boreas_tables(tmp_path / "drives"),
        "train",
        RowOptions(rule=AlphaDriveRule(), near="ignore"),
        labels_only=True,
    )
    result = import_dataset(source, tmp_path / "out")
    counts: Counter[str] = Counter()
    for record in DrivingDataset(tmp_path / "out").records():
        counts.update(record.plans[0].split(", "))
    counts["windows"] = result.num_rows
    counts["changes"] = counts.pop("LEFT_CHANGE") + counts.pop("RIGHT_CHANGE")
    known = {
        "windows": 4258,
        "KEEP": 1648,
        "ACCELERATE": 1023,
        "DECELERATE": 829,
        "STOP": 758,
        "STRAIGHT": 3810,
        "LEFT_TURN": 193,
        "RIGHT_TURN": 234,
        "changes": 21,
    }
    assert counts == {name: pytest.approx(count, rel=0.02) for name, count in known.items()}
