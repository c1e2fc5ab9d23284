"""Whole SFT runs, and the order of their rows."""

import pytest

from alphadrive.cli import run as run_command
from alphadrive.config import load_config
from cluster.row_order import uniform_order
from cluster.sft import batch_rows


def test_batches_go_through_every_epoch_without_losing_or_repeating_a_row():
    order = uniform_order(10, seed=0)
    rows = [row for step in range(1, 16) for row in batch_rows(order, 10, 4, step)]
    for start in range(0, 60, 10):
        assert sorted(rows[start : start + 10]) == list(range(10))
    assert rows[:10] != rows[10:20]


def test_a_batch_may_be_larger_than_the_dataset():
    assert sorted(batch_rows(uniform_order(3, seed=0), 3, 9, 2)) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.mark.ray
@pytest.mark.e2e
def test_one_rank_trains_and_two_go_on_from_its_checkpoint(tmp_path):
    from cluster.launch import run_sft

    assert run_command(["data", "synth", "--out", str(tmp_path / "train"), "--num", "16"]) == 0
    options = [
        f"data.train={tmp_path / 'train'}",
        f"run.root={tmp_path}",
        "run.tensorboard=false",
        "data.sampling=balanced",
        "sft.batch_size=4",
    ]
    first = run_sft(load_config("debug", [*options, "sft.steps=2", "learner.num_ranks=1"]))
    assert (first.status, first.checkpoint.step) == ("finished", 2)
    assert first.summary["sft"]["samples"] == 8
    second = run_sft(load_config("debug", [*options, "sft.steps=3", "learner.num_ranks=2"]), resume=True)
    assert (second.checkpoint.step, second.summary["attempt"]) == (3, 1)
    committed = sorted(path.name for path in (second.folder / "checkpoints").iterdir())
    assert committed == ["step_000002", "step_000003"]
