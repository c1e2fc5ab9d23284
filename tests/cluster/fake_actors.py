"""The shipped actor shells around a fake engine, a fake learner rank, and rewards that misbehave."""

import asyncio
import os
import signal
import time
from pathlib import Path

from alphadrive.config import RewardConfig
from alphadrive.errors import EngineDiedError, RewardError
from alphadrive.rollout_writer import RolloutWriter
from alphadrive.types import DrivingQuery, StepResult, WeightVersion
from alphadrive.weight_layout import TensorMeta, WeightLayout
from cluster.actors import LearnerActor, RewardActor, RolloutActor
from rollout.fake import FakeEngine, Faults, write_fake_weights
from rollout.settings import EngineSettings, Sampling

SETTINGS = EngineSettings(model_folder="none")
SAMPLING = Sampling(num_samples=2, max_new_tokens=64)


def query_of_row(row):
    return DrivingQuery(query_id=f"q{row}", row=row, speed_mps=5.0, navigation="", plans=("KEEP, STRAIGHT",))


def run_with(pool, main):
    """Start a pool, run `main()`, close the pool."""

    async def whole():
        try:
            await pool.start()
            return await main()
        finally:
            await pool.close()

    return asyncio.run(whole())


class FakeRolloutActor(RolloutActor):
    """`faults` belong to the engine named `faulty`; its replacement has none. `kills_process_after` groups
    the process ends as by kill -9. Every engine dies of `poison_rows`; `unstartable` ones do not start."""

    def __init__(
        self,
        faulty="engine-0",
        delay_s=0.0,
        kills_process_after=None,
        update=None,
        poison_rows=(),
        unstartable=(),
        streams=False,
        **faults,
    ):
        if streams:  # as a real engine, has torch by the time it is asked for anything
            import rollout.weight_receiver  # noqa: F401
        self.faulty, self.delay_s, self.faults = faulty, delay_s, faults
        self.kills_process_after, self.update = kills_process_after, update
        self.poison_rows, self.unstartable = poison_rows, unstartable
        self.is_faulty = False

    async def start(self, settings, engine_id):
        if engine_id in self.unstartable:
            raise EngineDiedError(f"{engine_id}: injected")
        self._loop = asyncio.get_running_loop()
        self.is_faulty = engine_id == self.faulty
        faults = Faults(**self.faults) if self.is_faulty else None
        self._engine = FakeEngine(settings, engine_id, delay_s=self.delay_s, faults=faults)
        return os.getpid()

    async def generate(self, ticket, query, sampling):
        given = await super().generate(ticket, query, sampling)
        limit = self.kills_process_after
        if self.is_faulty and limit is not None and self._engine.groups_drawn > limit:
            os._exit(137)
        if query.row in self.poison_rows:
            os._exit(137)
        return given

    async def update_weights(self, weights, queries, sampling):
        if self.is_faulty and self.update == "hangs":
            await asyncio.sleep(3600)
        if self.is_faulty and self.update == "dies":
            os._exit(137)
        if self.is_faulty and self.update == "raises":
            raise RuntimeError("injected: no memory for the bucket")
        return await super().update_weights(weights, queries, sampling)

    async def updates_taken(self):
        return self._engine.updates_taken


class SlowRolloutActor(FakeRolloutActor):
    """An engine whose groups take a while."""

    def __init__(self):
        super().__init__(delay_s=0.3)


class FakeRank:
    """A learner rank that computes what the fake engine computes. `faults` say what the last rank does in a
    step, by (attempt, step)."""

    def __init__(self, config, *, rank, world_size, attempt=0, dies_at=None, faults=None, **placing):
        self.rank, self.world_size, self.dies_at = rank, world_size, dies_at
        self.faults = faults or {}
        self.offers = None
        self.version = WeightVersion(attempt, 0)
        self.engine = FakeEngine(SETTINGS, "truth")
        self.expected = []

    def expect(self, rows):
        self.expected += rows

    def step(self, groups):
        self.version = WeightVersion(self.version.attempt, self.version.step + 1)
        if self.rank == self.world_size - 1 and self.version.step == self.dies_at:
            os._exit(137)
        self._go_wrong(self.faults.get(tuple(self.version)))
        metrics = {"groups": float(len(groups))}
        return StepResult(step=self.version.step, weight_version=self.version, metrics=metrics)

    def score(self, groups):
        self.engine.version = self.version
        scored = []
        for group in groups:
            num_tokens = max(len(completion.token_ids) for completion in group.completions)
            sampling = Sampling(num_samples=len(group.completions), max_new_tokens=num_tokens)
            redrawn = asyncio.run(self.engine.generate(0, group.query, sampling))
            scored.append([list(completion.rollout_logprobs) for completion in redrawn.completions])
        return scored

    def export_weights(self, path):
        return write_fake_weights(Path(path), self.version) if self.rank == 0 else None

    @property
    def is_first(self):
        return self.rank == 0

    def weight_layout(self, bucket_bytes):
        meta = TensorMeta("model.norm.weight", "float32", (2,))
        return WeightLayout(self.offers or self.version, (meta,), bucket_bytes)

    def weight_buckets(self, layout):
        import torch

        for _ in layout.buckets:
            yield [torch.tensor(self.version, dtype=torch.float32)]

    def save_checkpoint(self, folder):
        (folder / f"rank_{self.rank}").write_text(str(self.version.step))

    def save_model(self, folder):
        if self.rank == 0:
            folder.mkdir()
            (folder / "model.safetensors").write_text("weights")

    def load_checkpoint(self, folder):
        step = int((Path(folder) / f"rank_{self.rank}").read_text())
        self.version = WeightVersion(self.version.attempt, step)

    def _go_wrong(self, fault):
        if fault == "peer dies":
            if self.rank == 0:
                raise RuntimeError("connection closed by peer")
            time.sleep(0.5)
            fault = "dies"
        if fault is None or self.rank != self.world_size - 1:
            return
        if fault == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault == "stops":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif fault == "hangs":
            time.sleep(3600)
        else:
            raise fault


class FakeLearnerActor(LearnerActor):
    faults = None

    def start(self, stage, config, placing, environment):
        self._rank = FakeRank(config, **placing, faults=self.faults)

    def make_die_at(self, step):
        self._rank.dies_at = step

    def make_offer(self, version):
        self._rank.offers = version

    def expected_rows(self):
        return self._rank.expected


def faulty_learner_actor(planned):
    """A learner actor's class whose last rank does what is planned, by (attempt, step)."""

    class FaultyLearnerActor(FakeLearnerActor):
        faults = planned

    return FaultyLearnerActor


class MoodyRewardActor(RewardActor):
    """Row 1 raises always, row 2 hangs always, row 3 hangs in the first worker only, row 4 kills its
    process once, row 5 always, row 6 takes its time. A worker in `unstartable` does not come up. What is
    written is on disk at once."""

    def __init__(self, folder, worker_id, unstartable=()):
        super().__init__(RewardConfig(variant="paper"), 0, folder, worker_id, folder)
        self._writer = RolloutWriter(Path(folder), worker_id, groups_per_part=1)
        self.worker_id = worker_id
        if worker_id in unstartable:
            os._exit(137)

    def _scored(self, group):
        row = group.query.row
        if row == 1:
            return RewardError("no finite number")
        if row == 2 or (row == 3 and self.worker_id == "w0"):
            time.sleep(3600)
        if row == 5 or (row == 4 and self.worker_id == "w0"):
            os._exit(137)
        if row == 6:
            time.sleep(1.0)
        return super()._scored(group)
