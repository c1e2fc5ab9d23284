"""The shipped loop and buffer, run in virtual time with fakes and random delays."""

import asyncio
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alphadrive.errors import (
    DeadLetterError,
    EngineDiedError,
    LearnerError,
    PolicyLagError,
    RewardError,
    RolloutError,
    WeightSyncError,
)
from alphadrive.types import DrivingQuery, GroupHeader, StepResult, WeightVersion
from cluster.buffer import SlotBuffer
from cluster.loop import Parts, Schedule, run
from cluster.queries import QueryLedger
from cluster.virtual_time import DeadlockError, run_virtual


def query_of_row(row):
    return DrivingQuery(
        query_id=f"q{row}", row=row, speed_mps=5.0, navigation="go", plans=("KEEP, STRAIGHT",)
    )


class FakeWorld:
    """Engines, rewards, learner, sync and recorder in one: random delays, random outcomes."""

    def __init__(self, *, seed=0, flat_share=0.0, dead_share=0.0, stale_engine=False):
        self.random = random.Random(seed)
        self.flat_share, self.dead_share, self.stale_engine = flat_share, dead_share, stale_engine
        self.version = WeightVersion(0, 0)
        self.served = WeightVersion(0, 0)
        self.issued, self.trained, self.lags, self.skipped = [], [], [], []
        self.steps, self.published, self.evaluated, self.checkpointed = [], [], [], []
        self.wanted_checkpoints = set()
        self.num_running = self.most_running = 0
        self.expected = []

    async def generate(self, ticket, query):
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        self.issued.append((ticket, query.row))
        oldest = WeightVersion(0, 0) if self.stale_engine else self.served
        try:
            await asyncio.sleep(self.random.expovariate(1.0) * self.random.choice([0.1, 1, 10]))
        finally:
            self.num_running -= 1
        if self.random.random() < self.dead_share / 2:
            raise RolloutError("the engine gave this query up")
        return ticket, query, oldest

    async def score(self, group):
        ticket, query, oldest = group
        await asyncio.sleep(self.random.random() * 0.1)
        if self.random.random() < self.dead_share / 2:
            raise RewardError("no finite number")
        spread = 0.0 if self.random.random() < self.flat_share else 0.5
        return GroupHeader(
            ticket=ticket,
            query_id=query.query_id,
            row=query.row,
            weight_version=oldest,
            reward_mean=1.0,
            reward_std=spread,
            reward_min=0.0,
            reward_max=1.0,
            term_means={},
            term_stds={},
            num_tokens=10,
            scored=(ticket, query.row),
        )

    def expect(self, place, row):
        self.expected.append((place, row))

    async def step(self, scored):
        await asyncio.sleep(self.random.random() * 3)
        self.trained += scored
        self.steps.append(len(scored))
        self.version = WeightVersion(0, self.version.step + 1)
        return StepResult(step=self.version.step, weight_version=self.version, metrics={})

    async def publish(self, version):
        await asyncio.sleep(self.random.random())
        self.served = version
        self.published.append(version.step)

    def scored(self, header):
        if not header.has_signal:
            self.skipped.append(header.ticket)

    def stepped(self, result, headers, lags):
        assert len(lags) == len(headers)
        self.lags.append(max(lags))

    async def evaluate(self, step):
        await asyncio.sleep(self.random.random() * 20)
        self.evaluated.append((step, self.served.step))

    @property
    def wants_checkpoint(self):
        return self.version.step in self.wanted_checkpoints

    async def checkpoint(self, step):
        self.checkpointed.append(step)


def make_parts(world, schedule, *, num_rows=50, max_dead_letters=10**9, max_epochs=None):
    queries = QueryLedger(
        query_of_row, num_rows, seed=0, max_dead_letters=max_dead_letters, max_epochs=max_epochs
    )
    num_slots = (schedule.max_policy_lag + 1) * schedule.groups_per_step
    buffer = SlotBuffer(num_slots, schedule.steps * schedule.groups_per_step)
    parts = Parts(
        queries=queries,
        rollouts=world,
        rewards=world,
        learner=world,
        sync=world,
        recorder=world,
        buffer=buffer,
    )
    return parts, queries


