"""GRPO in one process: the same loop and buffer, every other part called directly.

A `breakpoint()` in a reward, the loss or the loop stops this process: there is no Ray, no other
process, and everything runs in the main thread. What it costs: nothing overlaps.

On CPU with `grpo.max_policy_lag: 0` and `grpo.sync_every: 1` it is exact: a run that is killed and resumed
makes the weights, optimizer state, ledger and metrics (timings aside) that it would have made, bit for bit.
For that every group is drawn by itself from empty caches with a seed of its own, nothing is drawn beside an
evaluation or a checkpoint, no vision features are kept from step to step, and threads follow the
configuration alone.
"""

import asyncio
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from alphadrive.config import Config
from alphadrive.data.fetching import local_folder
from alphadrive.rollout_writer import RolloutWriter
from alphadrive.types import DrivingQuery, GroupHeader, RolloutGroup, ScoredGroup, StepResult, WeightVersion
from cluster.actors import largest_differences, scored_or_error
from cluster.buffer import SlotBuffer
from cluster.grpo import System, canary_limit_and_queries, drive, settings_of_engine
from cluster.headers import header_of
from cluster.launch import (
    WEIGHTS_FOLDER,
    Attempt,
    RunResult,
    execute,
    remove_leftover_weights,
    weights_prefix,
)
from cluster.meeting import point_on_this_machine
from cluster.proof import CanaryLimit, canary_sampling, check_digest
from rollout.settings import CANARY_TICKET, greedy_sampling, group_sampling

if TYPE_CHECKING:
    from learner.rank import LearnerRank
    from rollout.in_process import InProcessEngine

logger = logging.getLogger(__name__)

STAND_INS = """\
debug: one process, no Ray. What stands in for what:
  rollout actors   one vLLM LLM in this process, one group at a time
  reward workers   rewards.score_group, called directly
  learner ranks    one LearnerRank in this process (world size 1)
  weight sync      the same file, digest and canary, called directly
  loop, buffer     the shipped cluster/loop.py and cluster/buffer.py"""


def run_debug(config: Config, resume: bool = False, overwrite: bool = False) -> RunResult:
    """Run GRPO in this process. Raises as `cluster.launch.run_grpo`."""
    return execute("grpo", config, train_in_process, resume=resume, overwrite=overwrite, on_ray=False)


async def train_in_process(attempt: Attempt) -> None:
    """Make one engine and one learner here, then drive the loop with them."""
    from learner.rank import LearnerRank
    from rollout.environment import stay_on_loopback, use_threads
    from rollout.in_process import InProcessEngine

    config = attempt.config
    attempt.progress.say(STAND_INS)
    use_threads(max(1, int(config.learner.cpus_per_rank)))
    stay_on_loopback()
    remove_leftover_weights(attempt.run)
    rank = LearnerRank(
        _without_kept_features(config),
        rank=0,
        world_size=1,
        meeting_point=point_on_this_machine(attempt.run.path),
        model_folder=attempt.model_folder,
        dataset_folder=local_folder(config.data.train),
        attempt=attempt.version.attempt,
    )
    engine = await InProcessEngine.start(settings_of_engine(attempt, 0), "engine-0")
    if attempt.checkpoint is not None:
        rank.load_checkpoint(attempt.checkpoint.path)
    limit, queries = canary_limit_and_queries(attempt)
    learner = DirectLearner(rank, attempt.version)
    path = WEIGHTS_FOLDER / f"{weights_prefix(attempt.run)}.safetensors"
    sync = DirectSync(engine, rank, queries, limit, config.grpo.temperature, path)
    with RolloutWriter(attempt.run.rollouts_path, "debug") as writer:
        try:
            await sync.calibrate()
            await sync.publish(learner.version)
            if attempt.checkpoint is not None:
                # Again, because the engine's start and the first proof may have drawn from them.
                rank.restore_random_states(attempt.checkpoint.path)
            rollouts = DirectRollouts(config, engine)

            async def save(folder: Path) -> None:
                await learner.save(folder)
                writer.flush()

            system = System(
                rollouts=rollouts,
                rewards=DirectRewards(config, writer),
                learner=learner,
                sync=sync,
                answer=rollouts.answer,
                save=save,
                buffer=TurnBuffer,
                describe=lambda: "one process",
            )
            await drive(attempt, system)
        finally:
            rank.close()
            await engine.close()
            remove_leftover_weights(attempt.run)


