"""Run folders: made, refused, resumed; metrics and rollouts that survive a crash."""

import json
import logging
import math
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from alphadrive.config import Config, load_config, save_config
from alphadrive.errors import ConfigError, RunFolderError
from alphadrive.rollout_writer import RolloutWriter
from alphadrive.run_folder import RunFolder, read_metrics
from alphadrive.types import (
    Completion,
    DrivingQuery,
    RewardBreakdown,
    RolloutGroup,
    ScoredGroup,
    VersionSpan,
    WeightVersion,
)


@pytest.fixture
def config(tmp_path):
    config = Config()
    config.run.root = str(tmp_path / "runs")
    config.run.tensorboard = False
    return config


def test_created_folder_holds_the_resolved_configuration(config):
    config.grpo.steps = 7
    with RunFolder.create(config) as run:
        assert run.path.name == "run"
        assert run.rollouts_path.is_dir()
        assert load_config(str(run.path / "config.yaml")) == config


def test_existing_run_is_refused(config):
    RunFolder.create(config).close()
    with pytest.raises(RunFolderError, match=r"--resume.*--overwrite"):
        RunFolder.create(config)


def test_resume_keeps_what_is_there_and_says_what_changed(config, caplog):
    with RunFolder.create(config) as run:
        run.write_metrics(1, {"a": 1.0})
    config.grpo.steps = 999
    with caplog.at_level(logging.WARNING), RunFolder.create(config, resume=True) as run:
        assert read_metrics(run.metrics_path)[0]["a"] == 1.0
    assert "another grpo.steps: it was 100, now 999" in caplog.text


def test_resume_of_nothing_starts(config):
    with RunFolder.create(config, resume=True) as run:
        assert run.latest_checkpoint() is None


def test_overwrite_removes_the_old_run(config):
    with RunFolder.create(config) as run:
        run.write_metrics(1, {"a": 1.0})
    with RunFolder.create(config, overwrite=True) as run:
        assert not run.metrics_path.exists()


@pytest.mark.parametrize("how", [{"resume": True}, {"overwrite": True}])
def test_folder_that_is_no_run_is_never_touched(config, tmp_path, how):
    precious = tmp_path / "runs" / "run" / "thesis.tex"
    precious.parent.mkdir(parents=True)
    precious.write_text("years of work")
    with pytest.raises(RunFolderError, match="no run folder"):
        RunFolder.create(config, **how)
    assert precious.read_text() == "years of work"


def test_resume_and_overwrite_exclude_each_other(config):
    with pytest.raises(RunFolderError, match="exclude each other"):
        RunFolder.create(config, resume=True, overwrite=True)


def test_unwritable_root_is_an_input_error(config, tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(RunFolderError, match="cannot write"):
        RunFolder.create(config)


def test_metrics_of_one_step_are_merged_and_numbers_not_finite_become_null(config):
    with RunFolder.create(config) as run:
        run.write_metrics(1, {"loss": 0.5, "bad": math.nan})
        run.write_metrics(2, {"loss": 0.25})
        run.write_metrics(1, {"val/planning_accuracy": 0.75})
        first, second = read_metrics(run.metrics_path)
    assert (first["loss"], first["bad"], first["val/planning_accuracy"]) == (0.5, None, 0.75)
    assert (second["step"], second["loss"]) == (2, 0.25)


def test_line_cut_off_by_a_crash_costs_that_line_only(config):
    with RunFolder.create(config) as run:
        run.write_metrics(1, {"loss": 0.5})
        with run.metrics_path.open("a") as file:
            file.write('{"step": 2, "lo')
    with RunFolder.create(config, resume=True) as run:
        run.write_metrics(3, {"loss": 0.1})
        assert [line["step"] for line in read_metrics(run.metrics_path)] == [1, 3]


def test_summary_and_status_are_whole_json(config):
    with RunFolder.create(config) as run:
        run.write_summary({"grpo": {"gain": 0.1}})
        run.write_status({"state": "training", "step": 3})
        run.write_status({"state": "done", "step": 4})
        assert json.loads(run.summary_path.read_text()) == {"grpo": {"gain": 0.1}}
        assert json.loads(run.status_path.read_text())["state"] == "done"
        with pytest.raises(ValueError, match="not JSON compliant"):
            run.write_summary({"gain": math.nan})
        assert json.loads(run.summary_path.read_text()) == {"grpo": {"gain": 0.1}}
        assert [path.name for path in run.path.glob(".*")] == [".lock"]


def test_tensorboard_holds_the_same_numbers_and_needs_no_torch(config):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config.run.tensorboard = True
    with RunFolder.create(config) as run:
        run.write_metrics(1, {"actor/loss": 0.5, "bad": math.inf})
        run.write_metrics(2, {"actor/loss": 0.25})
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("actor/loss")] == [(1, 0.5), (2, 0.25)]
    assert events.Tags()["scalars"] == ["actor/loss"]


