"""What must not end a run, nor cost more than it needs to: on virtual time, with actors that are futures."""

import asyncio
from types import SimpleNamespace

import pytest

pytest.importorskip("ray")
import ray.exceptions
from fake_actors import SAMPLING, SETTINGS, query_of_row

import cluster.control_room
import cluster.grpo
from alphadrive.config import Config, RolloutConfig
from alphadrive.errors import LearnerDiedError, RolloutError, StalledError, WeightSyncError
from alphadrive.run_folder import RunFolder
from alphadrive.types import WeightVersion
from cluster import remote
from cluster.carriers import FileCarrier
from cluster.control_room import ControlRoom
from cluster.packing import Node
from cluster.placement import plan_placement
from cluster.rollout_pool import RolloutPool
from cluster.status import RunStatus
from cluster.virtual_time import run_virtual
from cluster.watched import Watched
from cluster.weight_sync import LAST_WAIT_S, WeightSync
from cluster.workers import WorkerState


class Method:
    """An actor's method that answers with what `answer` gives, a coroutine."""

    def __init__(self, answer):
        self.answer = answer

    def options(self, **options):
        return self

    def remote(self, *arguments):
        return self.answer(*arguments)


async def nothing(*arguments):
    return None


def engine_actor(index):
    """An engine that starts and draws for ever."""

    async def where():
        return 100 + index, f"node-{index}"

    return SimpleNamespace(
        where=Method(where),
        start=Method(nothing),
        health=Method(lambda: asyncio.Event().wait()),
        close=Method(nothing),
        exchange=Method(lambda orders, dropped: (asyncio.Event().wait(), asyncio.sleep(0))),
    )


@pytest.fixture
def pool(monkeypatch):
    monkeypatch.setattr(remote, "kill", lambda actor: None)
    monkeypatch.setattr(remote, "forget", lambda *references: None)
    config = RolloutConfig(num_workers=3, hang_timeout_s=1000.0)
    return RolloutPool(config, engine_actor, lambda index: SETTINGS, lambda query: SAMPLING, SAMPLING)


DEATHS = [
    ray.exceptions.RayActorError(),
    ray.exceptions.OutOfMemoryError("the node has no memory left"),
    ray.exceptions.NodeDiedError("node 3"),
    ray.exceptions.LocalRayletDiedError(),
    ray.exceptions.ActorUnschedulableError("no node"),
    ray.exceptions.ActorPlacementGroupRemoved(),
]


@pytest.mark.parametrize("death", DEATHS, ids=lambda death: type(death).__name__)
def test_however_ray_tells_it_a_dead_actor_is_one(death):
    async def main():
        reply = asyncio.get_running_loop().create_future()
        reply.set_exception(death)
        await remote.fetch(reply)

    with pytest.raises(remote.ActorGoneError):
        asyncio.run(main())


def test_groups_that_are_cut_off_where_a_node_goes_away_are_not_held_against_anybody(pool, monkeypatch):
    blamed = []
    monkeypatch.setattr("cluster.trials.Trials.engine_died", lambda self, *_, **__: blamed.append(self.label))

    async def main():
        await pool.start()
        drawing = [asyncio.create_task(pool.generate(ticket, query_of_row(ticket))) for ticket in range(9)]
        await asyncio.sleep(0.2)
        assert [engine.num_under_way for engine in pool.engines] == [3, 3, 3]
        pool.drain_node("node-0", 1.0)
        await asyncio.sleep(1.5)
        assert sorted(engine.num_under_way for engine in pool.engines) == [3, 3, 3]
        for task in drawing:
            task.cancel()
        await asyncio.gather(*drawing, return_exceptions=True)
        await pool.close()

    run_virtual(main())
    assert blamed == []


