"""Collecting spans from workers, without Ray: an actor is what has `take_spans.remote`."""

import asyncio
import itertools
import json
import time
from types import SimpleNamespace

import pytest

from alphadrive import metric_names as names
from alphadrive.profiling import spans
from alphadrive.profiling.recording import GROUPS, LOOP
from alphadrive.profiling.span_file import SpanFile, read_spans
from alphadrive.profiling.spans import Span, SpanLog
from alphadrive.types import DrivingQuery, GroupHeader, StepResult, WeightVersion
from cluster import profiler
from cluster.actors import RewardActor
from cluster.buffer import SlotBuffer
from cluster.loop import Parts, Schedule, run
from cluster.profiler import Profiler, profiled
from cluster.traced import TracedSft, traced
from cluster.watched import Watched


@pytest.fixture(autouse=True)
def nothing_recorded_afterwards():
    yield
    spans.end()


class FakeActor:
    """A worker whose clock may be another machine's, ahead by so much."""

    def __init__(self, *, clock=None, ahead_ns=0, answers_after_s=0.0, dies=False):
        self.log = None
        self.num_asked = 0
        self._clock, self._ahead_ns = clock, ahead_ns
        self._answers_after_s, self._dies = answers_after_s, dies
        self.take_spans = SimpleNamespace(remote=self._take)

    async def _take(self, kind, source, is_on):
        from dataclasses import replace

        self.num_asked += 1
        if self._dies:
            raise RuntimeError("gone")
        await asyncio.sleep(self._answers_after_s)
        self.log = self.log or SpanLog(kind, source)
        batch = replace(self.log.take(), taken_ns=time.monotonic_ns() + self._ahead_ns)
        return batch if self._clock is None else replace(batch, clock=self._clock)


async def until(is_so):
    """Wait for what must come to pass, however slow the machine is."""
    async with asyncio.timeout(60):
        while not is_so():
            await asyncio.sleep(0.01)


def work(actor, name, start_ns, end_ns):
    actor.log.add(Span("", name, start_ns, end_ns, {}))


def collect(tmp_path, actors, during, period_s=0.02, monkeypatch=None):
    """Run a profiler over actors while `during` goes on; what was read back."""
    monkeypatch.setattr(profiler, "PERIOD_S", period_s)
    monkeypatch.setattr(profiler, "LAST_TIMEOUT_S", 0.3)

    async def main():
        collector = Profiler(
            SpanFile(tmp_path, {}), lambda: [("learner", name, actor) for name, actor in actors.items()]
        )
        spans.begin("driver", "driver")
        collecting = asyncio.create_task(collector.run())
        await during()
        collecting.cancel()
        await asyncio.gather(collecting, return_exceptions=True)
        await collector.end()

    asyncio.run(main())
    return read_spans(tmp_path)


def test_spans_of_all_come_while_the_run_goes_on_and_at_its_end(tmp_path, monkeypatch):
    actors = {"rank-0": FakeActor(), "rank-1": FakeActor()}
    on_disk = []

    def sources_on_disk():
        return [track.source for track in read_spans(tmp_path).of_kind("learner") if track.spans]

    async def during():
        await until(lambda: all(actor.log for actor in actors.values()))
        for actor in actors.values():
            work(actor, "train", 10, 20)
        await until(lambda: len(sources_on_disk()) == 2)
        on_disk.extend(sources_on_disk())
        work(actors["rank-0"], "step", 30, 40)

    read = collect(tmp_path, actors, during, monkeypatch=monkeypatch)
    assert on_disk == ["rank-0", "rank-1"]
    assert [each.name for each in read.tracks["rank-0"].spans] == ["train", "step"]
    assert [each.name for each in read.tracks["rank-1"].spans] == ["train"]


def test_the_clock_of_another_machine_is_brought_to_the_drivers(tmp_path, monkeypatch):
    ahead_ns = 7 * 10**15
    actor = FakeActor(clock="elsewhere", ahead_ns=ahead_ns)
    happened = []

    async def during():
        await until(lambda: actor.num_asked > 3)
        now_ns = time.monotonic_ns()
        happened.append(now_ns)
        work(actor, "train", now_ns + ahead_ns, now_ns + ahead_ns + 1000)

    read = collect(tmp_path, {"rank-0": actor}, during, monkeypatch=monkeypatch)
    (train,) = read.tracks["rank-0"].spans
    error_ns = read.tracks["rank-0"].error_ns
    assert error_ns > 0
    assert abs(train.start_ns - happened[0]) <= error_ns
    assert train.end_ns - train.start_ns == 1000


def test_a_worker_that_died_costs_its_own_spans_only_and_one_that_is_busy_is_asked_once(
    tmp_path, monkeypatch
):
    actors = {
        "rank-0": FakeActor(),
        "rank-1": FakeActor(dies=True),
        "rank-2": FakeActor(answers_after_s=100.0),
    }

    async def during():
        await until(lambda: actors["rank-0"].log)
        work(actors["rank-0"], "train", 1, 2)
        await until(lambda: actors["rank-0"].num_asked > 3)

    read = collect(tmp_path, actors, during, monkeypatch=monkeypatch)
    assert [each.name for each in read.tracks["rank-0"].spans] == ["train"]
    assert set(read.tracks) == {"rank-0", "driver"}
    assert actors["rank-2"].num_asked == 1 and actors["rank-0"].num_asked > 3