def make_schedule(**changes):
    values = {"steps": 5, "groups_per_step": 4, "max_policy_lag": 1, "skips_flat_groups": True} | changes
    return Schedule(**values)


def run_world(world, schedule, **options):
    parts, queries = make_parts(world, schedule, **options)
    run_virtual(run(parts, schedule))
    return queries, parts.buffer


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    groups_per_step=st.integers(1, 6),
    max_policy_lag=st.integers(0, 4),
    sync_every=st.integers(1, 4),
    flat_share=st.sampled_from([0.0, 0.3, 0.8]),
    dead_share=st.sampled_from([0.0, 0.3]),
    num_rows=st.integers(7, 60),
    eval_every=st.sampled_from([0, 3]),
)
def test_the_lag_bound_holds_and_nothing_hangs_under_random_timings(
    seed, groups_per_step, max_policy_lag, sync_every, flat_share, dead_share, num_rows, eval_every
):
    world = FakeWorld(seed=seed, flat_share=flat_share, dead_share=dead_share)
    schedule = make_schedule(
        steps=12,
        groups_per_step=groups_per_step,
        max_policy_lag=max_policy_lag,
        sync_every=sync_every,
        eval_every=eval_every,
    )
    queries, buffer = run_world(world, schedule, num_rows=num_rows)

    assert max(world.lags, default=0) <= max_policy_lag + sync_every - 1
    assert world.most_running <= (max_policy_lag + 1) * groups_per_step
    assert buffer.num_held == 0
    if not queries.has_no_signal:
        assert world.steps == [groups_per_step] * 12
    tickets = [ticket for ticket, _ in world.trained]
    assert tickets == sorted(tickets)
    ended = Counter(ticket for ticket, _ in world.trained) + Counter(world.skipped)
    assert all(count == 1 for count in ended.values())
    num_dead = len(queries.dead_letters)
    assert len(world.issued) == len(ended) + num_dead == queries.num_ended


@pytest.mark.parametrize("sync_every", [1, 3])
def test_a_slow_learner_uses_the_whole_lag_allowed(sync_every):
    world = FakeWorld(seed=1)
    run_world(world, make_schedule(steps=30, max_policy_lag=2, sync_every=sync_every))
    assert max(world.lags) == 2 + sync_every - 1


def test_lag_zero_is_on_policy():
    world = FakeWorld(seed=2)
    run_world(world, make_schedule(steps=10, max_policy_lag=0))
    assert world.lags == [0] * 10


def test_every_query_of_an_epoch_ends_exactly_once_and_the_last_step_is_short():
    world = FakeWorld(seed=3, flat_share=0.3, dead_share=0.2)
    queries, _ = run_world(world, make_schedule(steps=100), num_rows=50, max_epochs=1)
    rows = Counter(row for _, row in world.issued)
    assert rows == Counter(range(50))
    assert sum(world.steps) == len(world.trained)
    assert world.expected == [(place, row) for place, (_, row) in enumerate(world.trained)]
    assert all(size == 4 for size in world.steps[:-1])
    assert world.steps[-1] == (len(world.trained) - 1) % 4 + 1
    (counts,) = queries.counts().values()
    assert counts["issued"] == 50 == counts["trained"] + counts["skipped"] + counts["dead_lettered"]


def test_epochs_follow_each_other_without_losing_or_repeating_a_query():
    world = FakeWorld(seed=4)
    run_world(world, make_schedule(steps=30), num_rows=10)
    by_epoch = [row for _, row in sorted(world.issued)]
    for start in range(0, 120, 10):
        assert sorted(by_epoch[start : start + 10]) == list(range(10))


def test_an_epoch_without_signal_ends_the_run():
    world = FakeWorld(seed=5, flat_share=1.0)
    queries, buffer = run_world(world, make_schedule(steps=100), num_rows=20)
    assert queries.has_no_signal
    assert world.steps == []
    assert buffer.num_held == 0


def test_flat_groups_are_trained_when_a_kl_term_still_teaches():
    world = FakeWorld(seed=6, flat_share=1.0)
    run_world(world, make_schedule(steps=3, skips_flat_groups=False), num_rows=20)
    assert world.steps == [4, 4, 4]


