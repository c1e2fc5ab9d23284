"""What a run consists of, without models: for killing and resuming many runs in a short time.

The shipped launch, run folder, loop, buffer, ledger, recorder, rewards, rollout writer and checkpoint store
run on a fake engine (`rollout.fake`) and a learner that remembers all that it was trained on. What an
engine answers follows from the query's seed alone, so that a resumed run must train on what the run would
have trained on.
"""

import asyncio
import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path

from alphadrive.actions import PATHS, SPEEDS
from alphadrive.prompts import answer_text
from alphadrive.rollout_writer import RolloutWriter
from alphadrive.types import DrivingQuery, ScoredGroup, StepResult, WeightVersion
from cluster.buffer import SlotBuffer
from cluster.debug import DirectRewards, TurnBuffer
from cluster.grpo import System, drive
from cluster.launch import Attempt
from rollout.fake import FakeEngine
from rollout.settings import EngineSettings, group_sampling

PHASES = ("starting", "training", "evaluating", "saving", "ending")


class Phase:
    """What a run is doing, in a byte of shared memory that outlives its process."""

    def __init__(self, memory: bytearray) -> None:
        self._memory = memory

    def enter(self, name: str) -> None:
        """From now on."""
        self._memory[0] = PHASES.index(name)

    def __str__(self) -> str:
        return PHASES[self._memory[0]]


def answer_of(query: DrivingQuery, index: int, version: WeightVersion) -> str:
    """A plan that follows from the query's seed; one group in four is all the same."""
    noise = hashlib.sha256(f"{query.seed} {index if (query.seed or 0) % 4 else 0}".encode()).digest()
    plan = f"{SPEEDS[noise[0] % len(SPEEDS)]}, {PATHS[noise[1] % len(PATHS)]}"
    return answer_text(f"seen {noise[2]}", plan)


class FakeLearner:
    """Trains on nothing and remembers it: `trained` are the seeds of its queries, `chain` a hash of the
    groups in order. The steps that `bad_every` divides are not applied."""

    def __init__(self, attempt: Attempt, phase: Phase, bad_every: int) -> None:
        self.version = attempt.version
        self.trained: list[int] = []
        self.chain = ""
        self._phase, self._bad_every = phase, bad_every
        if attempt.checkpoint is not None:
            state = json.loads((attempt.checkpoint.path / "learner.json").read_text())
            self.trained, self.chain = state["trained"], state["chain"]
            assert state["step"] == attempt.version.step

    def expect(self, place: int, row: int) -> None:
        """There are no images."""

    async def step(self, scored: Sequence[object]) -> StepResult:
        """One step."""
        self._phase.enter("training")
        await asyncio.sleep(random.random() * 0.02)
        step = self.version.step + 1
        self.version = WeightVersion(self.version.attempt, step)
        is_bad = self._bad_every > 0 and step % self._bad_every == 0
        groups = [group for group in scored if isinstance(group, ScoredGroup)]
        assert len(groups) == len(scored)
        if not is_bad:
            for group in groups:
                query, rewards = group.group.query, [reward.total for reward in group.rewards]
                self.trained.append(query.seed or 0)
                self.chain = hashlib.sha256(f"{self.chain} {query.seed} {rewards}".encode()).hexdigest()
        return StepResult(
            step=step,
            weight_version=self.version,
            metrics={
                "actor/loss": float(len(groups)),
                "actor/grad_norm": int(self.chain[:8] or "0", 16) / 2**32,
            },
            problem="the loss is nan" if is_bad else None,
            was_updated=not is_bad,
        )

    async def save(self, folder: Path) -> None:
        """Write what it remembers, in several files and some time."""
        self._phase.enter("saving")
        state = {"trained": self.trained, "chain": self.chain, "step": self.version.step}
        (folder / "model").mkdir()
        for name in ("model/config.json", "model/model.safetensors", "optimizer.pt"):
            (folder / name).write_bytes(self.chain.encode() * 500)
            await asyncio.sleep(random.random() * 0.01)
        (folder / "learner.json").write_text(json.dumps(state))


class FakeSync:
    """Publishes at once."""

    def __init__(self, engine: FakeEngine) -> None:
        self.seconds, self.canary_differences, self.paused_seconds = [0.0], [0.0], [0.0]
        self.latest: dict[str, float] = {}
        self._engine = engine

    async def publish(self, version: WeightVersion) -> None:
        """The engine answers under the new version."""
        await asyncio.sleep(random.random() * 0.005)
        self._engine.version = version


class FakeRollouts:
    """Draws groups in some time, several at once."""

    def __init__(self, attempt: Attempt, engine: FakeEngine, phase: Phase) -> None:
        self._config, self._engine, self._phase = attempt.config, engine, phase

    async def generate(self, ticket: int, query: DrivingQuery) -> object:
        """A group."""
        await asyncio.sleep(random.random() * 0.02)
        return await self._engine.generate(ticket, query, group_sampling(self._config, query.seed))

    async def answer(self, query: DrivingQuery) -> str:
        """An answer on the evaluation set."""
        self._phase.enter("evaluating")
        await asyncio.sleep(random.random() * 0.005)
        return answer_of(query, 0, self._engine.version)


async def train_with_fakes(attempt: Attempt, phase: Phase, bad_every: int) -> None:
    """A stage for `cluster.launch.execute`."""
    random.seed()
    engine = FakeEngine(EngineSettings(model_folder="none"), "engine-0", answer=answer_of)
    engine.version = attempt.version
    learner, rollouts = FakeLearner(attempt, phase, bad_every), FakeRollouts(attempt, engine, phase)
    is_exact = attempt.config.grpo.max_policy_lag == 0
    with RolloutWriter(attempt.run.rollouts_path, "fake", groups_per_part=3) as writer:

        async def save(folder: Path) -> None:
            await learner.save(folder)
            writer.flush()

        system = System(
            rollouts=rollouts,
            rewards=DirectRewards(attempt.config, writer),
            learner=learner,
            sync=FakeSync(engine),
            answer=rollouts.answer,
            save=save,
            describe=lambda: "fakes",
            buffer=TurnBuffer if is_exact else SlotBuffer,
        )
        await drive(attempt, system)
        phase.enter("ending")
