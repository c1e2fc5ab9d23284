"""A resumed run's records: what was written after the checkpoint goes, all else stays."""

import errno
import json
import os
from contextlib import suppress

import pyarrow.parquet as pq
import pytest
from file_faults import Killed, fault_at
from test_run_folder import scored_group

from alphadrive.config import Config
from alphadrive.rollout_writer import RolloutWriter
from alphadrive.run_folder import LEDGER_FILE, RunFolder, read_metrics


@pytest.fixture
def config(tmp_path):
    config = Config()
    config.run.root, config.run.tensorboard = str(tmp_path / "runs"), False
    return config


def commit(run, step, next_ticket, open_tickets=()):
    folder = run.begin_checkpoint(step)
    ledger = {"next_ticket": next_ticket, "open_tickets": list(open_tickets)}
    (folder / LEDGER_FILE).write_text(json.dumps(ledger))
    run.commit_checkpoint(step)


def write_run(run):
    """Four steps of two groups; a checkpoint after the second, when ticket 3 was still under way."""
    for step in range(1, 5):
        run.write_metrics(step, {"loss": 1 / step})
    with RolloutWriter(run.rollouts_path, "w0", groups_per_part=3) as writer:
        for ticket in (0, 1, 2, 3, 4, 5, 6, 7, 8):
            writer.write(scored_group(ticket))
    (run.path / "nonfinite").mkdir()
    for step in (2, 3):
        (run.path / "nonfinite" / f"step_00000{step}.json").write_text("{}")
    commit(run, 2, next_ticket=5, open_tickets=[3])
    commit(run, 4, next_ticket=9)


def tickets(run):
    return sorted(pq.read_table(run.rollouts_path)["ticket"].to_pylist())


def check_rewound(run):
    assert [line["step"] for line in read_metrics(run.metrics_path)] == [1, 2]
    assert tickets(run) == [0, 1, 2, 4]
    assert [path.name for path in (run.path / "nonfinite").iterdir()] == ["step_000002.json"]
    assert [checkpoint.step for checkpoint in run.checkpoints.all()] == [2]


def test_what_came_after_the_checkpoint_goes(config):
    with RunFolder.create(config) as run:
        write_run(run)
        run.rewind(2)
        check_rewound(run)
        rows = pq.read_table(run.rollouts_path).sort_by("ticket").to_pylist()
        assert rows[3] | {"time_s": 0} == pq.read_table(run.rollouts_path).to_pylist()[3] | {"time_s": 0}
        assert rows[3]["texts"] == ["first", "second"] and rows[3]["query_id"] == "q4"
        assert sorted(path.name for path in run.rollouts_path.iterdir()) == [
            "w0-00000.parquet",
            "w0-00001.parquet",
        ]


def test_rewinding_to_where_the_run_is_changes_nothing(config):
    with RunFolder.create(config) as run:
        write_run(run)
        before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()}
        run.rewind(4)
        assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()} == before


def test_without_a_checkpoint_everything_goes(config):
    with RunFolder.create(config) as run:
        run.write_metrics(1, {"loss": 1.0})
        with RolloutWriter(run.rollouts_path, "w0") as writer:
            writer.write(scored_group(0))
        run.rewind(0)
        assert read_metrics(run.metrics_path) == []
        assert list(run.rollouts_path.iterdir()) == []


def test_killed_at_any_operation_the_next_attempt_takes_the_rest_back(config):
    for number in range(200):
        config.run.name = f"run-{number}"
        with RunFolder.create(config) as run:
            write_run(run)
            with fault_at(number) as state, suppress(Killed):
                run.rewind(2)
        with RunFolder.create(config, resume=True) as run:
            # Found again, unless it was killed before the later checkpoint was put aside.
            if run.latest_checkpoint().step == 2:
                run.rewind(2)
                check_rewound(run)
        if not state.was_hit:
            break
    assert 10 < number < 199


def test_killed_at_any_operation_of_making_a_folder_it_can_be_resumed(config):
    for number in range(50):
        config.run.name = f"run-{number}"
        with fault_at(number) as state, suppress(Killed):
            RunFolder.create(config, resume=True).close()
        with RunFolder.create(config, resume=True) as run:
            assert run.rollouts_path.is_dir()
        if not state.was_hit:
            break
    assert 5 < number < 49


def test_files_of_killed_writers_are_handled(config, caplog):
    with RunFolder.create(config) as run:
        write_run(run)
        (run.rollouts_path / ".w1-00000.parquet.17.tmp").write_bytes(b"PAR1 half")
        cut = run.rollouts_path / "w1-00000.parquet"
        cut.write_bytes((run.rollouts_path / "w0-00000.parquet").read_bytes()[:200])
    with RunFolder.create(config, resume=True) as run:
        assert not list(run.rollouts_path.glob(".*.tmp"))
        run.rewind(2)
        assert tickets(run) == [0, 1, 2, 4]
    assert "w1-00000.parquet: cannot be read, put aside" in caplog.text


def test_a_line_that_a_crash_cut_goes(config):
    with RunFolder.create(config) as run:
        write_run(run)
        with run.metrics_path.open("a") as file:
            file.write('{"step": 1, "loss"')
    with RunFolder.create(config, resume=True) as run:
        run.rewind(4)
        assert len(run.metrics_path.read_text().splitlines()) == 4


def test_tensorboard_leaves_out_what_came_after_the_checkpoint(config):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config.run.tensorboard = True
    with RunFolder.create(config) as run:
        write_run(run)
    with RunFolder.create(config, resume=True) as run:
        run.rewind(2)
        run.write_metrics(3, {"loss": 0.125})
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 0.5), (3, 0.125)]


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_metrics_that_a_full_disk_does_not_take_are_written_later(config, monkeypatch, caplog):
    with RunFolder.create(config) as run:
        run.write_metrics(1, {"loss": 1.0})
        with fault_at(0, full, lasts=True):
            run.write_metrics(2, {"loss": 0.5})
            run.write_metrics(3, {"loss": 0.25})
            run.write_status({"step": 3})
        assert "2 lines wait to be written: [Errno 28]" in caplog.text
        assert [line["step"] for line in read_metrics(run.metrics_path)] == [1]
        run.write_metrics(4, {"loss": 0.125})
        assert [line["step"] for line in read_metrics(run.metrics_path)] == [1, 2, 3, 4]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_line_written_in_part_is_taken_back(config):
    with RunFolder.create(config) as run:
        run.write_metrics(1, {"loss": 1.0})
        kept = run.metrics_path.rename(run.path / "kept")
        run.metrics_path.symlink_to("/dev/full")
        run.write_metrics(2, {"loss": 0.5})
        run.metrics_path.unlink()
        kept.rename(run.metrics_path)
    assert [line["step"] for line in read_metrics(run.metrics_path)] == [1, 2]


def test_rollouts_that_a_full_disk_does_not_take_are_written_later(tmp_path, monkeypatch, caplog):
    writer = RolloutWriter(tmp_path, "w0", groups_per_part=2)
    with monkeypatch.context() as patched:
        patched.setattr(pq, "write_table", full)
        for ticket in range(5):
            writer.write(scored_group(ticket))
    assert caplog.text.count("wait to be written") == 1
    assert list(tmp_path.iterdir()) == []
    writer.close()
    assert pq.read_table(tmp_path)["ticket"].to_pylist() == [0, 1, 2, 3, 4]
    writer.write(scored_group(5))
    writer.write(scored_group(6))
    assert len(list(tmp_path.iterdir())) == 2
