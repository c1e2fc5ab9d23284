"""What a run does when its learner is lost: how often it restarts, from where, and when it does not."""

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from alphadrive.config import Config
from alphadrive.errors import DataError, LearnerDiedError, LearnerMovesError, NonFiniteError
from alphadrive.run_folder import RunFolder, read_metrics
from alphadrive.types import WeightVersion
from cluster.launch import Attempt
from cluster.progress import RunProgress
from cluster.recovery import train_with_restarts
from cluster.status import RunStatus


class FakeLearner:
    """Notes what is asked of it; `watch` raises what is put into `death`."""

    def __init__(self):
        self.calls = []
        self.death = None

    async def watch(self):
        while self.death is None:
            await asyncio.sleep(0)
        error, self.death = self.death, None
        raise error

    def end(self):
        self.calls.append("end")

    async def restart(self, version, checkpoint):
        self.calls.append(("restart", str(version), checkpoint and checkpoint.name))


@pytest.fixture
def attempt(tmp_path):
    config = Config()
    config.run.root, config.run.tensorboard = str(tmp_path), False
    run = RunFolder.create(config)
    status = RunStatus(run, "grpo", 9, 0)
    status.begin_attempt(0, 0, "started")
    yield Attempt(
        config=config,
        run=run,
        model_folder=tmp_path,
        checkpoint=None,
        saved={},
        version=WeightVersion(0, 0),
        status=status,
        progress=RunProgress("grpo", 9, may_be_live=False),
        stop=SimpleNamespace(on_stop=None, was_asked=False),
    )
    run.close()


def commit(attempt, step):
    folder = attempt.run.begin_checkpoint(step)
    (folder / "weights").write_text("w")
    ledger = {
        "step": step,
        "attempt": attempt.version.attempt,
        "data_sha256": attempt.data_sha256,
        "next_ticket": 7 * step,
        "queries": {},
    }
    (folder / "ledger.json").write_text(json.dumps(ledger))
    attempt.run.commit_checkpoint(step)


def training(attempt, *acts):
    """A `train` that does one act after the other, one for each time it is called."""
    remaining = list(acts)

    async def train():
        remaining.pop(0)()

    return train


def dies(attempt, *, reached=0, committed=None):
    def act():
        for step in range(attempt.version.step + 1, reached + 1):
            attempt.run.write_metrics(step, {"loss": 1.0})
            attempt.status.write(step=step)
        if committed is not None:
            commit(attempt, committed)
        raise LearnerDiedError("rank 1 died")

    return act


def test_a_run_goes_back_to_its_checkpoint_under_the_next_attempt(attempt):
    learner, seen = FakeLearner(), []

    async def settle():
        seen.append((learner.calls[-1], len(read_metrics(attempt.run.metrics_path))))

    train = training(attempt, dies(attempt, reached=5, committed=3), lambda: seen.append("trained on"))
    asyncio.run(train_with_restarts(attempt, learner, train, settle))
    assert learner.calls == ["end", ("restart", "1.3", "step_000003")]
    assert seen == [("end", 5), "trained on"]
    assert (attempt.version, attempt.saved["next_ticket"]) == (WeightVersion(1, 3), 21)
    assert [line["step"] for line in read_metrics(attempt.run.metrics_path)] == [1, 2, 3]
    status = json.loads(attempt.run.status_path.read_text())
    assert (status["attempt"], status["step"]) == (1, 3)
    first, second = status["attempts"]
    assert (first["cause"], second["cause"]) == ("started", "LearnerDiedError: rank 1 died")
    assert (second["attempt"], second["from_step"], second["lost_steps"]) == (1, 3, 2)


def test_without_a_checkpoint_it_starts_over(attempt):
    learner = FakeLearner()
    asyncio.run(
        train_with_restarts(attempt, learner, training(attempt, dies(attempt, reached=2), lambda: None))
    )
    assert learner.calls == ["end", ("restart", "1.0", None)]
    assert read_metrics(attempt.run.metrics_path) == []


