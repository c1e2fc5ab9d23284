"""GRPO, wired: the loop's collaborators made on Ray, and the loop driven from start to last checkpoint.

`drive` is shared with `cluster.debug`, which plugs in the same kinds of parts without Ray.
"""

import asyncio
import dataclasses
import logging
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ray

from alphadrive.config import Config
from alphadrive.data.parquet import DrivingDataset
from alphadrive.types import DrivingQuery
from cluster.actors import CONTROL, RewardActor, RolloutActor
from cluster.buffer import SlotBuffer
from cluster.launch import Attempt
from cluster.learner_group import LearnerGroup
from cluster.loop import Learner, Parts, Rewards, Rollouts, Schedule, Sync, run
from cluster.nodes import watch_nodes
from cluster.placement import Placement
from cluster.proof import CanaryLimit, canary_queries
from cluster.queries import QueryLedger
from cluster.recorder import GrpoRecorder
from cluster.reward_pool import RewardPool
from cluster.rollout_pool import RolloutPool
from cluster.row_order import row_order
from cluster.weight_sync import WeightSync
from rollout.settings import EngineSettings, engine_settings, greedy_sampling, group_sampling

logger = logging.getLogger(__name__)

WEIGHTS_FOLDER = Path("/dev/shm")


class SyncWithRecord(Sync, Protocol):
    """A weight sync that keeps its figures."""

    seconds: list[float]
    canary_differences: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """What the loop runs on, and what the recorder needs of it."""

    rollouts: Rollouts
    rewards: Rewards
    learner: Learner
    sync: SyncWithRecord
    answer: Callable[[DrivingQuery], Awaitable[str]]
    save: Callable[[Path], Awaitable[None]]


async def train_on_ray(attempt: Attempt, rollout_actor: type = RolloutActor) -> None:
    """Start engines, reward workers and learner, prove the weights, train, stop everything."""
    config, placement = attempt.config, attempt.placement
    assert placement is not None
    pool = _make_rollout_pool(attempt, placement, rollout_actor)
    rewards = _make_reward_pool(config, attempt.run.rollouts_path)
    learner: LearnerGroup | None = None
    sync: WeightSync | None = None
    nodes = asyncio.create_task(watch_nodes((pool, rewards)))
    attempt.progress.say(
        f"starting {config.rollout.num_workers} engines, {config.rewards.num_workers} reward workers, "
        f"{config.learner.num_ranks} learner ranks"
    )
    try:
        async with asyncio.TaskGroup() as starting:
            starting.create_task(pool.start())
            starting.create_task(rewards.start())
            learner_task = starting.create_task(_start_learner(attempt, placement))
        learner = learner_task.result()
        sync = _make_sync(attempt, pool, learner)
        await sync.calibrate()
        await sync.publish(learner.version)
        system = System(
            rollouts=pool,
            rewards=rewards,
            learner=learner,
            sync=sync,
            answer=pool.answer,
            save=learner.save,
        )
        await drive(attempt, system)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    finally:
        nodes.cancel()
        if sync is not None:
            sync.remove_files()
        await asyncio.gather(pool.close(), rewards.close())
        if learner is not None:
            learner.kill()


async def drive(attempt: Attempt, system: System) -> None:
    """Run the loop from the attempt's first step to its end, and write the last checkpoint."""
    config, saved = attempt.config, attempt.saved
    dataset = DrivingDataset(config.data.train, config.data.num_rows)
    first_step = attempt.version.step + 1
    schedule = make_schedule(config, first_step)
    num_groups = config.grpo.steps * config.grpo.groups_per_step
    ledger = QueryLedger(
        dataset.query,
        len(dataset),
        seed=config.seed,
        order=row_order(config.data.sampling, Path(config.data.train), len(dataset), config.seed),
        max_dead_letters=int(config.rewards.max_dead_letter_share * num_groups),
        state=saved.get("queries"),
    )
    buffer = SlotBuffer(
        config.num_slots,
        (config.grpo.steps - attempt.version.step) * config.grpo.groups_per_step,
        saved.get("next_ticket", 0),
    )
    recorder = GrpoRecorder(
        config,
        attempt.run,
        ledger,
        attempt.progress,
        attempt.status,
        answer=system.answer,
        save=system.save,
        sync_seconds=system.sync.seconds,
        canary_differences=system.sync.canary_differences,
        next_ticket=lambda: buffer.next_ticket,
    )
    parts = Parts(
        queries=ledger,
        rollouts=system.rollouts,
        rewards=system.rewards,
        learner=system.learner,
        sync=system.sync,
        recorder=recorder,
        buffer=buffer,
    )

    def stop() -> None:
        buffer.stop()
        recorder.stop()

    attempt.stop.on_stop = stop
    attempt.status.write(status="running")
    recorder.start()
    try:
        await run(parts, schedule)
    finally:
        recorder.end()
        attempt.summary |= recorder.summary(system.learner.version.step)
    step = system.learner.version.step
    if schedule.eval_every and step % schedule.eval_every:
        await recorder.evaluate(step)
    if step != recorder.last_checkpoint_step:
        await recorder.checkpoint(step)
    attempt.summary |= recorder.summary(step)
    _write_end(attempt, ledger)