def test_an_engine_that_dies_as_soon_as_it_is_wanted_again_ends_nothing(pool):
    async def main():
        await pool.start()
        drawing = [asyncio.create_task(pool.generate(ticket, query_of_row(ticket))) for ticket in range(3)]
        await asyncio.sleep(0.2)
        pool.resize(2)
        (engine,) = [engine for engine in pool.engines if engine.state is WorkerState.DRAINING]
        pool.resize(3)
        assert engine.state is WorkerState.STALE
        pool.lose(engine, "a test")
        await asyncio.sleep(5)
        pool.raise_failure()
        assert pool.num_up == 3
        for task in drawing:
            task.cancel()
        await asyncio.gather(*drawing, return_exceptions=True)
        await pool.close()

    run_virtual(main())


class Learner:
    version = WeightVersion(0, 1)

    def __init__(self):
        self.lock = asyncio.Lock()

    async def export_weights(self, path):
        return SimpleNamespace(sha256="", version=self.version)


@pytest.mark.parametrize("cause", ["cancelled", "learner died"])
def test_a_publish_that_is_given_up_does_not_wait_for_an_engine_that_hangs(cause, tmp_path):
    async def main():
        replies = (asyncio.Event().wait(), asyncio.sleep(0))
        engines = [
            SimpleNamespace(
                actor=SimpleNamespace(update_weights=Method(lambda *_: replies)),
                watch=SimpleNamespace(restart=lambda now_s: None),
                id="engine-0",
            )
        ]
        pool = SimpleNamespace(begin_sync=lambda **_: engines)
        carrier = FileCarrier(Learner(), tmp_path, "w")
        sync = WeightSync(pool, Learner(), [0], None, temperature=1.0, timeout_s=500.0, carrier=carrier)
        if cause == "learner died":
            sync._prove_in_turn = lambda *_: failing(LearnerDiedError("rank 0 died"))
        publishing = asyncio.create_task(sync.publish(WeightVersion(0, 1)))
        await asyncio.sleep(0.5)
        if cause == "cancelled":
            await asyncio.sleep(0.5)
            publishing.cancel()
        await asyncio.wait([publishing])
        assert publishing.cancelled() or isinstance(publishing.exception(), LearnerDiedError)
        replies[1].close()
        return asyncio.get_running_loop().time()

    async def failing(error):
        await asyncio.sleep(1)
        raise error

    assert run_virtual(main()) == 1 + LAST_WAIT_S


def test_an_engine_that_took_wrong_weights_is_lost_whatever_else_happens(tmp_path):
    async def main():
        async def took(sha256):
            return SimpleNamespace(sha256=sha256, paused_s=0.0)

        engine = SimpleNamespace(
            actor=SimpleNamespace(update_weights=Method(lambda *_: (took("others"), took("canary")))),
            watch=SimpleNamespace(restart=lambda now_s: None),
            id="engine-0",
        )
        lost = []
        pool = SimpleNamespace(
            begin_sync=lambda **_: [engine],
            lose=lambda engine, reason, **_: lost.append((engine.id, type(reason))),
        )
        carrier = FileCarrier(Learner(), tmp_path, "w")
        sync = WeightSync(pool, Learner(), [0], None, temperature=1.0, timeout_s=500.0, carrier=carrier)
        sync._prove_in_turn = lambda *_: failing(LearnerDiedError("rank 0 died"))
        with pytest.raises(LearnerDiedError):
            await sync.publish(WeightVersion(0, 1))
        return lost

    async def failing(error):
        await asyncio.sleep(1)
        raise error

    assert run_virtual(main()) == [("engine-0", WeightSyncError)]


def test_wrong_weights_end_a_publish_at_once(tmp_path):
    async def main():
        sync = WeightSync(
            SimpleNamespace(begin_sync=lambda **_: [SimpleNamespace()]),
            Learner(), [], None, temperature=1.0, timeout_s=500.0,
            carrier=FileCarrier(Learner(), tmp_path, "w"),
        )  # fmt: skip

        async def update(*_):
            await asyncio.Event().wait()

        async def wrong(*_):
            raise WeightSyncError("another digest")

        sync._update, sync._prove_in_turn = update, wrong
        with pytest.raises(WeightSyncError):
            await sync.publish(WeightVersion(0, 1))
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == 0


