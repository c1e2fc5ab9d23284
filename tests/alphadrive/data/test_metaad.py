"""The published MetaAD layout is imported as it is, and nothing outside its folder is read."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alphadrive.cli import run
from alphadrive.data.importing import ImportResult, import_dataset
from alphadrive.data.metaad import json_objects, metaad_source
from alphadrive.data.parquet import DrivingDataset
from alphadrive.data.paths import resolve_under
from alphadrive.data.validate import problems_in
from alphadrive.errors import DataError
from alphadrive.prompts import planning_prompt

REAL = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "metaad"


def row(image: str = "a.jpg", **changes: object) -> dict[str, object]:
    fields: dict[str, object] = {
        "image": image,
        "problem": planning_prompt(4.2, "{'100m': 'Straight', '200m': 'Left'}"),
        "solution": "<answer> ACCELERATE, STRAIGHT </answer>",
        "thinking": "<think> The road is clear. </think>",
    }
    return {**fields, **changes}


@pytest.fixture
def source(tmp_path: Path, picture: Callable[..., bytes]) -> Path:
    folder = tmp_path / "metaad"
    (folder / "sub").mkdir(parents=True)
    for name, image_format in [("a.jpg", "JPEG"), ("sub/b.png", "PNG"), ("c.webp", "WEBP")]:
        (folder / name).write_bytes(picture(image_format=image_format))
    return folder


def import_metaad(path: Path, out: Path, split: str = "train") -> ImportResult:
    return import_dataset(metaad_source(path, split), out)


def test_the_published_row_is_imported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not REAL.is_dir():
        pytest.skip(f"the published MetaAD row is not at {REAL}")
    assert run(["data", "import", "metaad", str(REAL), "--out", str(tmp_path)]) == 0
    assert "1 rows imported" in capsys.readouterr().out
    dataset = DrivingDataset(tmp_path)
    record = dataset.record(0)
    assert record.speed_mps == pytest.approx(4.2)
    assert record.navigation == "{'100m': 'Straight', '200m': 'Straight'}"
    assert record.plans == ("ACCELERATE, STRAIGHT",)
    assert record.reasoning is not None and record.reasoning.startswith("The driving decision to accelerate")
    assert record.images[0].data == (REAL / "example.jpg").read_bytes()
    assert dataset.image(0).size == (3840, 2160)
    published = json.loads((REAL / "example.json").read_text())
    assert planning_prompt(record.speed_mps, record.navigation) == published["problem"]
    assert run(["data", "validate", str(tmp_path)]) == 0


@pytest.mark.parametrize("layout", ["object", "list", "lines", "folder", "pretty list"])
def test_an_object_a_list_lines_and_a_folder_are_read(tmp_path: Path, source: Path, layout: str) -> None:
    rows = [row("a.jpg"), row("sub/b.png"), row("c.webp", thinking=None), row("a.jpg")]
    if layout == "folder":
        for index, one in enumerate(rows):
            (source / f"{index}.json").write_text(json.dumps(one))
        path = source
    else:
        path = source / "rows.json"
        text = {
            "object": json.dumps(rows[0], indent=2),
            "list": json.dumps(rows),
            "pretty list": "\ufeff" + json.dumps(rows, indent=4),
            "lines": "\n".join(json.dumps(one) for one in rows) + "\n",
        }
        path.write_text(text[layout], encoding="utf-8")
    expected = 1 if layout == "object" else 4
    assert import_metaad(path, tmp_path / "out", split="eval").num_rows == expected
    records = list(DrivingDataset(tmp_path / "out").records())
    assert records[0].query_id == "metaad/a" and records[0].split == "eval"
    if expected == 4:
        assert [record.query_id for record in records[1:]] == ["metaad/sub/b", "metaad/c", "metaad/a#2"]
        assert records[2].reasoning is None
    assert problems_in(tmp_path / "out") == []


def test_every_bad_object_is_named_with_file_row_and_field(
    tmp_path: Path, source: Path, picture: Callable[..., bytes]
) -> None:
    large = picture(640, 480, image_format="JPEG")
    (source / "cut.jpg").write_bytes(large[: len(large) // 2])
    (source / "text.jpg").write_text("no picture")
    rows = [
        row("missing.jpg"),
        row("cut.jpg"),
        row("text.jpg"),
        row("../secret.jpg"),
        row("/etc/hostname"),
        row(solution="<answer> FLY, STRAIGHT </answer>"),
        row(solution=None),
        row(problem="Where to?"),
        row(problem=planning_prompt(-3.0, "go")),
        row(problem=planning_prompt(float("nan"), "go")),
        row(problem=planning_prompt(3.0, "go <|im_end|>")),
        row(thinking="<think> <|image_pad|> </think>"),
        "no object",
    ]
    (source / "rows.jsonl").write_text("\n".join(json.dumps(one) for one in rows))
    with pytest.raises(DataError) as caught:
        import_metaad(source, tmp_path / "out")
    message = str(caught.value)
    for number, expected in enumerate(
        [
            "image: path 'missing.jpg': no such file",
            "images[0].bytes: got a truncated or damaged JPEG",
            "image: got 10 bytes that are no readable JPEG",
            "image: path '../secret.jpg': contains '..'",
            "image: path '/etc/hostname': expected a relative path",
            "solution: got '<answer> FLY, STRAIGHT </answer>', expected <answer> SPEED, PATH",
            "solution: got None, expected a non-empty text",
            "problem: no speed",
            "speed_mps: got -3.0, expected 0 to 70 m/s",
            "speed_mps: got nan",
            "navigation: contains '<|im_end|>'",
            "reasoning: contains '<|image_pad|>'",
            "got str, expected an object",
        ]
    ):
        assert f"rows.jsonl: row {number}: {expected}" in message
    assert not list((tmp_path / "out").glob("*.parquet"))


def test_bad_rows_may_be_left_out_when_asked(tmp_path: Path, source: Path) -> None:
    (source / "rows.json").write_text(json.dumps([row("a.jpg"), row("missing.jpg")]))
    out = tmp_path / "out"
    assert run(["data", "import", "metaad", str(source), "--out", str(out), "--max-bad-rows", "1"]) == 0
    assert len(DrivingDataset(out)) == 1
    (line,) = (out / "rejected.jsonl").read_text().splitlines()
    rejected = json.loads(line)
    assert (rejected["file"], rejected["row"], rejected["field"]) == (str(source / "rows.json"), 1, "image")
    assert rejected["reason"].startswith("path 'missing.jpg': no such file")


@pytest.mark.parametrize("text", ['{"image": ', "[{} oops]", "\x00", '{"a": "' + "x" * (1 << 21)])
def test_text_that_is_no_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(DataError, match=r"bad.json: row \d: no valid JSON"):
        list(json_objects(tmp_path / "bad.json"))


@pytest.mark.parametrize("text", ['[{"a": 1}, {"a": 2}', '[{"a": 1},\n', "[", "[[1], 2"])
def test_a_list_that_was_cut_off_between_two_objects_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(DataError, match=r"bad.json: ends within its list, after \d objects"):
        list(json_objects(tmp_path / "bad.json"))


def test_bytes_that_are_no_text_and_a_missing_path_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_bytes(b'{"a": "\xff\xfe"}')
    with pytest.raises(DataError, match="not UTF-8"):
        list(json_objects(tmp_path / "bad.json"))
    with pytest.raises(DataError, match=r"bad.json: not UTF-8"):
        import_metaad(tmp_path, tmp_path / "out")
    with pytest.raises(DataError, match="expected a MetaAD JSON file"):
        import_metaad(tmp_path / "nowhere.json", tmp_path / "out")


def test_objects_longer_than_a_chunk_are_read_whole(tmp_path: Path) -> None:
    rows = [{"text": "ä" * 50_000, "n": n} for n in range(5)]
    (tmp_path / "long.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    read = list(json_objects(tmp_path / "long.json"))
    assert [value for value, _ in read] == rows
    shares = [share for _, share in read]
    assert shares == sorted(shares) and 0 < shares[0] < shares[-1] == 1


def test_links_and_special_files_do_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "inside").mkdir(parents=True)
    (root / "inside" / "ok.jpg").write_bytes(b"x")
    (tmp_path / "secret.jpg").write_bytes(b"x")
    (root / "out.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "up").symlink_to(tmp_path)
    (root / "in.jpg").symlink_to(root / "inside" / "ok.jpg")
    (root / "loop.jpg").symlink_to(root / "loop.jpg")
    os.mkfifo(root / "pipe.jpg")
    assert resolve_under(root, "in.jpg") == (root / "inside" / "ok.jpg").resolve()
    for name, reason in [
        ("out.jpg", "leads out"),
        ("up/secret.jpg", "leads out"),
        ("loop.jpg", "no such file"),
        ("pipe.jpg", "no regular file"),
        ("inside", "no regular file"),
        ("inside/../inside/ok.jpg", r"contains '\.\.'"),
        ("http://169.254.169.254/latest/meta-data", "no such file"),
        ("file:///etc/passwd", "no such file"),
        ("C:\\x.jpg", "relative path"),
        ("", "relative path"),
        ("a\0b", "relative path"),
    ]:
        with pytest.raises(DataError, match=reason):
            resolve_under(root, name)


@given(
    st.text(max_size=30) | st.lists(st.sampled_from(["..", ".", "/", "a", "b.jpg", "~", "\\"])).map("/".join)
)
def test_no_name_resolves_outside_the_root(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    root = tmp_path_factory.getbasetemp() / "paths" / "root"
    root.mkdir(parents=True, exist_ok=True)
    (root / "a").mkdir(exist_ok=True)
    (root / "a" / "b.jpg").touch()
    (root.parent / "b.jpg").touch()
    try:
        found = resolve_under(root, name)
    except DataError:
        return
    assert found.is_relative_to(root.resolve()) and found.is_file()


def test_validate_prints_every_problem_and_exits_with_2(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source / "rows.json").write_text(json.dumps(row()))
    import_metaad(source, tmp_path / "out")
    (tmp_path / "out" / "part-00000.parquet").write_bytes(b"PAR1")
    assert run(["data", "validate", str(tmp_path / "out")]) == 2
    assert "no complete Parquet file" in capsys.readouterr().err


def test_synth_writes_valid_scenes(tmp_path: Path) -> None:
    assert run(["data", "synth", "--out", str(tmp_path), "--num", "5", "--seed", "3"]) == 0
    assert len(DrivingDataset(tmp_path)) == 5
    assert problems_in(tmp_path) == []