def _without_kept_features(config: Config) -> Config:
    """Features of a frozen vision tower are computed for every step: kept ones stem from other microbatches,
    whose sums differ in the last bit, and a run that resumes has none."""
    return dataclasses.replace(config, learner=dataclasses.replace(config.learner, vision_cache_bytes=0))


class TurnBuffer(SlotBuffer):
    """Starts new groups when the loop waits for them and not before: none is under way beside an evaluation
    or in a checkpoint."""

    _kept: Sequence[GroupHeader] = ()

    def release(self, headers: Sequence[GroupHeader]) -> None:
        """Free the slots at the next `take`."""
        self._kept = headers

    async def take(self, num_groups: int) -> list[GroupHeader]:
        """As `SlotBuffer.take`."""
        kept, self._kept = self._kept, ()
        super().release(kept)
        return await super().take(num_groups)


class DirectRollouts:
    """Draws groups with the engine of this process, each from empty caches: what others were drawn before
    does not show in it."""

    def __init__(self, config: Config, engine: "InProcessEngine") -> None:
        self._config, self._engine = config, engine

    async def generate(self, ticket: int, query: DrivingQuery) -> object:
        """A group itself, where a cluster has a reference."""
        await asyncio.sleep(0)
        self._engine.reset_caches()
        return await self._engine.generate(ticket, query, group_sampling(self._config, query.seed))

    async def answer(self, query: DrivingQuery) -> str:
        """A greedy answer on the evaluation set."""
        await asyncio.sleep(0)
        self._engine.reset_caches()
        group = await self._engine.generate(-1, query, greedy_sampling(self._config), dataset="eval")
        return group.completions[0].text


class DirectRewards:
    """Scores groups here."""

    def __init__(self, config: Config, writer: RolloutWriter) -> None:
        from rewards.further import load_terms

        self._config, self._writer = config, writer
        self._further = load_terms(config.rewards, Path.cwd())

    async def score(self, group: object) -> GroupHeader:
        """Score a group and write it down."""
        assert isinstance(group, RolloutGroup)
        config = self._config
        scored = scored_or_error(
            group, config.rewards.variant, config.seed, self._further, config.grpo.advantage_estimator
        )
        self._writer.write(scored)
        return header_of(scored, scored)


class DirectLearner:
    """The learner's only rank, in this process."""

    def __init__(self, rank: "LearnerRank", version: WeightVersion) -> None:
        self.version = version
        self._rank = rank

    def expect(self, place: int, row: int) -> None:
        """Start reading the image of a group that will be trained on."""
        self._rank.expect([row])

    async def step(self, scored: Sequence[object]) -> StepResult:
        """One optimizer step."""
        groups = [group for group in scored if isinstance(group, ScoredGroup)]
        result = self._rank.step(groups)
        self.version = result.weight_version
        return result

    async def save(self, folder: Path) -> None:
        """Write model and optimizer into a folder."""
        self._rank.save_checkpoint(folder)
        self._rank.save_model(folder / "model")


class DirectSync:
    """Weights to the engine of this process, with the same proof as on a cluster."""

    def __init__(
        self,
        engine: "InProcessEngine",
        rank: "LearnerRank",
        queries: Sequence[DrivingQuery],
        limit: CanaryLimit,
        temperature: float,
        path: Path,
    ) -> None:
        self.path = path
        self.seconds: list[float] = []
        self.canary_differences: list[float] = []
        self.paused_seconds: list[float] = []
        self.latest: dict[str, float] = {}
        self._engine, self._rank, self._queries, self._limit = engine, rank, queries, limit
        self._sampling = canary_sampling(temperature)

    async def calibrate(self) -> None:
        """Compare engine and learner before any transfer."""
        self._limit.calibrate(await self._differences())

    async def publish(self, version: WeightVersion) -> None:
        """Bring the engine to `version`. Raises WeightSyncError."""
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        weights = self._rank.export_weights(self.path)
        assert weights is not None
        check_digest("engine-0", weights, await self._engine.update_weights(weights), version)
        self.path.unlink()
        difference = max(await self._differences())
        self.canary_differences.append(difference)
        self._limit.check("engine-0", version, difference)
        self.seconds.append(loop.time() - started_s)

    async def _differences(self) -> list[float]:
        groups = []
        for query in self._queries:
            self._engine.reset_caches()
            groups.append(await self._engine.generate(CANARY_TICKET, query, self._sampling))
        return largest_differences(tuple(groups), self._rank.score(groups))
