"""Every kind of bad row is reported at once, naming file, row and field."""

import dataclasses
import io
import math
import random
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from alphadrive.data.candidates import Candidate
from alphadrive.data.parquet import write_records
from alphadrive.data.records import DrivingRecord, ImageRecord
from alphadrive.data.validate import problems_in, write_valid_records
from alphadrive.errors import DataError

MakeRecord = Callable[..., DrivingRecord]


def png_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims a size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


def images(data: bytes, width: int = 56, height: int = 28, camera: str = "front") -> tuple[ImageRecord, ...]:
    return (ImageRecord(camera=camera, dt_s=0.0, data=data, width=width, height=height),)


def gif() -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (56, 28)).save(buffer, "GIF")
    return buffer.getvalue()


STANDING = ((0.0, 0.0),) * 6

BAD_FIELDS: list[tuple[str, dict[str, object], str]] = [
    ("speed NaN", {"speed_mps": math.nan}, r"speed_mps: got nan, expected 0 to 70 m/s"),
    ("speed negative", {"speed_mps": -1.0}, r"speed_mps: got -1.0, expected 0 to 70 m/s"),
    ("speed absurd", {"speed_mps": 71.0}, r"speed_mps: got 71.0, expected 0 to 70 m/s"),
    ("speed infinite", {"speed_mps": math.inf}, r"speed_mps: got inf"),
    ("speed null", {"speed_mps": None}, r"speed_mps: got None"),
    ("action word", {"plans": ("KEEP, U_TURN",)}, r"plans\[0\]: got 'KEEP, U_TURN'.*DECELERATE.*LEFT_TURN"),
    ("two speeds", {"plans": ("KEEP, STOP",)}, r"plans\[0\]: got 'KEEP, STOP'"),
    ("spelling", {"plans": ("keep,straight",)}, r"plans\[0\]: .*expected it written 'KEEP, STRAIGHT'"),
    ("no plan", {"plans": ()}, r"plans: empty"),
    ("plan twice", {"plans": ("KEEP, STRAIGHT",) * 2}, r"plans\[1\]: 'KEEP, STRAIGHT' is there twice"),
    ("teacher plan", {"teacher_plan": "GO, STRAIGHT"}, r"teacher_plan: got 'GO, STRAIGHT'"),
    ("image pad", {"navigation": "go <|image_pad|> on"}, r"navigation: contains '<\|image_pad\|>'"),
    ("im_end", {"navigation": "go<|im_end|>"}, r"navigation: contains '<\|im_end\|>'"),
    ("think tag", {"reasoning": "so </think> I"}, r"reasoning: contains '</think>'"),
    ("own token", {"reasoning": "a [SEP] b"}, r"reasoning: contains '\[SEP\]'"),
    ("empty reasoning", {"reasoning": "  "}, r"reasoning: got an empty text"),
    ("navigation null", {"navigation": None}, r"navigation: got null"),
    ("no id", {"query_id": ""}, r"query_id: got ''"),
    ("time", {"time_s": math.inf}, r"time_s: got inf"),
    ("waypoint NaN", {"waypoints": ((0.0, math.nan), *STANDING[1:])}, r"waypoints\[0\]: got \[0.0, nan\]"),
    ("waypoint short", {"waypoints": ((1.0,), *STANDING[1:])}, r"waypoints\[0\]: got \[1.0\]"),
    (
        "waypoint of three",
        {"waypoints": ((1.0, 0.0, 0.0), *STANDING[1:])},
        r"waypoints\[0\]: got \[1.0, 0.0, ",
    ),
    ("waypoints few", {"waypoints": STANDING[1:]}, r"waypoints: got 5 points, expected 6: one every 0.5 s"),
    ("waypoint far", {"waypoints": (*STANDING[1:], (300.0, 0.0))}, r"waypoints\[5\]: .*at most 210 m away"),
    ("no image", {"images": ()}, r"images: got no image at all, expected a camera named 'front'"),
    ("empty image", {"images": images(b"")}, r"images\[0\].bytes: got 0 bytes"),
    ("no image format", {"images": images(b"GIF89a nonsense")}, r"images\[0\].bytes: .*no readable JPEG"),
    ("other format", {"images": images(gif())}, r"images\[0\].bytes: .*no readable JPEG, PNG or WebP"),
    (
        "64 megapixels",
        {"images": images(png_header(9000, 8000))},
        r"9000x8000 = 72000000 pixels in the header",
    ),
    ("bomb", {"images": images(png_header(60000, 60000))}, r"images\[0\].bytes: .*64 megapixels"),
    ("too long", {"images": images(png_header(1, 1))}, r"truncated or damaged PNG"),
]