def test_the_control_room_goes_on_after_a_failed_call(monkeypatch, caplog):
    ticks = []

    async def tick(self):
        ticks.append(self)
        if len(ticks) in (2, 3):
            raise RuntimeError("the head node does not answer")

    monkeypatch.setattr(ControlRoom, "_tick", tick)
    config = Config()
    status = SimpleNamespace(fields={"stage": "grpo"})

    async def main():
        serving = asyncio.create_task(
            ControlRoom(SimpleNamespace(status=status, config=config, watched=Watched())).serve()
        )
        await asyncio.sleep(9.5 * cluster.control_room.PUSH_EVERY_S)
        serving.cancel()

    run_virtual(main())
    assert len(ticks) == 10
    assert caplog.text.count("the control room failed") == 1


def test_a_run_of_which_a_part_never_comes_up_ends_in_time(tmp_path, monkeypatch):
    async def never():
        await asyncio.Event().wait()

    def make(start):
        return SimpleNamespace(start=start, close=nothing, num_up=int(start is nothing))

    monkeypatch.setattr(cluster.grpo, "_make_rollout_pool", lambda *_: make(nothing))
    monkeypatch.setattr(cluster.grpo, "_make_reward_pool", lambda *_: make(never))
    monkeypatch.setattr(cluster.grpo, "_start_learner", nothing)
    monkeypatch.setattr(cluster.grpo, "watch_nodes", nothing)
    monkeypatch.setattr(cluster.grpo, "reserve", nothing)
    monkeypatch.setattr(cluster.grpo, "first_engine_placed", nothing)
    config = Config()
    config.rollout.weight_transfer = "file"
    attempt = SimpleNamespace(
        config=config,
        placement=plan_placement(config, "grpo", [Node(cpus=2)]),
        run=SimpleNamespace(path=tmp_path, rollouts_path=tmp_path),
        watched=Watched(),
        progress=SimpleNamespace(say=lambda text: None),
    )

    async def main():
        with pytest.raises(StalledError, match=r"no engine.*came up.*reward workers 0"):
            await cluster.grpo.train_on_ray(attempt)
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == 600


def test_an_evaluation_with_a_query_that_is_given_up_gives_no_figures_and_the_run_goes_on(
    tmp_path, monkeypatch, caplog
):
    from cluster.recorder import GrpoRecorder

    config = Config()
    config.run.root, config.run.tensorboard, config.data.eval = str(tmp_path), False, "scenes"

    class Scenes:
        def __init__(self, *_):
            pass

        def __len__(self):
            return 4

        def query(self, row):
            return query_of_row(row)

    monkeypatch.setattr("cluster.recorder.DrivingDataset", Scenes)
    bad = {2}

    async def answer(query):
        if query.row in bad:
            raise RolloutError("evaluation of q2 given up")
        return ""

    with RunFolder.create(config) as run:
        status = RunStatus(run, "grpo", 10, 0)
        recorder = GrpoRecorder(
            config, run, SimpleNamespace(), SimpleNamespace(say=print), status,
            answer=answer, save=nothing, sync_seconds=[], canary_differences=[],
        )  # fmt: skip
        asyncio.run(recorder.evaluate(3))
        assert recorder.last_evaluation == {}
        assert "the evaluation of step 3 is given up: evaluation of q2" in caplog.text
        assert status.fields["validation_problem"].startswith("step 3")
        bad.clear()
        asyncio.run(recorder.evaluate(4))
        assert recorder.last_evaluation["val/planning_accuracy"] == 0.0
        assert status.fields["validation_problem"] is None


def test_a_driver_that_was_lost_is_told_how_many_steps_that_cost(tmp_path):
    config = Config()
    config.run.root, config.run.tensorboard = str(tmp_path), False
    with RunFolder.create(config) as run:
        status = RunStatus(run, "grpo", 100, 0)
        status.begin_attempt(0, 0, "started")
        status.write(step=57)
        resumed = RunStatus(run, "grpo", 100, 1)
        resumed.begin_attempt(1, 50, "resumed")
        assert "lost_steps" not in resumed.attempts[0]
        assert resumed.attempts[1]["lost_steps"] == 7
        assert resumed.fields["step"] == 50
