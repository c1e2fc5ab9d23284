"""`alphadrive plan` and `--dry-run`: what is printed, the exit code, and that nothing is started."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from alphadrive import cli
from alphadrive.config import Config, load_config
from alphadrive.data.parquet import write_records
from alphadrive.data.records import DrivingRecord
from alphadrive.run_folder import RunFolder

MakeRecord = Callable[..., DrivingRecord]

DRIVE = "time_s,x_m,y_m,heading_rad,speed_mps,image\n0.0,0,0,0,5,a.png\n"
GROUP = json.dumps({"solution": "<answer> KEEP, STRAIGHT </answer>", "completions": ["a", "b"]}) + "\n"


@pytest.fixture
def data(tmp_path: Path, make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys of a configuration with data to train and evaluate on, run from a folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write_records((make_record(index) for index in range(6)), tmp_path / "train")
    held_out = (make_record(index, scene_id=f"held-out-{index}") for index in range(3))
    write_records(held_out, tmp_path / "eval")
    (tmp_path / "drives").mkdir()
    (tmp_path / "drives" / "a.csv").write_text(DRIVE)
    (tmp_path / "groups.jsonl").write_text(GROUP)
    return [f"data.train={tmp_path}/train", f"data.eval={tmp_path}/eval"]


def test_a_plan_needs_neither_model_nor_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["plan", "qwen2vl_2b_8gpu", "--rows", "110000", "--gpu", "H200"]) == 0
    shown = capsys.readouterr().out
    assert "qwen2vl-2b: grpo on 8 H200" in shown and "2,208,985,600 parameters" in shown
    assert "110,000 rows" in shown and "1,146 an epoch" in shown and "It fits." in shown
    assert list(tmp_path.iterdir()) == []
    run = RunFolder.create(load_config("demo", ["run.name=demo-seed1", "run.tensorboard=false"]))
    assert cli.run(["demo", "--dry-run", "--seed", "1"]) == 2
    assert "another process is writing" in capsys.readouterr().err
    run.close()


def test_what_does_not_fit_ends_with_1_and_says_what_would(capsys: pytest.CaptureFixture[str]) -> None:
    override = "learner.max_tokens_per_microbatch=8192"
    assert cli.run(["plan", "qwen2vl_2b_8gpu", override]) == 1
    shown = capsys.readouterr().out
    assert "It does NOT fit" in shown and "\n  learner.max_tokens_per_microbatch=6144   (" in shown


def test_json_is_all_that_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["plan", "qwen2vl_2b_8gpu", "--json", "--stage", "sft"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["stage"] == "sft" and found["advice"] == [] and found["batch"]["samples"] == 96


def test_the_rows_are_those_of_the_data_where_it_is(
    data: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["plan", "debug", *data]) == 0
    assert "6 rows" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-config"], "no configuration 'no-such-config'"),
        (["debug", "model.path=nowhere"], "model.path='nowhere': no such folder"),
        (["debug", "model.path=some/model", f"model.revision={'0' * 40}"], "no such folder, not downloaded"),
        (["debug", "learner.lora_rank=4", "learner.lora_targets=q"], "matches none of the model's"),
    ],
)
def test_what_cannot_be_planned_is_wrong_input(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["plan", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--rows", "--answer-tokens"])
def test_counts_are_whole_numbers_above_zero(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.run(["plan", "debug", option, "0"])
    assert "'0': expected a whole number of at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["sft", "grpo", "debug"])
def test_a_dry_run_checks_and_plans_and_starts_nothing(data: list[str], tmp_path: Path, command: str) -> None:
    code = (
        "import sys\n"
        "from alphadrive import cli\n"
        "code = cli.run(sys.argv[1:])\n"
        "started = sorted({'ray', 'vllm', 'deepspeed'} & set(sys.modules))\n"
        "print(code, started)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, command, "debug", "--dry-run", *data, "grpo.steps=3", "sft.steps=3"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.endswith("It fits.\n\n0 []\n"), done.stdout + done.stderr
    assert f"debug: {command} on CPU" in done.stdout and "6 rows" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "cache",
        "drives",
        "eval",
        "groups.jsonl",
        "train",
    ]


def test_a_dry_run_refuses_what_a_run_would(data: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["grpo", "debug", "--dry-run", *data, "rollout.max_model_len=200"]) == 2
    assert "more than rollout.max_model_len=200" in capsys.readouterr().err
    reward = "rewards.weights={no_such_module:reward: 1.0}"
    assert cli.run(["grpo", "debug", "--dry-run", *data, reward]) == 2
    assert "no_such_module" in capsys.readouterr().err


def earlier_run(config: Config, stage: str) -> RunFolder:
    """A run with a checkpoint, still open."""
    run = RunFolder.create(config, stage=stage)
    run.write_status({"stage": stage})
    (run.begin_checkpoint(2) / "file").write_text("x")
    run.commit_checkpoint(2)
    return run


def test_a_dry_run_finds_what_a_start_would_find_in_its_folder(
    data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [*data, f"run.root={tmp_path}/runs", "run.tensorboard=false", "grpo.steps=3"]

    def dry(*more: str) -> tuple[int, str]:
        code = cli.run(["grpo", "debug", "--dry-run", *keys, *more])
        return code, capsys.readouterr().err

    assert dry()[0] == 0 and not (tmp_path / "runs").exists()
    run = earlier_run(load_config("debug", keys), "grpo")
    assert dry("--resume")[0] == 2 and "another process is writing" in dry("--overwrite")[1]
    run.close()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*")}
    assert "--resume" in dry()[1] and dry()[0] == 2
    assert dry("--resume")[0] == dry("--overwrite")[0] == 0
    code, shown = dry("--resume", "grpo.group_size=6")
    assert code == 2 and "grpo.group_size=6: the run in" in shown
    assert cli.run(["sft", "debug", "--dry-run", "--resume", *keys]) == 2
    assert "holds a run of grpo" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*")} == before
    (tmp_path / "file").write_text("no folder")
    assert "is not ours to write in" in dry(f"run.root={tmp_path}/file")[1]
    (tmp_path / "other" / "debug").mkdir(parents=True)
    (tmp_path / "other" / "debug" / "thesis.tex").write_text("mine")
    assert "is no run folder" in dry(f"run.root={tmp_path}/other")[1]
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    assert "a run joins a cluster from one of its nodes" in dry("run.name=new")[1]


def test_a_dry_run_finds_an_earlier_run_in_the_mirror(
    data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mirror").mkdir()
    keys = [*data, "run.tensorboard=false", f"checkpoint.mirror=file://{tmp_path}/mirror"]
    config = load_config("debug", [*keys, f"run.root={tmp_path}/runs"])
    with earlier_run(config, "grpo") as run:
        assert run.mirror is not None
        run.mirror.copy(run.path, run.checkpoints.all()[0])
        assert run.mirror.copying is not None
        run.mirror.copying.result()
    asked = ["grpo", "debug", "--dry-run", *keys, f"run.root={tmp_path}/elsewhere"]
    assert cli.run(asked) == 2
    assert "holds a checkpoint of step 2 of an earlier run" in capsys.readouterr().err
    assert cli.run([*asked, "--resume"]) == cli.run([*asked, "--overwrite"]) == 0
    assert list((tmp_path / "mirror").rglob("manifest.json")) and not (tmp_path / "elsewhere").exists()


def test_a_dry_evaluation_counts_answers_and_memory(
    data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lengths = ["--max-pixels", "25088", "--max-model-len", "512", "--max-new-tokens", "64"]
    asked = [
        "eval",
        "tiny",
        str(tmp_path / "eval"),
        "--dry-run",
        "--out",
        str(tmp_path / "figures"),
        *lengths,
    ]
    assert cli.run([*asked, "--samples", "4", "--sample-rows", "2", "--ablate", "speed=none"]) == 0
    shown = capsys.readouterr().out
    assert "3 rows, 8 answers" in shown and "rollout.num_workers=1" in shown and "It fits." in shown
    assert "activations" not in shown and not (tmp_path / "figures").exists()
    # On a GPU, an H100 stands for it.
    assert cli.run([*asked, "--device", "cuda"]) == 0
    assert "KV cache of 32 sequences in 32 groups" in capsys.readouterr().out
    assert cli.run([*asked, "--max-model-len", "200"]) == 2
    assert "more than" in capsys.readouterr().err


@pytest.fixture
def nothing_is_written(tmp_path: Path) -> Iterator[None]:
    """Files of the test's folder, and when they were written, are the same behind the test."""
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    yield
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_dry_prediction_shows_what_its_engine_needs(
    tmp_path: Path, picture: Callable[..., bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "front.png"
    image.write_bytes(picture())
    asked = ["predict", "tiny", str(image), "--speed", "8", "--navigation", "straight", "--samples", "4"]
    assert cli.run([*asked, "--dry-run", "--max-model-len", "512"]) == 0
    shown = capsys.readouterr().out
    assert f"predict by tiny on {image}" in shown and "5 answers" in shown and "It fits." in shown
    assert list(tmp_path.iterdir()) == [image]


@pytest.mark.usefixtures("data", "nothing_is_written")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["data", "synth", "--num", "5", "--out", "new"],
            "new: 5 scenes of split train, seed 0 (not written)",
        ),
        (["data", "split", "train", "--share", "eval=0.5", "--out", "new"], "rows of"),
        (["data", "import", "csv", "drives", "--out", "new"], "drives has 1 units in 1 files, 0.0 MB"),
        (["model", "tiny", "--out", "new"], "new: 2600 steps of 128 on 60000 scenes, seed 0 (not made)"),
        (["score", "groups.jsonl"], "groups.jsonl: 1 groups of 2 completions in all, valid (not scored)"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_a_dry_run_of_what_makes_something_checks_and_counts_and_makes_nothing(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([*arguments, "--dry-run"]) == 0
    assert message in capsys.readouterr().out


@pytest.mark.usefixtures("data", "nothing_is_written")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data", "synth", "--num", "5", "--out", "train"], "already holds 1 shards"),
        (["data", "synth", "--num", "5", "--out", "drives/a.csv/x"], "a.csv is not ours to write in"),
        (
            ["data", "split", "train", "--share", "eval=0.5", "--out", "drives/a.csv"],
            "is not ours to write in",
        ),
        (["data", "import", "csv", "drives", "--out", "train"], "already holds 1 shards"),
        (["model", "tiny", "--out", "train"], "expected a folder that is new or empty"),
        (["model", "tiny", "--out", "drives/a.csv/x"], "is not ours to write in"),
        (["score", "drives/a.csv"], "row 0: "),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_a_dry_run_of_what_makes_something_refuses_what_the_command_would(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([*arguments, "--dry-run"]) == 2
    assert message in capsys.readouterr().err


def test_a_dry_demo_plans_both_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["demo", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "demo-sft: sft on CPU" in shown and "demo: grpo on CPU" in shown and "6,000 rows" in shown
    assert list(tmp_path.iterdir()) == []
    run = RunFolder.create(load_config("demo", ["run.name=demo-seed1", "run.tensorboard=false"]))
    assert cli.run(["demo", "--dry-run", "--seed", "1"]) == 2
    assert "another process is writing" in capsys.readouterr().err
    run.close()
