"""nuScenes through its devkit, on a small data set in the exact layout of its tables."""

import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from alphadrive.cli import run
from alphadrive.data.parquet import DrivingDataset
from alphadrive.data.validate import problems_in

# Not imported here: the devkit lifts Pillow's limit on pixels, which the importer puts back.
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("nuscenes") is None, reason="nuscenes-devkit is an optional dependency"
)

SCENES = {"scene-0061": 6.0, "scene-0103": 9.0}
"""Names out of the official mini splits (train, val), and how fast this data set drives them, m/s."""
NUM_SWEEPS = 121  # 10 s at 12 Hz
SWEEPS_PER_SAMPLE = 6
START_US = 1_532_402_927_000_000

Tables = dict[str, list[dict[str, Any]]]


def tables() -> Tables:
    """The thirteen tables, with the fields each has in nuScenes."""
    sensors = {"CAM_FRONT": "camera", "LIDAR_TOP": "lidar"}
    found: Tables = {
        "attribute": [{"token": "a", "name": "vehicle.moving", "description": ""}],
        "category": [{"token": "c", "name": "vehicle.car", "description": ""}],
        "visibility": [{"token": "1", "level": "v0-40", "description": ""}],
        "instance": [],
        "sample_annotation": [],
        "map": [
            {
                "token": "m",
                "category": "semantic_prior",
                "filename": "maps/m.png",
                "log_tokens": [f"log-{name}" for name in SCENES],
            }
        ],
        "sensor": [{"token": name, "channel": name, "modality": kind} for name, kind in sensors.items()],
        "calibrated_sensor": [
            {
                "token": f"calibrated-{name}",
                "sensor_token": name,
                "translation": [1.7, 0.0, 1.5],
                "rotation": [0.5, -0.5, 0.5, -0.5],
                "camera_intrinsic": [],
            }
            for name in sensors
        ],
        **{name: [] for name in ("log", "scene", "sample", "sample_data", "ego_pose")},
    }
    for name, speed_mps in SCENES.items():
        add_scene(found, name, speed_mps)
    return found


def add_scene(found: Tables, name: str, speed_mps: float) -> None:
    """A straight drive at 30° to the map's x, one key frame every sixth sweep."""
    last_sample = (NUM_SWEEPS - 1) // SWEEPS_PER_SAMPLE
    found["log"].append(
        {"token": f"log-{name}", "logfile": name, "vehicle": "n1", "date_captured": "", "location": "here"}
    )
    found["scene"].append(
        {
            "token": f"token-{name}",
            "log_token": f"log-{name}",
            "nbr_samples": last_sample + 1,
            "first_sample_token": f"{name}-0",
            "last_sample_token": f"{name}-{last_sample}",
            "name": name,
            "description": "a straight road",
        }
    )
    for number in range(last_sample + 1):
        found["sample"].append(
            {
                "token": f"{name}-{number}",
                "timestamp": START_US + 500_000 * number,
                "prev": f"{name}-{number - 1}" if number else "",
                "next": f"{name}-{number + 1}" if number < last_sample else "",
                "scene_token": f"token-{name}",
            }
        )
    for channel, file_format in (("CAM_FRONT", "jpg"), ("LIDAR_TOP", "pcd")):
        for sweep in range(NUM_SWEEPS):
            add_sweep(found, name, speed_mps, channel, file_format, sweep)


def add_sweep(found: Tables, name: str, speed_mps: float, channel: str, file_format: str, sweep: int) -> None:
    is_key_frame = sweep % SWEEPS_PER_SAMPLE == 0
    token, time_us = f"{name}-{channel}-{sweep}", START_US + round(sweep * 1e6 / 12)
    way_m = speed_mps * sweep / 12
    half = math.radians(30) / 2
    found["ego_pose"].append(
        {
            "token": token,
            "timestamp": time_us,
            "rotation": [math.cos(half), 0.0, 0.0, math.sin(half)],
            "translation": [400 + way_m * math.cos(2 * half), 1100 + way_m * math.sin(2 * half), 0.0],
        }
    )
    found["sample_data"].append(
        {
            "token": token,
            "sample_token": f"{name}-{math.ceil(sweep / SWEEPS_PER_SAMPLE)}",
            "ego_pose_token": token,
            "calibrated_sensor_token": f"calibrated-{channel}",
            "timestamp": time_us,
            "fileformat": file_format,
            "is_key_frame": is_key_frame,
            "height": 900,
            "width": 1600,
            "filename": f"{'samples' if is_key_frame else 'sweeps'}/{channel}/{token}.{file_format}",
            "prev": f"{name}-{channel}-{sweep - 1}" if sweep else "",
            "next": f"{name}-{channel}-{sweep + 1}" if sweep < NUM_SWEEPS - 1 else "",
        }
    )