class World:
    """The loop's collaborators: an engine, a reward, a learner."""

    def __init__(self):
        self.version = WeightVersion(0, 0)
        self.has_no_signal = self.wants_checkpoint = False
        self.row = 0

    def take(self, ticket):
        self.row += 1
        return DrivingQuery(
            query_id="q", row=self.row, speed_mps=1.0, navigation="go", plans=("KEEP, STRAIGHT",)
        )

    def settle(self, ticket, outcome, **how):
        pass

    async def generate(self, ticket, query):
        await asyncio.sleep(0.004)
        return ticket, query

    async def score(self, group):
        ticket, query = group
        await asyncio.sleep(0.002)
        return GroupHeader(
            ticket=ticket,
            query_id=query.query_id,
            row=query.row,
            weight_version=self.version,
            reward_mean=1.0,
            reward_std=1.0,
            reward_min=0.0,
            reward_max=2.0,
            term_means={},
            term_stds={},
            num_tokens=10,
            scored=ticket,
        )

    def expect(self, place, row):
        pass

    async def step(self, scored):
        await asyncio.sleep(0.004)
        self.version = WeightVersion(0, self.version.step + 1)
        return StepResult(step=self.version.step, weight_version=self.version, metrics={})

    async def publish(self, version):
        await asyncio.sleep(0.001)

    def scored(self, header):
        pass

    def stepped(self, result, headers, lags):
        pass

    async def evaluate(self, step):
        await asyncio.sleep(0.001)

    async def checkpoint(self, step):
        await asyncio.sleep(0.001)


def test_the_shipped_loop_is_recorded_whole():
    world = World()
    parts = Parts(
        queries=world,
        rollouts=world,
        rewards=world,
        learner=world,
        sync=world,
        recorder=world,
        buffer=SlotBuffer(4, 8),
    )
    schedule = Schedule(
        steps=4,
        groups_per_step=2,
        max_policy_lag=1,
        skips_flat_groups=False,
        eval_every=2,
        checkpoint_every=3,
    )
    spans.begin("driver", "driver")
    asyncio.run(run(traced(parts), schedule))
    recorded = spans.take().spans
    loop = sorted((each for each in recorded if each.lane == LOOP), key=lambda each: each.start_ns)
    names = [each.name for each in loop]
    assert names == [
        *("wait", "train", "sync"),
        *("wait", "train", "sync", "evaluate"),
        *("wait", "train", "sync", "checkpoint"),
        *("wait", "train", "sync", "evaluate"),
    ]
    assert all(before.end_ns <= after.start_ns for before, after in itertools.pairwise(loop))
    assert [each.args["step"] for each in loop if each.name == "train"] == [1, 2, 3, 4]
    for ticket in range(8):
        life = [each for each in recorded if each.lane == GROUPS and each.args["ticket"] == ticket]
        life.sort(key=lambda each: each.start_ns)
        assert [each.name for each in life] == ["generate", "reward", "ready", "trained"]
        assert life[2].args["take"] == ticket // 2 + 1 and life[1].args["tokens"] == 10


def test_sft_is_recorded_step_by_step(tmp_path):
    class Learner:
        must_move = False

        async def sft_step(self, rows):
            metrics = {names.RESPONSE_LENGTH_MEAN: 12.5}
            return StepResult(step=1, weight_version=WeightVersion(0, 1), metrics=metrics)

        async def save(self, folder):
            (folder / "saved").touch()

    spans.begin("driver", "driver")
    learner = TracedSft(Learner())

    async def main():
        await learner.sft_step([1, 2])
        await learner.save(tmp_path)

    asyncio.run(main())
    wait, train, checkpoint = spans.take().spans
    assert (wait.name, train.name, checkpoint.name) == ("wait", "train", "checkpoint")
    assert train.args == {"step": 1, "tokens": 25.0}
    assert (tmp_path / "saved").exists() and learner.must_move is False


def attempt_of(tmp_path, is_profiled):
    from alphadrive.config import load_config

    config = load_config("debug", [f"profile.enabled={is_profiled}".lower(), "grpo.group_size=3"])
    return SimpleNamespace(
        config=config,
        placement=None,
        run=SimpleNamespace(path=tmp_path),
        status=SimpleNamespace(fields={"stage": "grpo"}),
        version=WeightVersion(2, 7),
        watched=Watched(),
    )


def test_a_profiled_block_leaves_spans_and_a_timeline_behind_even_if_it_fails(tmp_path):
    async def main():
        async with profiled(attempt_of(tmp_path, True)) as is_recorded:
            assert is_recorded
            with spans.span("wait", LOOP):
                raise ValueError("the run failed")

    with pytest.raises(ValueError, match="the run failed"):
        asyncio.run(main())
    read = read_spans(tmp_path)
    assert [each.name for each in read.driver.spans] == ["wait"]
    assert (read.facts["attempt"], read.facts["grpo.group_size"]) == (2, 3)
    assert json.loads((tmp_path / "timeline.json").read_text())["traceEvents"]
    assert not spans.is_recording()


def test_nothing_is_written_where_nothing_was_asked_for(tmp_path):
    async def main():
        async with profiled(attempt_of(tmp_path, False)) as is_recorded:
            assert not is_recorded and not spans.is_recording()

    asyncio.run(main())
    assert list(tmp_path.iterdir()) == []


def test_a_worker_records_from_the_first_time_it_is_asked(tmp_path):
    from alphadrive.config import RewardConfig

    worker = RewardActor(RewardConfig(), 0, str(tmp_path), "w0", str(tmp_path))
    worker.score([])
    assert worker.take_spans("reward", "w0").spans == []
    worker.score([])
    assert [each.name for each in worker.take_spans("reward", "w0", False).spans] == ["reward"]
    worker.score([])
    assert worker.take_spans("reward", "w0").spans == []
    worker.close()