def make_schedule(config: Config, first_step: int) -> Schedule:
    """The loop's schedule for a configuration."""
    return Schedule(
        steps=config.grpo.steps,
        first_step=first_step,
        groups_per_step=config.grpo.groups_per_step,
        sync_every=config.grpo.sync_every,
        max_policy_lag=config.grpo.max_policy_lag,
        skips_flat_groups=config.grpo.kl_coef == 0,
        eval_every=config.eval.every_steps if config.data.eval is not None else 0,
        checkpoint_every=config.checkpoint.every_steps,
    )


def settings_of_engine(attempt: Attempt, index: int) -> EngineSettings:
    """How an engine of this attempt starts: from the checkpoint's model where there is one."""
    folder = attempt.checkpoint.model_path if attempt.checkpoint else attempt.model_folder
    settings = engine_settings(
        attempt.config, str(folder), engine_index=index, attempt=attempt.version.attempt
    )
    return dataclasses.replace(settings, initial_version=attempt.version)


def canary_limit_and_queries(attempt: Attempt) -> tuple[CanaryLimit, list[DrivingQuery]]:
    """What the canary of this run compares on."""
    dataset = DrivingDataset(attempt.config.data.train, attempt.config.data.num_rows)
    queries = canary_queries(dataset.query, len(dataset), attempt.config.rollout.canary_rows)
    return CanaryLimit(attempt.config.model.dtype), queries


def _write_end(attempt: Attempt, ledger: QueryLedger) -> None:
    if attempt.stop.was_asked:
        return
    if ledger.has_no_signal:
        reason = (
            "a whole epoch ended without one group whose rewards differ: there is nothing to learn from "
            "(a model that has never seen the answer format needs `alphadrive sft` first; otherwise raise "
            "grpo.temperature or grpo.group_size)"
        )
        attempt.status.write(status="no_signal", reason=reason)
        attempt.progress.say(f"no_signal: {reason}")
    else:
        attempt.status.write(status="finished")


async def _start_learner(attempt: Attempt, placement: Placement) -> LearnerGroup:
    config = attempt.config
    return await LearnerGroup.start(
        "grpo",
        config,
        placement,
        model_folder=attempt.model_folder,
        dataset_folder=Path(config.data.train).resolve(),
        version=attempt.version,
        checkpoint=attempt.checkpoint.path if attempt.checkpoint else None,
    )


def _make_rollout_pool(attempt: Attempt, placement: Placement, rollout_actor: type) -> RolloutPool:
    config = attempt.config
    actor_class = ray.remote(concurrency_groups={CONTROL: 4})(rollout_actor)

    def spawn(index: int) -> Any:
        return actor_class.options(
            num_cpus=placement.cpus_per_engine,
            num_gpus=placement.gpus_per_engine,
            max_restarts=0,
            max_concurrency=max(1000, 2 * config.num_slots),
        ).remote()

    def sampling(ticket: int) -> Any:
        return group_sampling(config, seed=config.seed * 1_000_003 + ticket * config.grpo.group_size)

    return RolloutPool(
        config.rollout,
        spawn,
        lambda index: settings_of_engine(attempt, index),
        sampling,
        greedy_sampling(config),
    )


def _make_reward_pool(config: Config, rollouts_folder: Path) -> RewardPool:
    actor_class = ray.remote(RewardActor).options(num_cpus=0, max_restarts=0)
    folder, user_folder = str(rollouts_folder.resolve()), str(Path.cwd())

    def spawn(worker_id: str) -> Any:
        estimator = config.grpo.advantage_estimator
        return actor_class.remote(config.rewards, config.seed, folder, worker_id, user_folder, estimator)

    return RewardPool(config.rewards, spawn)


def _make_sync(attempt: Attempt, pool: RolloutPool, learner: LearnerGroup) -> WeightSync:
    config = attempt.config
    limit, queries = canary_limit_and_queries(attempt)
    return WeightSync(
        pool,
        learner,
        queries,
        limit,
        temperature=config.grpo.temperature,
        timeout_s=config.rollout.sync_timeout_s,
        folder=WEIGHTS_FOLDER,
        prefix=f"alphadrive-{uuid.uuid4().hex}",
        update_mode=config.rollout.update_mode,
    )
