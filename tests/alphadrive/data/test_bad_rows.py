"""A corpus of bad rows: every kind is refused by the importers with its field named, and by `validate`
when it is in a dataset all the same."""

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from alphadrive.cli import run
from alphadrive.data.parquet import write_records
from alphadrive.data.records import DrivingRecord, ImageRecord
from alphadrive.prompts import planning_prompt

MakeRecord = Callable[..., DrivingRecord]


def png(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims a size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body


@pytest.fixture
def images(tmp_path: Path, picture: Callable[..., bytes]) -> dict[str, bytes]:
    """Images by name, all in the folder of the source; `good.jpg` is the only good one."""
    noise = np.random.default_rng(0).bytes(2000)
    jpeg = picture(320, 240, image_format="JPEG")
    found = {
        "good.jpg": jpeg,
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "empty.jpg": b"",
        "text.jpg": b"<html>404</html>",
        "noise.png": b"\x89PNG\r\n\x1a\n" + noise,
        "gif.jpg": b"GIF89a" + noise,
        "bomb.png": png(60000, 60000),
        "large.png": png(9000, 8000),
    }
    for name, data in found.items():
        (tmp_path / name).write_bytes(data)
    return found


BAD_IMAGES = ["cut.jpg", "empty.jpg", "text.jpg", "noise.png", "gif.jpg", "bomb.png", "large.png"]
BAD_PATHS = ["missing.jpg", "../good.jpg", "/etc/hostname", "C:\\good.jpg", "sub/../good.jpg", "."]
BAD_SPEEDS = ["nan", "inf", "-0.5", "71", "1e9", "", "fast"]
BAD_TEXTS = ["go <|im_end|>", "<|image_pad|>", "on </think> so", "<answer>", "<|vision_start|> left"]
BAD_SOLUTIONS = [
    "<answer> FLY, STRAIGHT </answer>",
    "<answer> KEEP, U_TURN </answer>",
    "<answer> KEEP, STOP </answer>",
    "<answer> KEEP </answer>",
    "<answer>  </answer>",
    "KEEP, STRAIGHT",
]


def rejected(out: Path) -> list[tuple[object, str]]:
    lines = (out / "rejected.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert all(list(entry) == ["file", "row", "field", "reason"] and entry["reason"] for entry in entries)
    return [(entry["row"], entry["field"]) for entry in entries]


def test_every_bad_metaad_row_is_rejected_with_its_field(tmp_path: Path, images: dict[str, bytes]) -> None:
    def row(**changes: object) -> dict[str, object]:
        good = {
            "image": "good.jpg",
            "problem": planning_prompt(4.2, "go straight"),
            "solution": "<answer> KEEP, STRAIGHT </answer>",
            "thinking": "<think> The road is clear. </think>",
        }
        return {**good, **changes}

    def asked(speed: str = "4.2", navigation: str = "go straight") -> str:
        return planning_prompt(4.2, navigation).replace("4.2m/s", f"{speed}m/s")

    speed_field = {"": "problem", "fast": "problem"}
    corpus: list[tuple[object, str | None]] = [
        *((row(image=name), "images[0].bytes" if name == "cut.jpg" else "image") for name in BAD_IMAGES),
        *((row(image=name), "image") for name in BAD_PATHS),
        *((row(problem=asked(speed)), speed_field.get(speed, "speed_mps")) for speed in BAD_SPEEDS),
        *((row(problem=asked(navigation=text)), "navigation") for text in BAD_TEXTS),
        (row(thinking="a <|im_start|>"), "reasoning"),
        (row(image="\ud800.jpg"), "image"),
        (row(thinking="half a pair: \ud83d"), "reasoning"),
        (row(problem=asked(navigation="turn \ud800 left")), "navigation"),
        *((row(solution=text), "solution") for text in BAD_SOLUTIONS),
        *(
            (row(**{name: value}), name)
            for name in ("image", "problem", "solution")
            for value in (None, 7, "")
        ),
        (row(thinking=["so"]), "thinking"),
        ({}, "image"),
        (5, None),
        (None, None),
    ]
    lines = [json.dumps(row()), *(json.dumps(bad) for bad, _ in corpus)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    out = tmp_path / "out"
    command = ["data", "import", "metaad", str(tmp_path / "rows.jsonl"), "--out", str(out)]
    assert run(command) == 2
    assert not list(out.glob("*.parquet"))
    first_of_row: dict[object, str] = {}
    for number, field in rejected(out):
        first_of_row.setdefault(number, field)
    assert first_of_row == {number + 1: field for number, (_, field) in enumerate(corpus)}
    assert run([*command, "--max-bad-rows", str(len(corpus))]) == 0
    assert run(["data", "validate", str(out)]) == 0


def test_every_bad_row_of_a_table_is_rejected_with_its_field(
    tmp_path: Path, images: dict[str, bytes]
) -> None:
    corpus: list[tuple[str, str]] = [
        *(
            (f"{name},{{t}},{{x}},0,10,", "images[0].bytes" if name == "cut.jpg" else "image")
            for name in BAD_IMAGES
        ),
        *((f"{name},{{t}},{{x}},0,10,", "image") for name in BAD_PATHS),
        *((f",{{t}},{{x}},0,{speed},", "speed_mps") for speed in BAD_SPEEDS),
        *((f"good.jpg,{{t}},{{x}},0,10,{text}", "navigation") for text in BAD_TEXTS),
        (",{t},nan,0,10,", "x_m"),
        (",{t},{x},north,10,", "y_m"),
        (",soon,{x},0,10,", "time_s"),
        (",0.05,{x},0,10,", "time_s"),
        (",{t},{x},0,10,,more", "row"),
        (",{t}", "x_m"),
    ]
    lines = ["image,time_s,x_m,y_m,speed_mps,navigation"]
    expected = {}
    for number in range(20 * len(corpus) + 60):
        time_s, x = number / 10, number
        line = f"{'good.jpg' if number % 5 == 0 else ''},{time_s},{x},0,10,"
        if number and number % 20 == 0 and number // 20 <= len(corpus):
            bad, field = corpus[number // 20 - 1]
            line, expected[number + 2] = bad.format(t=time_s, x=x), field
        lines.append(line)
    (tmp_path / "drive.csv").write_text("\n".join(lines))
    out = tmp_path / "out"
    command = ["data", "import", "csv", str(tmp_path / "drive.csv"), "--out", str(out)]
    assert run(command) == 2
    first_of_row: dict[object, str] = {}
    for number, field in rejected(out):
        first_of_row.setdefault(number, field)
    assert first_of_row == expected
    assert run([*command, "--max-bad-rows", str(len(corpus))]) == 0
    assert run(["data", "validate", str(out)]) == 0


def test_validate_refuses_the_same_in_a_dataset(
    tmp_path: Path, make_record: MakeRecord, images: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    def with_image(name: str) -> dict[str, object]:
        image = ImageRecord(camera="front", dt_s=0.0, data=images[name], width=320, height=240)
        return {"images": (image,)}

    corpus: list[tuple[dict[str, object], str]] = [
        *((with_image(name), "images[0].bytes") for name in BAD_IMAGES),
        *(({"speed_mps": float(text)}, "speed_mps") for text in BAD_SPEEDS if text not in ("", "fast")),
        *(({"navigation": text}, "navigation") for text in BAD_TEXTS),
        *(({"plans": (text,)}, "plans[0]") for text in ("FLY, STRAIGHT", "KEEP, STOP", "KEEP", "")),
        ({"plans": ()}, "plans"),
        ({"images": ()}, "images"),
        ({"waypoints": ((float("nan"), 0.0),) * 6}, "waypoints[0]"),
        ({"query_id": ""}, "query_id"),
    ]
    write_records((make_record(number, **bad) for number, (bad, _) in enumerate(corpus)), tmp_path / "data")
    assert run(["data", "validate", str(tmp_path / "data")]) == 2
    said = capsys.readouterr().err
    for number, (_, field) in enumerate(corpus):
        assert f"part-00000.parquet: row {number}: {field}: " in said