def test_wandb_asked_for_but_missing_is_an_input_error(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config.run.wandb_project = "driving"
    with pytest.raises(ConfigError, match=r"run\.wandb_project='driving'.*pip install wandb"):
        RunFolder.create(config)


def scored_group(ticket):
    span = VersionSpan(version=WeightVersion(0, 3), start=0, end=2)
    completions = tuple(
        Completion(
            text=text,
            token_ids=(5, 6),
            rollout_logprobs=(-0.5, -0.25),
            finish_reason="stop",
            weight_versions=(span,),
        )
        for text in ("first", "second")
    )
    query = DrivingQuery(
        query_id=f"q{ticket}", row=ticket, speed_mps=4.5, navigation="turn left", plans=("KEEP, STRAIGHT",)
    )
    group = RolloutGroup(
        ticket=ticket, query=query, prompt_token_ids=(1, 2), completions=completions, engine_id="e1"
    )
    rewards = (
        RewardBreakdown(terms={"speed": 0.5, "format": 1.0}, total=1.5),
        RewardBreakdown(terms={"speed": 0.0, "format": 1.0}, total=1.0),
    )
    return ScoredGroup(group=group, rewards=rewards, advantages=(0.7, -0.7))


def test_every_group_comes_back_from_disk(tmp_path):
    with RolloutWriter(tmp_path, "w0", groups_per_part=2) as writer:
        for ticket in range(5):
            writer.write(scored_group(ticket))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"w0-0000{part}.parquet" for part in range(3)]
    rows = pq.read_table(tmp_path).to_pylist()
    assert [row["ticket"] for row in rows] == [0, 1, 2, 3, 4]
    row = rows[3]
    assert (row["query_id"], row["row"], row["plans"], row["engine_id"]) == (
        "q3",
        3,
        ["KEEP, STRAIGHT"],
        "e1",
    )
    assert dict(row["reward_terms"]) == {"speed": [0.5, 0.0], "format": [1.0, 1.0]}
    assert (row["texts"], row["advantages"]) == (["first", "second"], [0.7, -0.7])
    assert (row["weight_version"], row["versions"]) == ("0.3", ["0.3", "0.3"])
    assert (row["token_ids"], row["rollout_logprobs"]) == ([[5, 6]] * 2, [[-0.5, -0.25]] * 2)


def test_crash_costs_at_most_the_part_not_yet_written(tmp_path):
    writer = RolloutWriter(tmp_path, "w0", groups_per_part=2)
    for ticket in range(5):
        writer.write(scored_group(ticket))
    del writer
    assert pq.read_table(tmp_path)["ticket"].to_pylist() == [0, 1, 2, 3]


def test_restarted_writer_overwrites_nothing(tmp_path):
    for ticket in range(3):
        with RolloutWriter(tmp_path, "w0") as writer:
            writer.write(scored_group(ticket))
    with RolloutWriter(tmp_path, "w1") as writer:
        writer.write(scored_group(3))
    assert sorted(pq.read_table(tmp_path)["ticket"].to_pylist()) == [0, 1, 2, 3]


def test_slow_trickle_is_written_by_time(tmp_path):
    writer = RolloutWriter(tmp_path, "w0", max_wait_s=0.0)
    writer.write(scored_group(0))
    writer.write(scored_group(1))
    assert pq.read_table(tmp_path)["ticket"].to_pylist() == [0, 1]


def test_run_that_another_process_writes_is_refused(config):
    hold = (
        "import sys; from alphadrive.config import load_config; from alphadrive.run_folder import RunFolder\n"
        "run = RunFolder.create(load_config(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    written = Path(config.run.root).parent / "config.yaml"
    save_config(config, written)
    command = [sys.executable, "-c", hold, str(written)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        for way in ({"overwrite": True}, {"resume": True}):
            with pytest.raises(RunFolderError, match="another process is writing this run"):
                RunFolder.create(config, **way)
        assert (Path(config.run.root) / "run" / "config.yaml").is_file()
        holder.kill()
        holder.wait()
        RunFolder.create(config, overwrite=True).close()


def test_folder_that_is_no_run_is_left_alone(config):
    folder = Path(config.run.root) / "run"
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("three years")
    with pytest.raises(RunFolderError, match="no run folder"):
        RunFolder.create(config, overwrite=True)
    assert [entry.name for entry in folder.iterdir()] == ["thesis.txt"]