def test_weights_are_published_as_scheduled_and_before_an_evaluation():
    world = FakeWorld(seed=7)
    run_world(world, make_schedule(steps=10, sync_every=4, eval_every=3, checkpoint_every=5))
    assert world.published == [3, 4, 6, 8, 9, 10]
    assert world.evaluated == [(3, 3), (6, 6), (9, 9)]
    assert world.checkpointed == [5], "who runs the loop writes the last one, after the last evaluation"


def test_a_checkpoint_that_is_wanted_is_written_after_the_step_under_way():
    world = FakeWorld(seed=7)
    world.wanted_checkpoints = {2, 5}
    run_world(world, make_schedule(steps=6, checkpoint_every=5))
    assert world.checkpointed == [2, 5]


def test_the_last_weights_are_published_when_the_queries_run_out():
    world = FakeWorld(seed=8)
    run_world(world, make_schedule(steps=100, sync_every=100), num_rows=10, max_epochs=1)
    assert world.published == [3]


def test_a_group_of_an_older_policy_is_refused_before_it_is_trained():
    world = FakeWorld(seed=9, stale_engine=True)
    with pytest.raises(PolicyLagError, match="at most 1 steps"):
        run_world(world, make_schedule(steps=20))
    assert max(world.lags) <= 1


def test_a_group_of_another_attempt_is_refused():
    world = FakeWorld(seed=10)
    world.version = WeightVersion(1, 0)
    with pytest.raises(PolicyLagError, match=r"drawn under version 0\.0"):
        run_world(world, make_schedule())


class Failing(FakeWorld):
    def __init__(self, where, error):
        super().__init__(seed=11)
        self.where, self.error = where, error

    async def _maybe(self, where):
        if where == self.where and self.random.random() < 0.2:
            raise self.error

    async def generate(self, ticket, query):
        await self._maybe("generate")
        return await super().generate(ticket, query)

    async def score(self, group):
        await self._maybe("score")
        return await super().score(group)

    async def step(self, scored):
        await self._maybe("step")
        return await super().step(scored)

    async def publish(self, version):
        await self._maybe("publish")
        await super().publish(version)


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("generate", EngineDiedError("no engine left")),
        ("generate", OSError("disk")),
        ("score", ValueError("a bug in a reward")),
        ("step", LearnerError("rank 1 died")),
        ("publish", WeightSyncError("digest")),
    ],
)
def test_a_failure_anywhere_cancels_everything_and_keeps_its_name(where, error):
    world = Failing(where, error)

    async def main():
        parts, _ = make_parts(world, make_schedule(steps=50))
        with pytest.raises(type(error)) as raised:
            await run(parts, make_schedule(steps=50))
        assert raised.value is error
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_virtual(main())
    assert world.num_running == 0


def test_no_step_follows_a_failed_weight_sync():
    world = FakeWorld(seed=14)

    async def refuse(version):
        raise WeightSyncError(f"version {version}")

    world.publish = refuse
    with pytest.raises(WeightSyncError, match=r"version 0\.1"):
        run_world(world, make_schedule(steps=50))
    assert world.steps == [4]


def test_too_many_dead_letters_end_the_run():
    world = FakeWorld(seed=12, dead_share=1.0)
    with pytest.raises(DeadLetterError, match="3 are allowed"):
        run_world(world, make_schedule(), max_dead_letters=3)


def test_a_stop_ends_the_step_under_way_and_starts_nothing_more():
    world = FakeWorld(seed=13)

    async def main():
        parts, queries = make_parts(world, make_schedule(steps=1000))

        async def stop_later():
            await asyncio.sleep(20.0)
            parts.buffer.stop()

        stopper = asyncio.create_task(stop_later())
        await run(parts, make_schedule(steps=1000))
        await stopper
        return queries

    queries = run_virtual(main())
    assert 0 < len(world.steps) < 50
    assert world.num_running == 0
    assert sum(counts.get("trained", 0) for counts in queries.counts().values()) == len(world.trained)


def test_virtual_time_reports_a_deadlock():
    async def wait_for_ever():
        await asyncio.get_running_loop().create_future()

    with pytest.raises(DeadlockError):
        run_virtual(wait_for_ever())
