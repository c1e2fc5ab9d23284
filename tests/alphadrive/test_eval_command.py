"""`alphadrive eval` without an engine: files of answers, their faults, the folder of results."""

import json

import pytest

from alphadrive import cli
from alphadrive.atomic import write_json
from alphadrive.data.parquet import write_records

RIGHT = "<think> Red light ahead, so stop. </think> <answer> STOP, STRAIGHT </answer>"
WRONG = "<think> Free road. </think> <answer> ACCELERATE, STRAIGHT </answer>"


@pytest.fixture
def data(tmp_path, make_record):
    """Four rows where stopping is right, two of them with a reasoning."""
    reasonings = ("Red light ahead, so stop.", "The road is blocked, so stop.", None, None)
    records = [
        make_record(index, plans=("STOP, STRAIGHT",), reasoning=reasoning)
        for index, reasoning in enumerate(reasonings)
    ]
    write_records(records, tmp_path / "data")
    return tmp_path / "data"


def line(index, **values):
    return json.dumps({"query_id": f"query-{index}", **values})


def written(path, *lines):
    path.write_text("".join(f"{one}\n" for one in lines))
    return str(path)


def test_strict_figures_stand_at_the_top_and_the_released_rule_apart(tmp_path, data, capsys):
    answers = [line(0, text=RIGHT), line(2, text=WRONG), line(1, text=RIGHT), line(3, text="STOP, STRAIGHT")]
    file = written(tmp_path / "said.jsonl", *answers)
    assert cli.run(["eval", "--predictions", file, str(data), "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "planning accuracy (95 % interval)" in shown and "50.0 %" in shown
    content = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert next(iter(content)) == "planning_accuracy"
    assert content["planning_accuracy"] == 0.5
    assert content["invalid_rate"] == 0.25
    assert content["missed_brake_rate"] == 0.25
    assert content["severity_cost"] == 0.5
    assert content["confusion"]["speed"]["STOP"]["invalid"] == 1
    assert content["reasoning"]["num_rows"] == 2
    assert content["samples"] is None and content["choices"] is None
    assert content["released"]["planning_accuracy"] == 0.75
    assert (tmp_path / "out" / "eval.txt").read_text() == shown[: shown.index("wrote ")]
    lines = [json.loads(text) for text in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [(one["row"], one["plan"], one["is_acceptable"]) for one in lines] == [
        (0, "STOP, STRAIGHT", True),
        (1, "STOP, STRAIGHT", True),
        (2, "ACCELERATE, STRAIGHT", False),
        (3, None, False),
    ]


def test_samples_give_variety_and_choices_beside_the_answer(tmp_path, data):
    drawn = [RIGHT, WRONG, WRONG, "?"]
    answers = [line(index, text=WRONG, texts=drawn) for index in range(2)]
    answers += [line(index, text=RIGHT) for index in (2, 3)]
    file = written(tmp_path / "said.jsonl", *answers)
    assert cli.run(["eval", "--predictions", file, "--out", str(tmp_path / "out"), str(data)]) == 0
    content = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert content["planning_accuracy"] == 0.5
    assert content["samples"]["num_rows"] == 2
    assert content["samples"]["pass_at"] == {"1": 0.25, "2": 0.5, "4": 1.0}
    assert content["choices"]["answer"]["planning_accuracy"] == 0.0
    assert content["choices"]["majority_vote"]["planning_accuracy"] == 0.0
    assert content["choices"]["risk_averse"]["planning_accuracy"] == 1.0
    assert content["choices"]["risk_averse"]["gain"] == 1.0


def test_first_of_samples_alone_is_the_answer(tmp_path, data):
    file = written(tmp_path / "said.jsonl", *(line(index, texts=[WRONG, RIGHT]) for index in range(4)))
    assert cli.run(["eval", "--predictions", file, str(data), "--out", str(tmp_path / "out")]) == 0
    content = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert (content["planning_accuracy"], content["samples"]["pass_at"]["2"]) == (0.0, 1.0)


def test_written_answers_can_be_read_again_to_the_same_figures(tmp_path, data):
    file = written(
        tmp_path / "said.jsonl", *(line(index, text=WRONG, texts=[RIGHT, "?"]) for index in range(4))
    )
    for source, out in ((file, "a"), (str(tmp_path / "a" / "predictions.jsonl"), "b")):
        assert cli.run(["eval", "--predictions", source, str(data), "--out", str(tmp_path / out)]) == 0
    first, second = (json.loads((tmp_path / out / "eval.json").read_text()) for out in "ab")
    assert first.pop("source") != second.pop("source")
    assert first == second
    before, after = ((tmp_path / out / "predictions.jsonl").read_bytes() for out in "ab")
    assert before == after


GOOD = [line(index, text=RIGHT) for index in range(4)]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "empty, expected one line for every row"),
        (GOOD[:2], "query_id: no answer to 2 of 4 rows of the dataset ('query-2', 'query-3')"),
        ([*GOOD, GOOD[1]], "line 5: query_id: 'query-1' is also on line 2"),
        ([*GOOD, line(9, text="x")], "line 5: query_id: 'query-9' is in no row of the dataset"),
        (["{", *GOOD], "line 1: no JSON"),
        (["[" * 100_000, *GOOD], "line 1: no JSON"),
        (["7", *GOOD], "line 1: got int, expected an object with query_id and text or texts"),
        ([*GOOD[:3], '{"query_id": 3, "text": "x"}'], "line 4: query_id: got 3, expected a text"),
        ([*GOOD[:3], '{"text": "x"}'], "line 4: query_id: got None, expected a text"),
        ([*GOOD[:3], line(3)], "line 4: text: missing"),
        ([*GOOD[:3], line(3, text=None)], "line 4: text: got NoneType, expected a text"),
        ([*GOOD[:3], line(3, text="x", texts=[])], "line 4: texts: expected a list of at least one text"),
        ([*GOOD[:3], line(3, text="x", texts=["a", 1])], "line 4: texts: expected a list"),
        ([*GOOD[:3], line(3, texts=["a"])], "line 4: text: no text here but one on line 1"),
        (
            [line(0, texts=["a"]), line(1, texts=["a", "b"]), *GOOD[2:]],
            "line 2: texts: got 2 samples, expected 1 as on line 1",
        ),
    ],
)
def test_faulty_answers_are_refused_by_line(tmp_path, data, capsys, lines, message):
    file = written(tmp_path / "said.jsonl", *lines)
    assert cli.run(["eval", "--predictions", file, str(data), "--out", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr()
    assert f"{file}: {message}" in shown.err
    assert "Traceback" not in shown.err and shown.out == ""
    assert not (tmp_path / "out" / "eval.json").exists()


def test_all_problems_of_a_file_are_reported_at_once(tmp_path, data, capsys):
    lines = [line(0, text=1), line(9, text="x"), line(1, text="x"), line(1, text="y")]
    file = written(tmp_path / "said.jsonl", *lines)
    assert cli.run(["eval", "--predictions", file, str(data)]) == 2
    assert capsys.readouterr().err.splitlines()[1:] == [
        f"{file}: line 1: text: got int, expected a text",
        f"{file}: line 2: query_id: 'query-9' is in no row of the dataset",
        f"{file}: line 4: query_id: 'query-1' is also on line 3; expected once",
        f"{file}: query_id: no answer to 2 of 4 rows of the dataset ('query-2', 'query-3'); "
        "expected one line for every row",
    ]


def test_bytes_that_are_no_text_and_files_that_are_not_there(tmp_path, data, capsys):
    (tmp_path / "said.jsonl").write_bytes(b'{"query_id": "\xff\xfe"}\n')
    assert cli.run(["eval", "--predictions", str(tmp_path / "said.jsonl"), str(data)]) == 2
    assert "line 1: no JSON" in capsys.readouterr().err
    assert cli.run(["eval", "--predictions", str(tmp_path / "none.jsonl"), str(data)]) == 2
    assert "none.jsonl: cannot be read: No such file" in capsys.readouterr().err
    assert cli.run(["eval", "--predictions", str(tmp_path), str(data)]) == 2
    assert "cannot be read: Is a directory" in capsys.readouterr().err


def test_rows_whose_plans_cannot_be_read_are_named(tmp_path, make_record, capsys):
    records = [
        make_record(0),
        make_record(1, plans=("FLY, STRAIGHT",)),
        make_record(2, plans=()),
        make_record(0),
        make_record(3, plans=None),
    ]
    write_records(records, tmp_path / "data")
    file = written(tmp_path / "said.jsonl", *(line(index, text=RIGHT) for index in range(3)))
    assert cli.run(["eval", "--predictions", file, str(tmp_path / "data")]) == 2
    shown = capsys.readouterr().err
    assert "part-00000.parquet: row 1: plans[0]: got 'FLY, STRAIGHT'" in shown
    assert "part-00000.parquet: row 2: plans: empty" in shown
    assert "part-00000.parquet: row 3: query_id: 'query-0' is also in row 0" in shown
    assert "part-00000.parquet: row 4: plans: empty" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samples", "4"], "--samples: an option for drawing answers"),
        (["--num-rows", "2"], "--num-rows: an option for drawing answers"),
        (["--ablate", "speed=none"], "--ablate: an option for drawing answers"),
        (["--max-pixels", "5000"], "--max-pixels: an option for drawing answers"),
    ],
)
def test_options_of_an_engine_are_refused_with_answers_from_a_file(
    tmp_path, data, capsys, arguments, message
):
    file = written(tmp_path / "said.jsonl", *GOOD)
    assert cli.run(["eval", "--predictions", file, str(data), *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("operands", [["tiny"], ["--predictions", "x.jsonl", "tiny", "data"]])
def test_operands_must_be_model_and_data_or_data_alone(capsys, operands):
    with pytest.raises(SystemExit) as ended:
        cli.run(["eval", *operands])
    assert ended.value.code == 2
    assert "expected MODEL DATA, or --predictions FILE and DATA" in capsys.readouterr().err


def test_operands_may_stand_apart():
    args = cli.parse_arguments(["eval", "tiny", "--samples", "2", "data", "--seed", "3"])
    assert (args.operands, args.samples, args.seed) == (["tiny", "data"], 2, 3)


def test_folder_that_cannot_be_written_to_is_found_before_anything_starts(tmp_path, data, capsys):
    blocked = written(tmp_path / "file", "not a folder")
    for arguments in (
        ["tiny", str(data)],
        ["--predictions", written(tmp_path / "p.jsonl", *GOOD), str(data)],
    ):
        assert cli.run(["eval", *arguments, "--out", f"{blocked}/out"]) == 2
        assert "cannot be written to (Not a directory)" in capsys.readouterr().err
        # A folder that is there and takes no file, from root neither.
        assert cli.run(["eval", *arguments, "--out", "/proc"]) == 2
        assert "--out /proc: cannot be written to" in capsys.readouterr().err


def test_second_evaluation_replaces_the_first_whole(tmp_path, data):
    out = tmp_path / "out"
    out.mkdir()
    (out / "predictions-image-blank.jsonl").write_text("of an earlier evaluation\n")
    (out / "notes.md").write_text("mine")
    write_json(out / "eval.json", {"planning_accuracy": 1.0})
    file = written(tmp_path / "said.jsonl", *GOOD[:3], line(3, text=WRONG))
    assert cli.run(["eval", "--predictions", file, str(data), "--out", str(out)]) == 0
    names = sorted(path.name for path in out.iterdir())
    assert names == ["eval.json", "eval.txt", "notes.md", "predictions.jsonl"]
    assert json.loads((out / "eval.json").read_text())["planning_accuracy"] == 0.75


@pytest.mark.parametrize("name", ["predictions.jsonl", "predictions-image-blank.jsonl"])
def test_file_of_answers_in_the_folder_of_results_stays_as_it_is(tmp_path, data, name):
    file = written(tmp_path / name, *GOOD)
    assert cli.run(["eval", "--predictions", file, str(data), "--out", str(tmp_path)]) == 0
    assert (tmp_path / name).read_text().splitlines() == GOOD
    assert json.loads((tmp_path / "eval.json").read_text())["planning_accuracy"] == 1.0