def test_a_loss_that_only_the_watch_sees_counts_as_well(attempt):
    learner = FakeLearner()
    acts = [lambda: setattr(learner, "death", LearnerDiedError("rank 0 died"))]

    async def train():
        if acts:
            acts.pop()()
            await asyncio.sleep(3600)

    asyncio.run(train_with_restarts(attempt, learner, train))
    assert attempt.version == WeightVersion(1, 0)


def test_too_many_restarts_without_a_checkpoint_end_the_run(attempt):
    attempt.config.learner.max_restarts = 2
    train = training(attempt, *[dies(attempt)] * 3)
    with pytest.raises(LearnerDiedError, match=r"lost 3 times .*learner\.max_restarts=2 .*rank 1 died"):
        asyncio.run(train_with_restarts(attempt, FakeLearner(), train))


def test_a_learner_that_moves_off_a_node_is_no_loss_that_counts(attempt):
    attempt.config.learner.max_restarts = 0
    learner = FakeLearner()

    def moves():
        commit(attempt, 4)
        raise LearnerMovesError("the learner's node goes away")

    asyncio.run(train_with_restarts(attempt, learner, training(attempt, moves, lambda: None)))
    assert learner.calls == ["end", ("restart", "1.4", "step_000004")]


def test_a_new_checkpoint_gives_the_restarts_back(attempt):
    attempt.config.learner.max_restarts = 1
    acts = [dies(attempt, committed=step) for step in (1, 2, 3)]
    asyncio.run(train_with_restarts(attempt, FakeLearner(), training(attempt, *acts, lambda: None)))
    assert attempt.version == WeightVersion(3, 3)


def test_a_loss_during_a_restart_is_one_more(attempt):
    learner, attempt.config.learner.max_restarts = FakeLearner(), 2
    restart, failures = learner.restart, [LearnerDiedError("rank 0 died while it loaded")]

    async def restart_once_in_vain(version, checkpoint):
        await restart(version, checkpoint)
        if failures:
            raise failures.pop()

    learner.restart = restart_once_in_vain
    asyncio.run(train_with_restarts(attempt, learner, training(attempt, dies(attempt), lambda: None)))
    assert [call[1] for call in learner.calls if call != "end"] == ["1.0", "2.0"]


@pytest.mark.parametrize("error", [DataError("row 3"), NonFiniteError("three in a row"), ValueError("a bug")])
def test_what_would_go_wrong_again_ends_the_run(attempt, error):
    def fails():
        raise error

    learner = FakeLearner()
    with pytest.raises(type(error)):
        asyncio.run(train_with_restarts(attempt, learner, training(attempt, fails)))
    assert learner.calls == []


def test_a_learner_lost_while_the_run_is_stopping_is_not_restarted(attempt):
    attempt.stop.was_asked = True
    learner = FakeLearner()
    asyncio.run(train_with_restarts(attempt, learner, training(attempt, dies(attempt))))
    assert learner.calls == []


def test_while_a_learner_restarts_a_signal_ends_the_run_at_once(attempt):
    attempt.stop.on_stop = lambda: None
    learner, seen = FakeLearner(), []
    restart = learner.restart

    async def observed(version, checkpoint: Path | None):
        seen.append(attempt.stop.on_stop)
        await restart(version, checkpoint)

    learner.restart = observed
    asyncio.run(train_with_restarts(attempt, learner, training(attempt, dies(attempt), lambda: None)))
    assert seen == [None]


def test_engines_of_a_run_under_way_do_not_start_from_a_checkpoint_that_may_be_removed(attempt):
    from cluster.buffer import SlotBuffer
    from cluster.grpo import settings_of_engine

    commit(attempt, 3)
    asyncio.run(attempt.begin_again("a test"))
    assert settings_of_engine(attempt, 0).model_folder == str(attempt.checkpoint.model_path)
    attempt.watched.buffer = SlotBuffer(1, 1)
    assert settings_of_engine(attempt, 1).model_folder == str(attempt.model_folder)
