"""comma2k19 segments: published sample, frames out of a real HEVC stream, and what damaged ones get."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageChops, ImageStat

from alphadrive.cli import run
from alphadrive.data.comma2k19 import _east_north
from alphadrive.data.parquet import DrivingDataset
from alphadrive.data.validate import problems_in

from .conftest import SHARED

SAMPLE = SHARED / "comma2k19"
JPEGS = SHARED / "udacity_ch2" / "center"
NUM_FRAMES = 100
SPEED_MPS = 12.0
ORIGIN_ECEF = np.array([-2712087.5, -4261670.0, 3881014.5])


def save(folder: Path, name: str, values: np.ndarray) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("wb") as file:
        np.save(file, values)


@pytest.fixture
def segment(tmp_path: Path, picture: Callable[..., bytes]) -> Path:
    """5 s of a straight drive to the north at 12 m/s, with a picture at every 10th frame."""
    folder = tmp_path / "data" / "Chunk_1" / "abc|2018-01-01--00-00-00" / "3"
    times = 1000.0 + 0.05 * np.arange(NUM_FRAMES)
    up = ORIGIN_ECEF / np.linalg.norm(ORIGIN_ECEF)
    east = np.cross([0, 0, 1], up) / np.linalg.norm(np.cross([0, 0, 1], up))
    way = SPEED_MPS * (times - times[0])
    save(folder, "global_pose/frame_times", times)
    save(folder, "global_pose/frame_positions", ORIGIN_ECEF + way[:, None] * np.cross(up, east))
    can_times = np.arange(times[0], times[-1] + 0.1, 1 / 83)
    save(folder, "processed_log/CAN/speed/t", can_times)
    save(folder, "processed_log/CAN/speed/value", np.full((len(can_times), 1), SPEED_MPS))
    (folder / "frames").mkdir()
    for frame in range(0, NUM_FRAMES, 10):
        (folder / "frames" / f"{frame:06d}.png").write_bytes(picture(shade=frame))
    return folder


def import_segment(segment: Path, *options: str) -> int:
    """Import all there is at the root of the data set, which is this segment."""
    root = segment.parents[2]
    return run(["data", "import", "comma2k19", str(root), "--out", str(root.parent / "out"), *options])


def rejected(segment: Path) -> list[tuple[str, object, str, str]]:
    lines = (segment.parents[3] / "out" / "rejected.jsonl").read_text().splitlines()
    return [tuple(json.loads(line).values()) for line in lines]


def encode(path: Path, num_frames: int) -> list[Image.Image]:
    """Real photographs as an HEVC stream at 20 frames a second; returns them."""
    pictures = [Image.open(jpeg).resize((320, 240)) for jpeg in sorted(JPEGS.glob("*.jpg"))[:num_frames]]
    with av.open(str(path), "w", format="hevc") as container:
        stream = container.add_stream("libx265", rate=20)
        stream.width, stream.height = pictures[0].size
        stream.pix_fmt = "yuv420p"
        stream.options = {"preset": "ultrafast", "x265-params": "log-level=none:keyint=20"}
        for image in pictures:
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())
    return pictures


def with_video(segment: Path, num_frames: int = NUM_FRAMES) -> list[Image.Image]:
    if not JPEGS.is_dir():
        pytest.skip(f"the real photographs are not at {JPEGS}")
    shutil.rmtree(segment / "frames")
    return encode(segment / "video.hevc", num_frames)


def test_the_published_sample_gets_its_known_plans(tmp_path: Path) -> None:
    if not SAMPLE.is_dir():
        pytest.skip(f"the comma2k19 sample is not at {SAMPLE}")
    assert run(["data", "import", "comma2k19", str(SAMPLE), "--out", str(tmp_path)]) == 0
    first, second = DrivingDataset(tmp_path).records()
    assert first.plans[0] == "ACCELERATE, STRAIGHT" and second.plans[0] == "DECELERATE, STRAIGHT"
    assert first.speed_mps == pytest.approx(7.97, abs=0.15) and second.speed_mps == pytest.approx(
        16.88, abs=0.15
    )
    assert first.query_id == "comma2k19/b0c9d2329ad1606b|2018-08-02--08-34-47/40/000000"
    assert first.scene_id == second.scene_id == "comma2k19/b0c9d2329ad1606b|2018-08-02--08-34-47"
    assert second.time_s - first.time_s == pytest.approx(30.0, abs=0.1)
    (png,) = SAMPLE.glob("*/40/frames/000600.png")
    assert second.images[0].data == png.read_bytes()
    assert problems_in(tmp_path) == []


def test_rows_of_a_segment_with_pictures(segment: Path) -> None:
    assert import_segment(segment) == 0
    out = segment.parents[3] / "out"
    records = list(DrivingDataset(out).records())
    assert [record.query_id[-6:] for record in records] == ["000000", "000010", "000020", "000030"]
    assert [record.time_s for record in records] == pytest.approx([180.0, 180.5, 181.0, 181.5])
    assert records[1].speed_mps == pytest.approx(SPEED_MPS)
    expected = [(6.0 * step, 0.0) for step in range(1, 7)]
    assert np.allclose(records[1].waypoints or (), expected, atol=0.02)
    assert records[1].images[0].data == (segment / "frames" / "000010.png").read_bytes()
    assert problems_in(out) == []


def test_frames_come_out_of_the_video_at_the_sampling_period(segment: Path) -> None:
    pictures = with_video(segment)
    assert import_segment(segment, "--every", "0.75") == 0
    dataset = DrivingDataset(segment.parents[3] / "out")
    assert [dataset.record(row).query_id[-6:] for row in range(len(dataset))] == [
        "000000",
        "000015",
        "000030",
    ]
    for row, frame in enumerate((0, 15, 30)):
        assert dataset.image(row).size == (320, 240)
        apart = {
            other: sum(ImageStat.Stat(ImageChops.difference(dataset.image(row), pictures[other])).mean)
            for other in (max(frame - 10, 0), frame, frame + 10)
        }
        assert min(apart, key=lambda other: apart[other]) == frame, apart


def test_a_short_or_damaged_video_is_told_and_what_comes_before_is_kept(
    segment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_video(segment, num_frames=25)
    assert import_segment(segment) == 2
    assert "video.hevc: ends after 25 frames, expected 100" in capsys.readouterr().err
    assert import_segment(segment, "--max-bad-rows", "1") == 0
    assert len(DrivingDataset(segment.parents[3] / "out")) == 3

    whole = (segment / "video.hevc").read_bytes()
    middle = slice(len(whole) // 2, len(whole) * 3 // 4)
    damaged = bytearray(whole)
    damaged[middle] = bytes(255 - byte for byte in whole[middle])
    for data, said in [
        (whole[: len(whole) * 2 // 3], "after"),
        (bytes(damaged), "cannot be decoded after"),
        (b"no video" * 99, "after 0 frames"),
    ]:
        shutil.rmtree(segment.parents[3] / "out")
        (segment / "video.hevc").write_bytes(data)
        assert import_segment(segment) == 2
        ((file, _, field, reason),) = rejected(segment)
        assert (file, field) == (str(segment), "video.hevc")
        assert said in reason and "fetch it again" in reason


def test_positions_that_are_no_numbers_are_told_and_not_used(segment: Path) -> None:
    positions = np.load(segment / "global_pose" / "frame_positions")
    positions[70:75] = np.nan
    positions[99, 2] = np.inf
    save(segment, "global_pose/frame_positions", positions)
    assert import_segment(segment) == 2
    assert [(row, field) for _, row, field, _ in rejected(segment)] == [
        (70, "global_pose/frame_positions"),
        (99, "global_pose/frame_positions"),
    ]
    assert import_segment(segment, "--max-bad-rows", "2") == 0
    records = DrivingDataset(segment.parents[3] / "out").records()
    # 0.3 s are missing from frame 69 to 75: the rows whose next 3 s hold them are left out.
    assert [record.query_id[-6:] for record in records] == ["000000"]


BREAKS: list[tuple[str, str, Callable[[Path], None], str]] = [
    ("no poses", "global_pose/frame_positions", Path.unlink, "no such file"),
    ("no CAN", "processed_log/CAN/speed/t", Path.unlink, "no such file"),
    (
        "no array",
        "processed_log/CAN/speed/value",
        lambda p: save(p.parent, p.name, np.array(["a"])),
        "got <U1 of shape",
    ),
    ("junk", "global_pose/frame_times", lambda p: p.write_bytes(b"junk") and None, "no readable NumPy array"),
    (
        "cut",
        "global_pose/frame_times",
        lambda p: p.write_bytes(p.read_bytes()[:300]) and None,
        "no readable NumPy",
    ),
    (
        "pickle",
        "processed_log/CAN/speed/value",
        lambda p: np.save(p.open("wb"), np.array([{}]), allow_pickle=True),
        "no readable",
    ),
    (
        "fewer",
        "global_pose/frame_positions",
        lambda p: save(p.parent, p.name, np.zeros((9, 3))),
        "got 9 values for 100",
    ),
    (
        "shape",
        "global_pose/frame_positions",
        lambda p: save(p.parent, p.name, np.zeros((100, 2))),
        "shape (100, 2)",
    ),
    (
        "backwards",
        "global_pose/frame_times",
        lambda p: save(p.parent, p.name, -np.arange(100.0)),
        "value 1 is not after",
    ),
    (
        "NaN time",
        "processed_log/CAN/speed/t",
        lambda p: save(p.parent, p.name, np.load(p) * np.nan),
        "no number",
    ),
    (
        "other clock",
        "processed_log/CAN/speed/t",
        lambda p: save(p.parent, p.name, np.load(p) + 9e5),
        "no speed while",
    ),
    (
        "units",
        "processed_log/CAN/speed/value",
        lambda p: save(p.parent, p.name, np.load(p) * 3.6),
        "speed_mps: the positions",
    ),
    ("no frame", "frames", shutil.rmtree, "video.hevc: no such file"),
    (
        "no image",
        "frames/000010.png",
        lambda p: p.write_bytes(b"text") and None,
        "image: got 4 bytes that are no readable",
    ),
]


@pytest.mark.parametrize(
    ("name", "damage", "expected"), [case[1:] for case in BREAKS], ids=[c[0] for c in BREAKS]
)
def test_a_damaged_segment_is_named_with_its_file(
    segment: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    damage: Callable[[Path], None],
    expected: str,
) -> None:
    damage(segment / name)
    assert import_segment(segment) == 2
    said = capsys.readouterr().err
    assert expected in said and str(segment) in said
    if name.startswith(("global_pose", "processed_log")) and not expected.startswith("speed_mps"):
        assert {field for _, _, field, _ in rejected(segment)} <= {name, name.replace("value", "t")}


def test_a_folder_without_segments_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "import", "comma2k19", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "holds no segment; expected folders DONGLE|DATE/SEGMENT" in capsys.readouterr().err


def test_the_local_plane_has_east_and_north() -> None:
    """At 0° N 0° E, x is up, y east and z north; at 45° N 90° E, east is -x."""
    east, north = _east_north(np.array([[6378137.0, 0, 0], [6378137.0, 3, 4]]))
    assert (east[1], north[1]) == pytest.approx((3, 4))
    there = np.array([0.0, 4517590.9, 4487348.4])
    east, north = _east_north(there + np.array([[0, 0, 0], [-5, 0, 0], [0, -1, 1]]))
    assert east.tolist() == pytest.approx([0, 5, 0])
    assert north.tolist() == pytest.approx([0, 0, 2**0.5])


def test_pictures_that_belong_to_no_frame_are_counted(
    segment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("000999.png", "7.png"):
        shutil.copy(segment / "frames" / "000000.png", segment / "frames" / name)
    assert import_segment(segment) == 0
    assert "left out: 2 in frames/ not named NNNNNN.png" in capsys.readouterr().out
