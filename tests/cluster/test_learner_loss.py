"""Whole GRPO runs on a real Ray with fake engines and fake learner ranks whose processes are lost."""

import asyncio
import logging
import os
import signal

import psutil
import pytest

from alphadrive.cli import run as run_command
from alphadrive.errors import LearnerDiedError, LearnerError
from alphadrive.run_folder import read_metrics
from alphadrive.types import WeightVersion

pytest.importorskip("ray")
pytestmark = pytest.mark.ray

STEPS = 9


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "train"
    assert run_command(["data", "synth", "--out", str(folder), "--num", "48"]) == 0
    return folder


def run_faulty(scenes, tmp_path, monkeypatch, faults, *overrides):
    """Train with two ranks of which the last does what `faults` says. Gives the attempt as it ended."""
    import fake_actors
    import fake_runs

    import cluster.learner_group

    learner_actor = fake_actors.faulty_learner_actor(faults)
    monkeypatch.setattr(cluster.learner_group, "LearnerActor", learner_actor)
    attempt = fake_runs.make_attempt(scenes, tmp_path, STEPS, *overrides)
    fake_runs.train(attempt, fake_actors.FakeRolloutActor)
    return attempt


def assert_every_query_was_trained_once(attempt):
    import fake_runs

    assert fake_runs.ended_queries(attempt) == {"trained": STEPS * fake_runs.GROUPS_PER_STEP}
    lines = read_metrics(attempt.run.metrics_path)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert attempt.run.metrics_path.read_text().count("\n") == STEPS
    assert attempt.status.state == "finished"


def test_ranks_that_are_killed_restart_from_the_checkpoint_with_the_engines_warm(
    small_ray, scenes, tmp_path, monkeypatch, caplog
):
    import pyarrow.parquet as pq

    faults = {(0, 2): "dies", (1, 8): "peer dies"}
    with caplog.at_level(logging.WARNING):
        attempt = run_faulty(scenes, tmp_path, monkeypatch, faults)
    assert_every_query_was_trained_once(attempt)
    assert [(each["attempt"], each["from_step"]) for each in attempt.status.attempts] == [
        (0, 0),
        (1, 0),
        (2, 6),
    ]
    assert "died" in attempt.status.attempts[1]["cause"]
    rows = pq.ParquetDataset(attempt.run.rollouts_path).read(["engine_id", "weight_version"]).to_pydict()
    assert set(rows["engine_id"]) == {"engine-0"}
    assert {"2.6", "2.7"} <= set(rows["weight_version"])
    assert "lost (" not in caplog.text


def test_a_rank_that_is_stopped_is_taken_for_lost_and_its_process_ended(
    small_ray, scenes, tmp_path, monkeypatch
):
    from cluster.gang import Gang

    met = []
    meet = Gang.meet

    async def noted(self, timeout_s):
        met.append(await meet(self, timeout_s))
        return met[-1]

    monkeypatch.setattr(Gang, "meet", noted)
    attempt = run_faulty(scenes, tmp_path, monkeypatch, {(0, 5): "stops"}, "learner.hang_timeout_s=3")
    assert_every_query_was_trained_once(attempt)
    assert [each["from_step"] for each in attempt.status.attempts] == [0, 3]
    assert "step did not end in 3 s" in attempt.status.attempts[1]["cause"]
    assert not any(psutil.pid_exists(rank.pid) for rank in met[0])


def test_a_rank_that_raises_is_not_taken_for_lost(small_ray, scenes, tmp_path, monkeypatch):
    faults = {(0, 2): RuntimeError("bad shape")}
    with pytest.raises(LearnerError, match="failed in step: RuntimeError: bad shape") as raised:
        run_faulty(scenes, tmp_path, monkeypatch, faults, "learner.num_ranks=1")
    assert not isinstance(raised.value, LearnerDiedError)


def test_ranks_restart_in_their_place_though_another_waits_for_room(small_ray, tmp_path, monkeypatch):
    import ray
    from test_weight_sync import run_synchronised

    class Hungry:
        def eat(self):
            return True

    async def main(pool, learner, sync):
        free = ray.available_resources()["CPU"]
        hungry = ray.remote(Hungry).options(num_cpus=free + 0.1).remote()
        await asyncio.sleep(1)
        os.kill(learner.workers()[0].pid, signal.SIGKILL)
        with pytest.raises(LearnerDiedError):
            await asyncio.wait_for(learner.watch(), 30)
        learner.end()
        await asyncio.sleep(3)
        await learner.restart(WeightVersion(1, 0), None)
        await sync.publish(learner.version)
        eaten, _ = ray.wait([hungry.eat.remote()], timeout=0)
        assert eaten == []
        ray.kill(hungry)

    run_synchronised(tmp_path, monkeypatch, main)


def test_a_death_between_calls_is_noticed_and_a_new_engine_waits_for_the_restart(
    small_ray, tmp_path, monkeypatch
):
    from test_weight_sync import run_synchronised

    async def main(pool, learner, sync):
        watch = asyncio.ensure_future(learner.watch())
        assert [worker.state for worker in learner.workers()] == ["SERVING"] * 2
        os.kill(learner.workers()[1].pid, signal.SIGKILL)
        with pytest.raises(LearnerDiedError, match="rank died"):
            await asyncio.wait_for(watch, 30)
        assert [worker.state for worker in learner.workers()] == ["DEAD"] * 2
        lost = pool.engines[0]
        pool.lose(lost, "a test")
        await asyncio.sleep(3)
        (successor,) = [engine for engine in pool.engines if engine.index == lost.index]
        assert successor.state in ("STARTING", "STALE")
        await learner.restart(WeightVersion(1, 0), None)
        await sync.publish(learner.version)
        while successor.state != "SERVING":
            await asyncio.sleep(0.1)
        for engine in pool.engines:
            assert (await engine.actor.updates_taken.remote())[-1] == WeightVersion(1, 0)
        await learner.step([])
        (first, second) = learner.workers()
        assert (first.kind, first.id, first.state, first.weight_version) == (
            "learner",
            "rank-0",
            "SERVING",
            "1.1",
        )
        assert first.pid != second.pid and first.last_progress_s is not None

    run_synchronised(tmp_path, monkeypatch, main, num_ranks=2)
