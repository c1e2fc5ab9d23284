"""Anybody's logs: the documented CSV table becomes rows with labels, navigation and waypoints."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from alphadrive.cli import run
from alphadrive.data.parquet import DrivingDataset
from alphadrive.data.validate import problems_in

from .conftest import make_track

WriteDrive = Callable[..., Path]


def imported(path: Path, out: Path, *options: str) -> DrivingDataset:
    assert run(["data", "import", "csv", str(path), "--out", str(out), *options]) == 0
    return DrivingDataset(out)


def test_a_drive_becomes_rows(
    tmp_path: Path, write_drive: WriteDrive, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_drive(tmp_path / "log" / "a.csv", make_track([8.0] * 101))
    dataset = imported(table, tmp_path / "out")
    assert len(dataset) == 15  # 10 s, a picture every 0.5 s, the last 3 s have no whole path
    assert "left out: 6 without a whole path for the next 3 s" in capsys.readouterr().out
    record = dataset.record(1)
    assert (record.query_id, record.scene_id, record.time_s) == ("csv/a/0.500", "csv/a", 0.5)
    assert (record.plans, record.navigation) == (("KEEP, STRAIGHT",), "go straight")
    assert np.allclose(record.waypoints or (), [(4.0 * step, 0.0) for step in range(1, 7)], atol=1e-3)
    assert record.label_rule.startswith("alphadrive/1(v0_window_s=0.3,")
    assert record.label_rule.endswith(",near_threshold=both) path-ahead/1")
    assert record.images[0].data == (tmp_path / "log" / "front.jpg").read_bytes()
    assert dataset.record(14).navigation == "no navigation"
    assert problems_in(tmp_path / "out") == []


def test_own_navigation_and_yaw_are_used(tmp_path: Path, write_drive: WriteDrive) -> None:
    table = write_drive(tmp_path / "a.csv", make_track([8.0] * 61))
    lines = table.read_text().splitlines()
    rows = [
        f"{line},{1.5708 if index else 'yaw_rad'},{'' if index else 'navigation'}"
        for index, line in enumerate(lines)
    ]
    rows[1] += "second exit"
    table.write_text("\n".join(rows))
    dataset = imported(table, tmp_path / "out")
    assert dataset.record(0).navigation == "second exit"
    assert dataset.record(0).label_rule.endswith("near_threshold=both)")
    assert dataset.record(1).navigation != "second exit"
    # The vehicle faces along y and goes along x: to its right.
    assert np.allclose((dataset.record(0).waypoints or ())[0], (0.0, -4.0), atol=1e-3)


def test_options_reach_the_rows(tmp_path: Path, write_drive: WriteDrive) -> None:
    speeds = [5.0] * 3 + [5.9] * 120
    write_drive(tmp_path / "in" / "a.csv", make_track(speeds))
    write_drive(tmp_path / "in" / "sub" / "b.csv", make_track([5.0] * 123))
    both = imported(tmp_path / "in", tmp_path / "both", "--every", "1", "--split", "eval")
    plans = {record.query_id: record.plans for record in both.records()}
    assert plans["csv/a/0.000"] == ("KEEP, STRAIGHT", "ACCELERATE, STRAIGHT")
    assert plans["csv/sub/b/1.000"] == ("KEEP, STRAIGHT",)
    assert both.record(0).split == "eval"
    dropped = imported(tmp_path / "in", tmp_path / "drop", "--every", "1", "--near-threshold", "drop")
    assert len(dropped) == len(both) - 1
    own = imported(
        tmp_path / "in",
        tmp_path / "own",
        "--no-navigation",
        "--label-rule",
        "senna",
        "--rule-param",
        "stop_mps=7",
    )
    assert {record.navigation for record in own.records()} == {"no navigation"}
    assert {record.plans[0] for record in own.records()} == {"STOP, STRAIGHT"}
    assert own.record(0).label_rule.startswith("senna/1(stop_mps=7,")


def test_a_table_without_images_needs_to_be_asked_for(
    tmp_path: Path, write_drive: WriteDrive, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_drive(tmp_path / "a.csv", make_track([8.0] * 61), image_every=0)
    arguments = ["data", "import", "csv", str(table), "--out", str(tmp_path / "out")]
    assert run(arguments) == 2
    assert "image: got none in any row" in capsys.readouterr().err
    dataset = imported(table, tmp_path / "out", "--labels-only")
    assert len(dataset) == 7 and dataset.record(0).images == ()
    assert run(["data", "validate", str(tmp_path / "out")]) == 2
    assert "row 6: images: got no image at all" in capsys.readouterr().err


GOOD = "time_s,x_m,y_m,speed_mps\n" + "".join(f"{n / 10},{n},0,10\n" for n in range(60))


@pytest.mark.parametrize(
    ("text", "field", "reason"),
    [
        ("", "time_s", "no such column; got an empty file"),
        ("time_s,x_m,y_m\n0,0,0\n", "speed_mps", "no such column; got time_s, x_m, y_m"),
        (GOOD.replace("speed_mps", "speed_mps,yaw"), "yaw", "unknown or repeated column"),
        (GOOD.replace("speed_mps", "speed_mps,x_m"), "x_m", "unknown or repeated column"),
        ("time_s,x_m,y_m,speed_mps\n0,0,0,1\n", "time_s", "got 1 good rows, expected a drive"),
        ('time_s,x_m,y_m,speed_mps\n"0,0,0,1\n', None, "cannot be read as a CSV table"),
        ("time_s,x_m,y_m,speed_mps\n0,0,0,\xff1\n", None, "cannot be read as a CSV table in UTF-8"),
    ],
    ids=["empty", "no speed", "typing error", "twice", "one row", "quote", "no UTF-8"],
)
def test_a_file_that_is_no_such_table_is_refused(
    tmp_path: Path, text: str, field: str | None, reason: str
) -> None:
    (tmp_path / "a.csv").write_bytes(text.encode("latin-1"))
    out = tmp_path / "out"
    assert run(["data", "import", "csv", str(tmp_path / "a.csv"), "--out", str(out), "--labels-only"]) == 2
    (line,) = (out / "rejected.jsonl").read_text().splitlines()
    rejected = json.loads(line)
    assert rejected["field"] == field and rejected["reason"].startswith(reason)
    assert not list(out.glob("*.parquet"))


def test_a_folder_without_tables_and_wrong_options_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_text(GOOD)
    base = ["data", "import", "csv", str(tmp_path / "a.csv"), "--out", str(tmp_path / "out")]
    for arguments, expected in [
        (
            ["data", "import", "csv", str(tmp_path / "no"), "--out", str(tmp_path / "o")],
            "expected a CSV table",
        ),
        ([*base, "--every", "0"], "--every=0.0: expected 0.01 seconds or more"),
        ([*base, "--max-bad-rows", "-1"], "--max-bad-rows=-1: expected 0 or more"),
        ([*base, "--label-rule", "best"], "expected one of alphadrive, senna"),
    ]:
        assert run(arguments) == 2
        assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_clock_that_jumps_by_years_makes_two_pieces_of_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    times = [(start + index / 10, index) for start in (0.0, 1.6e9) for index in range(100)]
    rows = "".join(f"{time_s:.1f},{index},0,10\n" for time_s, index in times)
    (tmp_path / "a.csv").write_text(f"time_s,x_m,y_m,speed_mps\n{rows}")
    dataset = imported(tmp_path / "a.csv", tmp_path / "out", "--labels-only")
    assert len(dataset) == 28
    assert "left out: 13 without a whole path" in capsys.readouterr().out


def test_a_file_whose_name_is_no_unicode_is_a_bad_row(tmp_path: Path) -> None:
    name = os.fsdecode(b"drive-\xff.csv")
    (tmp_path / name).write_text("time_s,x_m,y_m,speed_mps\n0,0,0,1\n")
    out = tmp_path / "out"
    assert run(["data", "import", "csv", str(tmp_path), "--out", str(out), "--labels-only"]) == 2
    (line,) = (out / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["file"] == str(tmp_path / name)