def write(root: Path, found: Tables, data: bytes) -> Path:
    (root / "v1.0-mini").mkdir(parents=True)
    (root / "samples" / "CAM_FRONT").mkdir(parents=True)
    (root / "maps").mkdir()
    Image.new("L", (8, 8)).save(root / "maps" / "m.png")
    for name, rows in found.items():
        (root / "v1.0-mini" / f"{name}.json").write_text(json.dumps(rows))
    for row in found["sample_data"]:
        if row["is_key_frame"] and row["fileformat"] == "jpg":
            (root / row["filename"]).write_bytes(data)
    return root


@pytest.fixture
def root(tmp_path: Path, picture: Callable[..., bytes]) -> Path:
    return write(tmp_path / "nuscenes", tables(), picture(image_format="JPEG"))


def import_mini(root: Path, *options: str) -> int:
    return run(["data", "import", "nuscenes", str(root), "--out", str(root.parent / "out"), *options])


def test_key_frames_become_rows_with_official_splits(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    assert import_mini(root) == 0
    assert limit == Image.MAX_IMAGE_PIXELS
    assert "left out: 12 without a whole path for the next 3 s" in capsys.readouterr().out
    out = root.parent / "out"
    records = list(DrivingDataset(out).records())
    assert len(records) == 2 * 15  # 21 key frames each, the last 3 s have no whole path
    assert {(record.scene_id, record.split) for record in records} == {
        ("nuscenes/scene-0061", "mini_train"),
        ("nuscenes/scene-0103", "mini_val"),
    }
    record = records[16]
    assert (record.query_id, record.time_s) == ("nuscenes/scene-0103-1", pytest.approx(0.5))
    assert record.speed_mps == pytest.approx(9.0, abs=1e-3)
    assert record.plans == ("KEEP, STRAIGHT",) and record.navigation == "go straight"
    expected = [(4.5 * step, 0.0) for step in range(1, 7)]
    assert np.allclose(record.waypoints or (), expected, atol=1e-3)
    image = root / "samples" / "CAM_FRONT" / "scene-0103-CAM_FRONT-6.jpg"
    assert record.images[0].data == image.read_bytes()
    assert problems_in(out) == []


def test_one_official_split_may_be_chosen(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert import_mini(root, "--split", "mini_val") == 0
    assert {r.scene_id for r in DrivingDataset(root.parent / "out").records()} == {"nuscenes/scene-0103"}
    assert import_mini(root, "--split", "val") == 2
    assert "v1.0-mini has no such split; expected mini_train or mini_val" in capsys.readouterr().err


def test_an_image_that_is_missing_or_outside_is_told(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "samples" / "CAM_FRONT" / "scene-0061-CAM_FRONT-6.jpg").unlink()
    table = root / "v1.0-mini" / "sample_data.json"
    rows = json.loads(table.read_text())
    rows[0]["filename"] = "../secret.jpg"
    table.write_text(json.dumps(rows))
    assert import_mini(root) == 2
    said = capsys.readouterr().err
    assert "scene scene-0061: row scene-0061-0: image: path '../secret.jpg': contains '..'" in said
    assert (
        "scene scene-0061: row scene-0061-1: image: path 'samples/CAM_FRONT/scene-0061-CAM_FRONT-6.jpg': no"
        in said
    )
    assert import_mini(root, "--max-bad-rows", "2") == 0
    assert len(DrivingDataset(root.parent / "out")) == 28


def test_a_scene_without_poses_is_told_and_the_others_are_imported(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = root / "v1.0-mini" / "ego_pose.json"
    rows = json.loads(table.read_text())
    rows[5]["translation"][0] = None
    table.write_text(json.dumps(rows))
    assert import_mini(root, "--max-bad-rows", "1") == 0
    assert len(DrivingDataset(root.parent / "out")) == 15
    assert "scene-0061" in (root.parent / "out" / "rejected.jsonl").read_text()


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("sample.json", "{", "JSONDecodeError"),
        ("sample.json", None, "No such file"),
        ("map.json", "[]", "IndexError"),
        ("../maps/m.png", None, "map mask"),
    ],
)
def test_incomplete_tables_are_told(
    root: Path, capsys: pytest.CaptureFixture[str], name: str, text: str | None, expected: str
) -> None:
    file = root / "v1.0-mini" / name
    file.unlink() if text is None else file.write_text(text)
    assert import_mini(root) == 2
    said = capsys.readouterr().err
    assert "the tables of v1.0-mini cannot be read" in said and expected in said


def test_another_version_than_the_folder_holds_is_told(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert import_mini(root, "--version", "v1.0-trainval") == 2
    assert (
        "no folder v1.0-trainval; expected v1.0-trainval/*.json, maps/ and samples/"
        in capsys.readouterr().err
    )


def test_without_the_devkit_the_remedy_is_named(root: Path) -> None:
    code = (
        "import sys\n"
        "sys.modules['nuscenes'] = None\n"
        "from alphadrive.cli import main\n"
        f"main(['data', 'import', 'nuscenes', {str(root)!r}, '--out', {str(root.parent / 'out')!r}])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install --no-deps nuscenes-devkit==1.2.0" in done.stderr and "Traceback" not in done.stderr