@pytest.mark.parametrize(
    ("changes", "expected"), [case[1:] for case in BAD_FIELDS], ids=[c[0] for c in BAD_FIELDS]
)
def test_a_bad_field_is_named_with_file_and_row(
    tmp_path: Path, make_record: MakeRecord, changes: dict[str, object], expected: str
) -> None:
    good, bad = make_record(0), make_record(1, **changes)
    write_records([good, bad], tmp_path)
    problems = problems_in(tmp_path, special_tokens=["[SEP]"])
    assert len(problems) == 1, problems
    assert re.search(rf"part-00000\.parquet: row 1: .*{expected}", problems[0]), problems[0]


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_a_truncated_image_is_found_by_decoding_it(
    tmp_path: Path, make_record: MakeRecord, picture: Callable[..., bytes], image_format: str
) -> None:
    whole = picture(width=224, height=112, image_format=image_format)
    bad = make_record(0, images=images(whole[: len(whole) // 2], 224, 112))
    write_records([bad], tmp_path)
    (problem,) = problems_in(tmp_path)
    assert "row 0: images[0].bytes: got" in problem and ("truncated" in problem or "no readable" in problem)


def test_the_size_columns_must_be_those_of_the_image(tmp_path: Path, make_record: MakeRecord) -> None:
    record = make_record(0)
    wrong = dataclasses.replace(record.images[0], width=57)
    write_records([dataclasses.replace(record, images=(wrong,))], tmp_path)
    (problem,) = problems_in(tmp_path)
    assert "images[0].width, height: got 57x28, expected the image's own 56x28" in problem


def test_all_problems_of_all_shards_are_reported_at_once(tmp_path: Path, make_record: MakeRecord) -> None:
    records = [
        make_record(0, speed_mps=-1.0, plans=("NO",)),
        make_record(1),
        make_record(2, navigation="<|im_start|>"),
        make_record(1),
        make_record(4),
    ]
    write_records(records, tmp_path, rows_per_shard=2)
    (tmp_path / "part-00002.parquet").write_bytes(b"PAR1")
    problems = problems_in(tmp_path)
    assert [problem.removeprefix(f"{tmp_path}/").split(":")[:3] for problem in problems[:4]] == [
        ["part-00000.parquet", " row 0", " speed_mps"],
        ["part-00000.parquet", " row 0", " plans[0]"],
        ["part-00001.parquet", " row 0", " navigation"],
        ["part-00001.parquet", " row 1", " query_id"],
    ]
    assert "also in part-00000.parquet row 1" in problems[3]
    assert "no complete Parquet file" in problems[4]
    assert len(problems) == 5


def test_a_damaged_row_group_does_not_hide_the_problems_after_it(
    tmp_path: Path, make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alphadrive.data.writing._GROUP_ROWS", 1)
    write_records([make_record(0, data=b"a marker b"), make_record(1, speed_mps=99.0)], tmp_path)
    shard = tmp_path / "part-00000.parquet"
    shard.write_bytes(shard.read_bytes().replace(b"marker", b"mirker"))
    problems = problems_in(tmp_path)
    assert "rows 0 to 0 cannot be read" in problems[0]
    assert "row 1: speed_mps: got 99.0" in problems[1]


def test_nulls_of_a_foreign_writer_are_problems_and_no_crash(tmp_path: Path, make_record: MakeRecord) -> None:
    write_records([make_record()], tmp_path)
    shard = tmp_path / "part-00000.parquet"
    table = pq.read_table(shard)
    rows = table.to_pylist()
    rows[0].update(plans=[None], images=[None], waypoints=[None], scene_id=None)
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), shard)
    problems = "\n".join(problems_in(tmp_path))
    for expected in (
        "plans[0]: got None",
        "images[0].bytes: got 0 bytes",
        "waypoints[0]",
        "scene_id: got None",
    ):
        assert expected in problems


def test_random_damage_is_reported_and_never_raises(tmp_path: Path, make_record: MakeRecord) -> None:
    write_records((make_record(index) for index in range(3)), tmp_path)
    shard = tmp_path / "part-00000.parquet"
    whole, rng = shard.read_bytes(), random.Random(0)
    num_found = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(rng.choice([1, 3, 20])):
            damaged[rng.randrange(len(whole) - 5000, len(whole))] = rng.randrange(256)
        shard.write_bytes(damaged)
        num_found += bool(problems_in(tmp_path))
    assert num_found > 200


def test_only_the_first_rows_are_looked_at_when_a_limit_is_given(
    tmp_path: Path, make_record: MakeRecord
) -> None:
    write_records(
        [make_record(0), make_record(1), make_record(2, speed_mps=99.0)], tmp_path, rows_per_shard=2
    )
    assert problems_in(tmp_path, num_rows=2) == []
    assert len(problems_in(tmp_path, num_rows=3)) == 1


def test_an_extra_check_sees_valid_records_only(tmp_path: Path, make_record: MakeRecord) -> None:
    write_records([make_record(0, speed_mps=99.0), make_record(1)], tmp_path)
    problems = problems_in(tmp_path, extra_check=lambda _, record: [f"prompt: of {record.query_id} too long"])
    assert len(problems) == 2 and problems[1].endswith("row 1: prompt: of query-1 too long")


def test_thousands_of_rows_over_many_row_groups_are_valid(
    tmp_path: Path, make_record: MakeRecord, picture: Callable[..., bytes]
) -> None:
    data = picture(width=224, height=112, image_format="JPEG")
    write_records((make_record(n, images=images(data, 224, 112)) for n in range(2000)), tmp_path)
    assert problems_in(tmp_path) == []


def test_nothing_is_written_when_a_row_is_bad(tmp_path: Path, make_record: MakeRecord) -> None:
    candidates = [
        Candidate(where="a.json", row=0, record=make_record(0)),
        Candidate(where="a.json", row=1, record=make_record(1, speed_mps=-2.0)),
        Candidate(where="a.json", row=2, problems=["image: missing"]),
        Candidate(where="a.json", row=3, record=make_record(0)),
    ]
    with pytest.raises(DataError) as caught:
        write_valid_records(candidates, tmp_path / "out")
    for expected in (
        "row 1: speed_mps: got -2.0",
        "row 2: image: missing",
        "row 3: query_id: 'query-0' is also in",
    ):
        assert expected in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []

    assert write_valid_records(candidates, tmp_path / "out", max_bad_rows=3) == (1, 3)
    assert problems_in(tmp_path / "out") == []
    assert (tmp_path / "out" / "rejected.jsonl").read_text().count("\n") == 3
