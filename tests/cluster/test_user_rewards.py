"""A user's reward function on real reward workers under the shipped loop: it raises, hangs, returns NaN."""

import asyncio
from collections import Counter

import pytest

from alphadrive.config import RewardConfig
from alphadrive.errors import DeadLetterError
from alphadrive.types import StepResult, WeightVersion
from cluster.buffer import SlotBuffer
from cluster.loop import Parts, Schedule, run
from cluster.queries import QueryLedger

pytest.importorskip("ray")
pytestmark = pytest.mark.ray

MOODY = """\
import time

def moody(query, completions):
    if query.row == 1:
        raise ValueError("this scene is beyond me")
    if query.row == 2:
        time.sleep(3600)
    if query.row == 3:
        return [float("nan")] * len(completions)
    return [float(index) for index, _ in enumerate(completions)]
"""
NUM_ROWS = 6


class Surroundings:
    """Everything but the rewards: a fake engine, a learner that counts, a recorder that keeps headers."""

    def __init__(self):
        self.version = WeightVersion(0, 0)
        self.headers = []

    async def generate(self, ticket, query):
        import fake_actors
        import ray

        from cluster.batches import BatchItem
        from rollout.fake import FakeEngine

        engine = FakeEngine(fake_actors.SETTINGS, "engine-0")
        engine.version = self.version
        return BatchItem(ray.put((await engine.generate(ticket, query, fake_actors.SAMPLING),)), 0)

    def expect(self, place, row):
        pass

    async def step(self, scored):
        self.version = WeightVersion(0, self.version.step + 1)
        return StepResult(step=self.version.step, weight_version=self.version, metrics={})

    async def publish(self, version):
        pass

    def scored(self, header):
        self.headers.append(header)

    def stepped(self, result, headers, lags):
        pass

    wants_checkpoint = False


def train(tmp_path, max_dead_letters):
    """One epoch with the user's function, two workers; returns the ledger and the headers."""
    import fake_actors
    import ray

    from cluster.actors import RewardActor
    from cluster.reward_pool import RewardPool

    (tmp_path / "moody.py").write_text(MOODY)
    config = RewardConfig(num_workers=2, timeout_s=5.0, weights={"moody.py:moody": 0.5})
    actor = ray.remote(RewardActor).options(num_cpus=0)
    folder = str(tmp_path / "rollouts")
    pool = RewardPool(config, lambda worker_id: actor.remote(config, 0, folder, worker_id, str(tmp_path)))
    ledger = QueryLedger(
        fake_actors.query_of_row, NUM_ROWS, seed=0, max_dead_letters=max_dead_letters, max_epochs=1
    )
    around = Surroundings()
    parts = Parts(
        queries=ledger,
        rollouts=around,
        rewards=pool,
        learner=around,
        sync=around,
        recorder=around,
        buffer=SlotBuffer(4, NUM_ROWS),
    )
    schedule = Schedule(steps=NUM_ROWS, groups_per_step=2, max_policy_lag=1, skips_flat_groups=True)

    async def main():
        await pool.start()
        try:
            await run(parts, schedule)
        finally:
            await pool.close()

    asyncio.run(main())
    return ledger, around.headers


def test_groups_that_the_function_fails_on_are_dead_lettered_and_all_others_trained(small_ray, tmp_path):
    import pyarrow.parquet as pq

    ledger, headers = train(tmp_path, max_dead_letters=3)
    assert ledger.counts()[0] == {"issued": 6, "dead_lettered": 3, "trained": 3}
    reasons = {letter["row"]: letter["reason"] for letter in ledger.dead_letters}
    assert sorted(reasons) == [1, 2, 3]
    assert "failed 2 times" in reasons[1] and "'moody.py:moody' raised ValueError: this scene" in reasons[1]
    assert "no answer in rewards.timeout_s=5.0" in reasons[2]
    assert "gave nan for completion 0" in reasons[3]
    assert sorted(header.query_id for header in headers) == ["q0", "q4", "q5"]
    assert {header.term_means["moody.py:moody"] for header in headers} == {0.25}
    files = (tmp_path / "rollouts").glob("*.parquet")
    written = Counter(row for file in files for row in pq.read_table(file)["query_id"].to_pylist())
    assert written == {"q0": 1, "q4": 1, "q5": 1}


def test_the_run_stops_above_the_allowed_number(small_ray, tmp_path):
    with pytest.raises(DeadLetterError, match="2 groups were dead-lettered, 1 are allowed"):
        train(tmp_path, max_dead_letters=1)
