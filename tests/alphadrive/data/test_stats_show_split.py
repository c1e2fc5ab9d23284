"""`data stats`, `show`, `split` and scenes in two splits, from the command line inwards."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alphadrive.cli import run as run_command
from alphadrive.data.parquet import DrivingDataset, write_records
from alphadrive.data.records import DrivingRecord, ImageRecord
from alphadrive.data.scenes import check_apart
from alphadrive.data.schema import SCHEMA, row_of
from alphadrive.data.show import Condition, choose_rows
from alphadrive.data.split import split_of
from alphadrive.data.stats import MAX_DISTINCT, OTHERS, dataset_stats
from alphadrive.errors import ConfigError, DataError
from alphadrive.locks import take_lock

MakeRecord = Callable[..., DrivingRecord]


@pytest.fixture
def drives(tmp_path: Path, make_record: MakeRecord) -> Path:
    """Twelve rows: six scenes of two, three plans, one row without reasoning, one with waypoints."""
    plans = [("KEEP, STRAIGHT", "ACCELERATE, STRAIGHT"), ("STOP, STRAIGHT",), ("KEEP, LEFT_TURN",)]
    rows = [
        make_record(
            index,
            scene_id=f"drive-{index // 2}",
            plans=plans[index % 3],
            teacher_plan="KEEP, STRAIGHT",
            reasoning=None if index == 5 else "because",
            waypoints=tuple((float(x), 0.1) for x in range(1, 7)) if index == 7 else None,
            speed_mps=float(index),
        )
        for index in range(12)
    ]
    write_records(rows, tmp_path / "drives", rows_per_shard=5)
    return tmp_path / "drives"


def test_stats_count_every_kind_of_thing(drives: Path) -> None:
    stats = dataset_stats(drives)
    assert (stats.num_rows, stats.num_scenes) == (12, 6)
    assert stats.recorded == {"KEEP, STRAIGHT": 4, "STOP, STRAIGHT": 4, "KEEP, LEFT_TURN": 4}
    assert stats.acceptable["ACCELERATE, STRAIGHT"] == 4
    assert stats.recorded_words == {"KEEP": 8, "STOP": 4, "STRAIGHT": 8, "LEFT_TURN": 4}
    assert stats.acceptable_words["ACCELERATE"] == 4 and stats.acceptable_words["STRAIGHT"] == 8
    assert stats.num_plans == {2: 4, 1: 8}
    assert stats.speed_bins == {low: 2 for low in range(0, 12, 2)}
    assert (stats.speed_min_mps, stats.speed_mean_mps, stats.speed_max_mps) == (0.0, 5.5, 11.0)
    assert (stats.with_reasoning, stats.with_waypoints) == (11, 1)
    assert (stats.with_teacher_plan, stats.teacher_not_acceptable) == (12, 8)
    assert stats.image_sizes == {"front 56x28": 12}


def test_stats_as_json_and_as_a_page(drives: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = drives.parent / "new" / "stats.html"
    assert run_command(["data", "stats", str(drives), "--json", "--out", str(page)]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["num_rows"] == 12 and figures["num_plans"] == {"1": 8, "2": 4}
    content = page.read_text()
    assert "4 (33.3 %)" in content and "KEEP, LEFT_TURN" in content
    assert "<script" not in content and "http" not in content
    assert run_command(["data", "stats", str(drives)]) == 0
    assert re.search(r"STRAIGHT\s+│\s+8 │ 66.7 %", capsys.readouterr().out)


def test_stats_of_rows_full_of_nulls_count_them(tmp_path: Path, make_record: MakeRecord) -> None:
    empty = {**dict.fromkeys(SCHEMA.names), "plans": [None], "images": [None], "speed_mps": float("nan")}
    table = pa.Table.from_pylist([row_of(make_record()), empty], schema=SCHEMA)
    pq.write_table(table, tmp_path / "part-00000.parquet")
    stats = dataset_stats(tmp_path)
    assert stats.recorded["(no plan)"] == 1 and stats.navigation["(null)"] == 1
    assert stats.speed_max_mps == 4.5
    assert run_command(["data", "show", str(tmp_path), "--out", str(tmp_path / "rows.html")]) == 0
    assert "No image: got 0 bytes" in (tmp_path / "rows.html").read_text()


def test_stats_stay_bounded_however_many_routes_there_are(tmp_path: Path, make_record: MakeRecord) -> None:
    num = MAX_DISTINCT + 50
    write_records((make_record(index, navigation=f"go {index}") for index in range(num)), tmp_path)
    navigation = dataset_stats(tmp_path).navigation
    assert len(navigation) == MAX_DISTINCT + 1 and navigation[OTHERS] == 50


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)


def test_a_contact_sheet_shows_rows_whole_and_runs_nothing(tmp_path: Path, make_record: MakeRecord) -> None:
    nasty = "</td><script>alert(1)</script><img src=x onerror=alert(1)>"
    rows = [
        make_record(0, reasoning=nasty, navigation=nasty, scene_id=nasty, teacher_plan="STOP, STRAIGHT"),
        make_record(1, images=(ImageRecord(camera=nasty, dt_s=0.0, data=b"junk", width=1, height=1),)),
        make_record(2, reasoning="x" * 9000, waypoints=((1.0, 0.25),)),
    ]
    write_records(rows, tmp_path / "data")
    out = tmp_path / "rows.html"
    assert run_command(["data", "show", str(tmp_path / "data"), "--out", str(out)]) == 0
    content = out.read_text()
    parser = _Tags()
    parser.feed(content)
    assert "script" not in parser.tags and parser.tags.count("img") == 2
    assert content.count("data:image/jpeg;base64,") == 2 and "http" not in content
    assert "no readable JPEG" in content and "x" * 4001 not in content
    assert "STOP, STRAIGHT (not acceptable)" in content
    assert "Your current speed is 4.5m/s" in content and "(1.0, 0.2)" in content


def test_rows_are_chosen_by_patterns_and_spread_over_the_dataset(drives: Path) -> None:
    assert choose_rows(drives, [], 4) == [0, 3, 6, 9]
    assert choose_rows(drives, [Condition.parse("plan=STOP, *")], 50) == [1, 4, 7, 10]
    both = [Condition.parse("plan=STOP, *"), Condition.parse("scene_id=drive-[23]")]
    assert choose_rows(drives, both, 50) == [4, 7]
    with pytest.raises(DataError, match=r"no row with plan='GO\*'"):
        choose_rows(drives, [Condition.parse("plan=GO*")], 5)
    with pytest.raises(ConfigError, match="expected FIELD=PATTERN, the field one of query_id"):
        Condition.parse("colour=red")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "DATA", "--out", "OUT", "--num", "0"], "--num=0: expected 1 to 500"),
        (["show", "DATA", "--out", "DATA"], "cannot be written"),
        (["stats", "nowhere"], "nowhere: no such folder"),
        (["stats", "DATA", "--out", "DATA/part-00000.parquet/x"], "cannot be written"),
        (["split", "DATA", "--out", "OUT", "--share", "eval=1.5"], "--share 'eval=1.5': expected NAME=SHARE"),
        (["split", "DATA", "--out", "OUT", "--share", "eval=nan"], "expected NAME=SHARE"),
        (["split", "DATA", "--out", "OUT", "--share", "../x=0.5"], "expected NAME=SHARE"),
        (["split", "DATA", "--out", "OUT", "--share", "train=0.5"], "expected NAME=SHARE"),
        (["split", "DATA", "--out", "OUT", "--share", "a=0.5", "--share", "b=0.5"], "expected below 1"),
        (["split", "DATA", "--out", "OUT", "--share", "eval=1e-9"], "none of its 6 scenes falls to 'eval'"),
        (
            ["split", "DATA", "--out", "DATA/part-00000.parquet", "--share", "eval=0.5"],
            "is not ours to write in",
        ),
    ],
)
def test_wrong_arguments_are_named(
    drives: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"DATA": str(drives), "OUT": str(drives.parent / "out")}
    filled = [re.sub("DATA|OUT", lambda match: places[match.group()], text) for text in arguments]
    assert run_command(["data", *filled]) == 2
    assert message in capsys.readouterr().err
    assert not (drives.parent / "out").exists()


def test_a_split_keeps_scenes_whole_and_every_row(drives: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = drives.parent / "out"
    command = ["data", "split", str(drives), "--share", "eval=0.4", "--out", str(out)]
    assert run_command(command) == 0
    sides = {name: list(DrivingDataset(out / name).records()) for name in ("train", "eval")}
    assert {record.split for record in sides["eval"]} == {"eval"}
    scenes = {name: {record.scene_id for record in records} for name, records in sides.items()}
    assert not scenes["train"] & scenes["eval"] and len(scenes["train"] | scenes["eval"]) == 6
    assert len(sides["train"]) + len(sides["eval"]) == 12
    assert all(len(sides[name]) == 2 * len(scenes[name]) for name in sides)
    originals = {record.query_id: record for record in DrivingDataset(drives).records()}
    assert all(record.images == originals[record.query_id].images for record in sides["eval"])
    assert run_command(["data", "validate", str(out / "train"), str(out / "eval")]) == 0
    capsys.readouterr()
    assert run_command(command) == 2
    assert "is there already" in capsys.readouterr().err
    assert sorted(path.name for path in out.iterdir()) == ["eval", "train"]


def test_the_side_of_a_scene_depends_on_its_name_and_the_seed_alone() -> None:
    names = [f"scene-{number}" for number in range(4000)]
    shares = {"eval": 0.1, "test": 0.2}
    sides = [split_of(name, shares, 0) for name in names]
    for side, share in {"eval": 0.1, "test": 0.2, "train": 0.7}.items():
        assert sides.count(side) / len(names) == pytest.approx(share, abs=0.03)
    assert sides == [split_of(name, shares, 0) for name in names]
    assert sides != [split_of(name, shares, 1) for name in names]


def test_what_a_killed_split_left_behind_is_replaced(drives: Path) -> None:
    out = drives.parent / "out"
    (out / ".train.part").mkdir(parents=True)
    (out / ".train.part" / "part-00000.parquet").write_bytes(b"half")
    assert run_command(["data", "split", str(drives), "--share", "eval=0.4", "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["eval", "train"]


def test_a_scene_in_two_splits_is_named_once_with_both_places(
    tmp_path: Path, make_record: MakeRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    write_records((make_record(index, scene_id=f"drive-{index // 2}") for index in range(6)), tmp_path / "a")
    held_out = [
        make_record(10 + index, scene_id=scene, split="eval")
        for index, scene in enumerate(["drive-9", "drive-1", "drive-1"])
    ]
    write_records(held_out, tmp_path / "b")
    assert run_command(["data", "validate", str(tmp_path / "a")]) == 0
    assert run_command(["data", "validate", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and lines[1].endswith(" 1 problem")
    assert f"{tmp_path}/b/part-00000.parquet: row 1: scene_id: 'drive-1' is of split 'eval'" in lines[0]
    assert f"of 'train' in {tmp_path}/a/part-00000.parquet: row 2" in lines[0]


def test_one_folder_with_a_scene_in_two_splits_is_refused(
    tmp_path: Path, make_record: MakeRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [make_record(0, scene_id="s"), make_record(1, scene_id="s", split="eval")]
    write_records(rows, tmp_path)
    assert run_command(["data", "validate", str(tmp_path)]) == 2
    assert "'s' is of split 'eval' here and of 'train'" in capsys.readouterr().err


def test_training_and_evaluation_rows_must_be_of_different_scenes(
    tmp_path: Path, make_record: MakeRecord
) -> None:
    write_records((make_record(index) for index in range(6)), tmp_path / "a")
    write_records((make_record(index, scene_id=f"scene-{index + 4}") for index in range(6)), tmp_path / "b")
    message = (
        r"b/part-00000.parquet: row 0: scene_id: 'scene-4' is in data.eval .* data.train in .*row 4.*2 scenes"
    )
    with pytest.raises(DataError, match=message):
        check_apart(tmp_path / "a", tmp_path / "b")
    check_apart(tmp_path / "a", tmp_path / "b", num_train=4)
    check_apart(tmp_path / "b", tmp_path / "a", num_evaluation=4)
    check_apart(tmp_path / "a", tmp_path / "a")


def test_a_huge_speed_makes_no_endless_page(tmp_path: Path, make_record: MakeRecord) -> None:
    write_records([make_record(0), make_record(1, speed_mps=1e12)], tmp_path / "data")
    page = tmp_path / "stats.html"
    assert run_command(["data", "stats", str(tmp_path / "data"), "--out", str(page)]) == 0
    assert "4 to 6" in page.read_text()


def test_a_folder_that_another_split_is_writing_is_refused(
    drives: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = drives.parent / "parts"
    command = ["data", "split", str(drives), "--share", "eval=0.5", "--out", str(out)]
    with take_lock(out, "taken"):
        assert run_command(command) == 2
    assert "another process is splitting" in capsys.readouterr().err
    assert run_command(command) == 0
