"""`alphadrive score` as a user runs it: files in, lines out, bad lines named and nothing written."""

import io
import json
import sys

import pytest

from alphadrive.cli import run

RIGHT = "<think> clear </think> <answer> ACCELERATE, STRAIGHT </answer>"
WRONG = "<think> clear </think> <answer> STOP, LEFT_TURN </answer>"
TRUTH = "<answer> ACCELERATE, STRAIGHT </answer>"


def group(*texts):
    return {"solution": TRUTH, "completions": list(texts)}


def written(tmp_path, *rows):
    file = tmp_path / "groups.jsonl"
    file.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return str(file)


def score(capsys, *arguments):
    code = run(["score", *arguments])
    captured = capsys.readouterr()
    return code, [json.loads(line) for line in captured.out.splitlines()], captured.err


def test_one_line_a_group_with_every_term_and_the_total(tmp_path, capsys):
    file = written(tmp_path, group(RIGHT, WRONG), "", group(WRONG))
    code, groups, _ = score(capsys, file)
    assert code == 0
    assert groups[0]["rewards"] == [
        {"speed": 0.9, "path": 0.8, "format": 1.0, "total": 2.7},
        {"speed": 0.0, "path": 0.0, "format": 1.0, "total": 1.0},
    ]
    assert groups[0]["advantages"] == pytest.approx([0.7071, -0.7071], abs=1e-3)
    assert groups[1]["advantages"] == [0.0]


@pytest.mark.parametrize(
    ("variant", "first"),
    [
        ("strict", (0.72, 0.64, 1.0, 2.36)),
        ("paper", (0.72, 0.64, 1.0, 2.36)),
        ("released", (1.299998, 1.199998, 1.0, 3.499996)),
    ],
)
def test_variants(tmp_path, capsys, variant, first):
    file = written(tmp_path, group(RIGHT, RIGHT))
    _, groups, _ = score(capsys, "--variant", variant, file)
    assert tuple(groups[0]["rewards"][0].values()) == pytest.approx(first, abs=1e-6)
    assert list(groups[0]["rewards"][0]) == ["speed", "path", "format", "total"]


@pytest.mark.parametrize(
    "solution",
    ["ACCELERATE, STRAIGHT", ["STOP, STRAIGHT", "ACCELERATE, STRAIGHT"], [TRUTH, "KEEP, LEFT_TURN"]],
)
def test_a_solution_is_a_plan_or_several(tmp_path, capsys, solution):
    file = written(tmp_path, {"solution": solution, "completions": [RIGHT]})
    _, groups, _ = score(capsys, file)
    assert groups[0]["rewards"][0]["total"] == pytest.approx(2.7)


def test_released_takes_a_solution_as_it_stands(tmp_path, capsys):
    file = written(tmp_path, {"solution": "ACCELERATE, STRAIGHT", "completions": [RIGHT]})
    _, groups, _ = score(capsys, "--variant", "released", file)
    assert groups[0]["rewards"] == [{"speed": 0.0, "path": 0.0, "format": 1.0, "total": 1.0}]


def test_standard_input(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(group(RIGHT))))
    assert score(capsys, "-")[0] == 0


