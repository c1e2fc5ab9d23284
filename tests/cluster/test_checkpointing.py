"""Writing checkpoints on a disk that is full now and then."""

import asyncio
import errno
import json
import threading
from pathlib import Path

import pytest

from alphadrive.config import Config
from alphadrive.errors import CheckpointError, CheckpointWriteError
from alphadrive.object_store import Store
from alphadrive.run_folder import LEDGER_FILE, RunFolder
from cluster.checkpointing import CheckpointWriter
from cluster.status import RunStatus


@pytest.fixture
def run(tmp_path):
    config = Config()
    config.run.root, config.run.tensorboard = str(tmp_path), False
    with RunFolder.create(config) as run:
        yield run


class Learner:
    """Saves, or fails as `failure` says after half of it is written."""

    failure: Exception | None = None

    async def save(self, folder: Path) -> None:
        (folder / "model").mkdir()
        (folder / "model" / "model.safetensors").write_text("weights")
        if self.failure is not None:
            raise self.failure
        (folder / "optimizer.pt").write_text("moments")


FAILURES = [
    OSError(errno.ENOSPC, "No space left on device"),
    CheckpointWriteError("OSError: [Errno 28] No space left on device"),
]


def status_of(run):
    return json.loads(run.status_path.read_text())


def write(writer, learner, step, **options):
    return asyncio.run(writer.write(step, learner.save, lambda: {"step": step}, **options))


@pytest.mark.parametrize("failure", FAILURES, ids=["driver", "rank"])
def test_training_goes_on_without_a_checkpoint_that_cannot_be_written(run, caplog, failure):
    writer, learner = CheckpointWriter(run, RunStatus(run, "grpo", 10, 0)), Learner()
    committed = write(writer, learner, 1, score=0.5)
    assert json.loads((committed.path / LEDGER_FILE).read_text()) == {"step": 1}
    assert run.checkpoints.best() == (committed, 0.5)
    learner.failure = failure
    for step in (2, 3):
        assert write(writer, learner, step) is None
        assert sorted(path.name for path in run.checkpoints.folder.iterdir()) == ["best", "step_000001"]
        assert f"the checkpoint of step {step} could not be written" in status_of(run)["checkpoint_problem"]
    assert "No space left on device; training goes on" in caplog.text
    assert (writer.last_step, writer.num_failed) == (1, 2)
    learner.failure = None
    write(writer, learner, 4)
    assert (writer.last_step, writer.num_failed) == (4, 0)
    assert (status_of(run)["checkpoint_problem"], status_of(run)["checkpoint_step"]) == (None, 4)


def test_a_commit_that_nobody_waits_for_any_more_ends_first(run, monkeypatch):
    commit, may_end = run.commit_checkpoint, threading.Event()

    def slow_commit(*arguments):
        assert may_end.wait(30)
        return commit(*arguments)

    monkeypatch.setattr(run, "commit_checkpoint", slow_commit)

    async def main():
        writer = CheckpointWriter(run, RunStatus(run, "grpo", 10, 0))
        writing = asyncio.create_task(writer.write(1, Learner().save, lambda: {"step": 1}))
        await asyncio.sleep(0.1)
        writing.cancel()
        await asyncio.wait([writing], timeout=0.2)
        assert not writing.done()
        may_end.set()
        await asyncio.wait([writing])
        assert writing.cancelled()
        return run.checkpoints.latest()

    assert asyncio.run(main()).step == 1


def test_three_failures_in_a_row_end_the_run(run):
    writer, learner = CheckpointWriter(run, RunStatus(run, "grpo", 10, 0)), Learner()
    write(writer, learner, 1)
    learner.failure = FAILURES[0]
    write(writer, learner, 2)
    write(writer, learner, 3)
    with pytest.raises(CheckpointWriteError, match=r"step 4 could not .*\(the 3. in a row\)"):
        write(writer, learner, 4)
    assert run.latest_checkpoint().step == 1


def test_the_last_checkpoint_of_a_run_must_be_written(run):
    writer, learner = CheckpointWriter(run, RunStatus(run, "grpo", 10, 0)), Learner()
    learner.failure = FAILURES[1]
    with pytest.raises(CheckpointWriteError, match=r"\(it is the run's last\)"):
        write(writer, learner, 7, is_last=True)


def test_an_error_that_is_no_disk_s_ends_the_run_at_once(run):
    writer, learner = CheckpointWriter(run, RunStatus(run, "grpo", 10, 0)), Learner()
    learner.failure = CheckpointError("a bug")
    with pytest.raises(CheckpointError, match="a bug"):
        write(writer, learner, 1)


@pytest.fixture
def mirrored(tmp_path):
    config = Config()
    config.run.root, config.run.tensorboard = str(tmp_path / "runs"), False
    config.checkpoint.mirror, config.checkpoint.keep_last = (tmp_path / "mirror").as_uri(), 1
    with RunFolder.create(config) as run:
        yield run


def test_a_copy_that_fails_is_told_and_training_goes_on_until_the_last_one(mirrored, monkeypatch):
    failing, put = [True], Store.put

    def fail_or_put(self, path, name, *more):
        if failing[0] and "checkpoints" in name:
            raise OSError("access denied")
        put(self, path, name, *more)

    monkeypatch.setattr(Store, "put", fail_or_put)

    async def train():
        writer = CheckpointWriter(mirrored, RunStatus(mirrored, "grpo", 10, 0))
        problems = []
        for step in (1, 2, 3):
            failing[0] = step != 2
            await writer.write(step, Learner().save, lambda: {})
            await asyncio.gather(asyncio.wrap_future(mirrored.mirror.copying), return_exceptions=True)
            problems.append(status_of(mirrored)["checkpoint_problem"])
        assert "the checkpoint of step 1 could not be copied" in problems[1] and problems[2] is None
        assert mirrored.mirror.steps() == [2]
        await writer.end()

    with pytest.raises(
        CheckpointWriteError, match=r"step 3 could not be copied.*access denied.*the run's last"
    ):
        asyncio.run(train())
    assert [each.step for each in mirrored.checkpoints.all()] == [3]


def test_a_checkpoint_is_not_removed_while_it_is_copied_and_the_copying_is_progress(mirrored, monkeypatch):
    may_go_on, put = threading.Event(), Store.put

    def slow(self, path, name, *more):
        assert may_go_on.wait(30)
        put(self, path, name, *more)

    monkeypatch.setattr(Store, "put", slow)

    async def train():
        writer = CheckpointWriter(mirrored, RunStatus(mirrored, "grpo", 10, 0))
        await writer.write(1, Learner().save, lambda: {})
        writing = asyncio.create_task(writer.write(2, Learner().save, lambda: {}))
        await asyncio.wait([writing], timeout=0.3)
        assert [each.step for each in mirrored.checkpoints.all()] == [1]
        before = writer.progress()
        may_go_on.set()
        await writing
        await writer.end()
        assert before != writer.progress()

    asyncio.run(train())
    assert mirrored.mirror.steps() == [2]