def test_summary_shows_every_term(tmp_path, capsys):
    file = written(tmp_path, group(RIGHT, WRONG), group(RIGHT, WRONG), group(WRONG, WRONG))
    assert run(["score", "--summary", file, "rewards.weights.length=0.1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "3 groups, 6 completions; rewards differ in 2 groups"
    assert [line.split()[0] for line in lines[1:]] == ["term", "speed", "path", "format", "length", "total"]
    assert lines[2].split() == ["speed", "0.3000", "0.4243", "0.0000", "0.9000"]


def test_further_terms_see_the_situation(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "speedy.py").write_text(
        "def speedy(query, completions):\n"
        "    assert (query.navigation, query.query_id) == ('left', 'a/1')\n"
        "    return [query.speed_mps] * len(completions)\n"
    )
    row = {"solution": TRUTH, "completions": [RIGHT], "speed_mps": 8, "navigation": "left", "query_id": "a/1"}
    _, groups, _ = score(capsys, written(tmp_path, row), "rewards.weights.speedy.py:speedy=0.5")
    assert groups[0]["rewards"][0]["speedy.py:speedy"] == 4.0


GOOD = group(RIGHT)
BAD = [
    ("no JSON", "{", "no valid JSON"),
    ("a list", "[1]", "got list, expected an object"),
    ("no solution", {"completions": ["a"]}, "solution: got nothing, expected a text or a list of texts"),
    ("a number as solution", GOOD | {"solution": 3}, "solution: got 3, expected a text"),
    ("an unknown word", GOOD | {"solution": ["KEEP, FLY"]}, "solution: got 'KEEP, FLY', expected '<answer>"),
    ("no completions", {"solution": TRUTH}, "completions: got nothing, expected a list of one text or more"),
    ("one text", GOOD | {"completions": RIGHT}, "completions: got '<think>"),
    ("an empty group", GOOD | {"completions": []}, "completions: got [], expected a list"),
    ("a number in it", GOOD | {"completions": ["a", 3]}, "completions[1]: got 3, expected a text"),
    ("a null in it", GOOD | {"completions": [None]}, "completions[0]: got nothing, expected a text"),
    ("speed as text", GOOD | {"speed_mps": "fast"}, "speed_mps: got 'fast', expected a number"),
    ("speed NaN", GOOD | {"speed_mps": float("nan")}, "speed_mps: got nan"),
    ("waypoints in a row", GOOD | {"waypoints": [1, 2]}, "waypoints: got [1, 2], expected a list of [x, y]"),
    ("deeply nested", "[" * 100_000, "no valid JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "problem"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_a_bad_line_is_named_and_nothing_is_written(tmp_path, capsys, row, problem):
    file = written(tmp_path, GOOD, row, {"solution": "?", "completions": []})
    code, groups, error = score(capsys, file)
    assert (code, groups) == (2, [])
    assert f"{file}: row 1: {problem}" in error
    assert f"{file}: row 2: solution" in error and f"{file}: row 2: completions" in error


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe{}"])
def test_a_file_without_groups_is_refused(tmp_path, capsys, content):
    (tmp_path / "groups.jsonl").write_bytes(content)
    code, _, error = score(capsys, str(tmp_path / "groups.jsonl"))
    assert code == 2 and "groups.jsonl: " in error


def test_a_missing_file_and_a_folder_are_refused(tmp_path, capsys):
    for name in ("nothing.jsonl", ""):
        code, _, error = score(capsys, str(tmp_path / name))
        assert code == 2 and "cannot be read" in error


def test_a_function_that_fails_ends_the_command_with_nothing_written(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "picky.py").write_text(
        "def picky(query, completions):\n"
        "    if query.row:\n        raise ValueError('no')\n"
        "    return [1.0] * len(completions)\n"
    )
    code, groups, error = score(capsys, written(tmp_path, GOOD, GOOD), "rewards.weights.picky.py:picky=1")
    assert (code, groups) == (1, [])
    assert "query row 1: reward term 'picky.py:picky' raised ValueError: no; nothing was written" in error


def test_nothing_heavy_is_imported(tmp_path):
    import subprocess

    code = (
        "import sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('ray', 'vllm', 'torch', 'deepspeed', 'transformers', 'openai'):\n"
        "            raise ImportError(f'{name} is blocked')\n"
        "sys.meta_path.insert(0, Blocker())\n"
        "from alphadrive.cli import main\n"
        f"main(['score', {written(tmp_path, GOOD)!r}])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("field", "value"), [("speed_mps", 10**400), ("waypoints", [[10**400, 0]])], ids=["speed", "waypoints"]
)
def test_a_number_beyond_every_float_is_named(tmp_path, capsys, field, value):
    file = written(tmp_path, group(RIGHT) | {field: value})
    code, groups, error = score(capsys, file)
    assert (code, groups) == (2, []) and f"row 0: {field}: got " in error
