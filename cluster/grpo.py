"""GRPO, wired: the loop's collaborators made on Ray, and the loop driven from start to last checkpoint.

`drive` is shared with `cluster.debug`, which plugs in the same kinds of parts without Ray.
"""

import asyncio
import dataclasses
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import ray
from ray.util.placement_group import remove_placement_group

from alphadrive.config import Config
from alphadrive.data.fetching import local_folder, place_for_others
from alphadrive.data.parquet import DrivingDataset
from alphadrive.pools import parse_pool
from alphadrive.types import DrivingQuery
from cluster.actors import CONTROL, RewardActor, RolloutActor
from cluster.buffer import SlotBuffer
from cluster.carriers import Carrier, FileCarrier, StreamCarrier, transfer_kind
from cluster.gang import reserve
from cluster.inventory import room_text
from cluster.jobs import cluster_to_join
from cluster.launch import WEIGHTS_FOLDER, Attempt, remove_leftover_weights, weights_prefix
from cluster.learner_group import LearnerGroup
from cluster.loop import Learner, Parts, Rewards, Rollouts, Schedule, Sync, run
from cluster.nodes import Drainable, num_machines, watch_nodes
from cluster.placement import Placement
from cluster.placing import first_engine_placed
from cluster.profiler import profiled
from cluster.proof import CanaryLimit, canary_queries
from cluster.queries import QueryLedger
from cluster.recorder import GrpoRecorder
from cluster.recovery import train_with_restarts
from cluster.reward_pool import RewardPool
from cluster.rollout_pool import RolloutPool
from cluster.row_order import row_order
from cluster.stall import guarded, stall_limit_s, watch_progress
from cluster.traced import traced
from cluster.weight_sync import WeightSync
from rollout.settings import EngineSettings, engine_settings, greedy_sampling, group_sampling

logger = logging.getLogger(__name__)

LEAST_PLACING_S = 10.0
START = "no engine, reward worker or learner came up"


def _nothing() -> None: ...


class SyncWithRecord(Sync, Protocol):
    """A weight sync that keeps its figures."""

    seconds: list[float]
    canary_differences: list[float]
    paused_seconds: list[float]
    """Empty where engine and learner are one process."""
    latest: dict[str, float]
    """Parts of the latest publish, by the names of their metrics; empty as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """What the loop runs on, and what the recorder needs of it."""

    rollouts: Rollouts
    rewards: Rewards
    learner: Learner
    sync: SyncWithRecord
    answer: Callable[[DrivingQuery], Awaitable[str]]
    save: Callable[[Path], Awaitable[None]]
    describe: Callable[[], str]
    """What engines and learner are doing, in words."""
    must_move: Callable[[], bool] = bool
    """Whether the learner is to be given up after a checkpoint, which is due at once."""
    checkpointed: Callable[[], None] = _nothing
    buffer: type[SlotBuffer] = SlotBuffer


async def train_on_ray(attempt: Attempt, rollout_actor: type = RolloutActor) -> None:
    """Start engines, reward workers and learner, prove the weights, train, stop everything."""
    config, placement = attempt.config, attempt.placement
    assert placement is not None
    if config.rollout.weight_transfer == "auto":
        is_joined = cluster_to_join() is not None
        may_grow = is_joined and (config.rollout.autoscale.max > 0 or config.cluster.wait_for_nodes_s > 0)
        config.rollout.weight_transfer = transfer_kind(config, num_machines(), may_grow=may_grow)
    pool = _make_rollout_pool(attempt, placement, rollout_actor)
    rewards = _make_reward_pool(config, attempt.run.rollouts_path)
    learner: LearnerGroup | None = None
    drainable: list[Drainable] = [pool, rewards]
    nodes = asyncio.create_task(watch_nodes(drainable))
    remove_leftover_weights(attempt.run)
    attempt.watched.rollouts, attempt.watched.rewards = pool, rewards
    place: Any = None

    async def reserve_place() -> None:
        nonlocal place
        place = await reserve(
            config.learner.num_ranks,
            placement.rank_resources(),
            placement.learner_pool,
            placement.placing_s,
        )

    async def start_learner() -> None:
        nonlocal learner
        learner = attempt.watched.learner = await _start_learner(attempt, placement, place)
        drainable.append(learner)

    async def start_all() -> None:
        async with asyncio.TaskGroup() as starting:
            starting.create_task(pool.start())
            starting.create_task(rewards.start())
            starting.create_task(start_learner())

    def up() -> object:
        return pool.num_up, rewards.num_up, learner is not None

    def waits_for() -> str:
        parts = {"engines": pool.num_up, "reward workers": rewards.num_up, "learner": learner is not None}
        return "up so far: " + ", ".join(f"{name} {number:d}" for name, number in parts.items())

    attempt.progress.say(
        f"starting {config.rollout.num_workers} engines, {config.rewards.num_workers} reward workers, "
        f"{config.learner.num_ranks} learner ranks"
    )
    started_s = time.monotonic()
    try:
        # All ranks at once, before engines take a room here and there that they need.
        await reserve_place()
        left_s = max(LEAST_PLACING_S, placement.placing_s - (time.monotonic() - started_s))
        limit_s = stall_limit_s(config) + config.cluster.wait_for_nodes_s
        await guarded(
            start_all(),
            watch_progress(limit_s, up, waits_for, what=START),
            first_engine_placed(pool, placement, left_s),
        )
        assert learner is not None
        attempt.summary["engine_start_s"] = pool.start_seconds
        await _train(attempt, pool, rewards, learner)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    finally:
        nodes.cancel()
        try:
            await asyncio.gather(pool.close(), rewards.close())
        finally:
            if learner is not None:
                learner.kill()
            elif place is not None:
                remove_placement_group(place)
            # Last: an export that was cut off may still write its file until the ranks are gone.
            remove_leftover_weights(attempt.run)


async def _train(attempt: Attempt, pool: RolloutPool, rewards: RewardPool, learner: LearnerGroup) -> None:
    sync = _make_sync(attempt, pool, learner)

    def describe() -> str:
        engines = (f"{each.id} is {each.state}, {each.num_under_way} groups" for each in pool.engines)
        return "; ".join([*engines, learner.doing()])

    system = System(
        rollouts=pool,
        rewards=rewards,
        learner=learner,
        sync=sync,
        answer=pool.answer,
        save=learner.save,
        describe=describe,
        must_move=lambda: learner.must_move,
        checkpointed=learner.checkpointed,
    )

    async def prove() -> None:
        if not sync.is_calibrated:
            await sync.calibrate()
        await sync.publish(learner.version)

    async def from_last_checkpoint() -> None:
        proofs = watch_progress(
            stall_limit_s(attempt.config), lambda: sync.is_calibrated, describe, what="no weights proved"
        )
        await guarded(prove(), proofs)
        await drive(attempt, system)

    await train_with_restarts(attempt, learner, from_last_checkpoint, settle=rewards.flush)


async def drive(attempt: Attempt, system: System) -> None:
    """Run the loop from the attempt's first step to its end, and write the last checkpoint.

    Raises StalledError when nothing is done for a long time, and what the loop raises.
    """
    ledger = _make_ledger(attempt)
    grpo = attempt.config.grpo
    num_groups = (grpo.steps - attempt.version.step) * grpo.groups_per_step
    buffer = system.buffer(attempt.config.num_slots, num_groups, ledger.next_ticket)
    recorder = GrpoRecorder(
        attempt.config,
        attempt.run,
        ledger,
        attempt.progress,
        attempt.status,
        answer=system.answer,
        save=system.save,
        sync_seconds=system.sync.seconds,
        canary_differences=system.sync.canary_differences,
        paused_seconds=system.sync.paused_seconds,
        sync_parts=system.sync.latest,
        saved=attempt.saved,
        data_sha256=attempt.data_sha256,
        waited_s=lambda: buffer.waited_s,
        worker_metrics=attempt.watched.metrics,
        wants_checkpoint=system.must_move,
        checkpointed=system.checkpointed,
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

    def done() -> object:
        return recorder.progress(), ledger.num_ended, system.learner.version

    def describe() -> str:
        slots = (
            f"{buffer.num_held} of {buffer.num_slots} slots held, {buffer.num_ready} groups wait for a step"
        )
        return f"{slots}; {system.describe()}"

    attempt.stop.on_stop = stop
    attempt.status.write(status="running")
    attempt.watched.buffer = buffer
    limit_s = stall_limit_s(attempt.config)
    async with profiled(attempt) as is_recorded:
        run_parts = traced(parts) if is_recorded else parts
        await guarded(_to_the_end(attempt, run_parts), watch_progress(limit_s, done, describe))
    _write_end(attempt, ledger)


async def _to_the_end(attempt: Attempt, parts: Parts) -> None:
    schedule, learner = make_schedule(attempt.config, attempt.version.step + 1), parts.learner
    recorder = cast(GrpoRecorder, parts.recorder)
    recorder.start()
    try:
        await run(parts, schedule)
    finally:
        recorder.end()
        attempt.summary |= recorder.summary(learner.version.step)
    step = learner.version.step
    if schedule.eval_every and step % schedule.eval_every:
        await recorder.evaluate(step)
    if step != recorder.last_checkpoint_step:
        await recorder.checkpoint(step, is_last=True)
    await recorder.end_checkpoints()
    attempt.summary |= recorder.summary(step)


def _make_ledger(attempt: Attempt) -> QueryLedger:
    config = attempt.config
    folder = local_folder(config.data.train)
    dataset = DrivingDataset(folder, config.data.num_rows)
    num_groups = config.grpo.steps * config.grpo.groups_per_step
    return QueryLedger(
        dataset.query,
        len(dataset),
        seed=config.seed,
        order=row_order(config.data.sampling, folder, len(dataset), config.seed),
        max_dead_letters=int(config.rewards.max_dead_letter_share * num_groups),
        state=attempt.saved.get("queries"),
    )


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
    """How an engine of this attempt starts: the first ones from the checkpoint's model where there is one.

    Once the loop runs that may be removed while an engine reads it: later ones start from the run's first
    model, and serve when they have proved the current weights.
    """
    folder = attempt.model_folder
    if attempt.checkpoint is not None and attempt.watched.buffer is None:
        folder = attempt.checkpoint.model_path
    settings = engine_settings(
        attempt.config, str(folder), engine_index=index, attempt=attempt.version.attempt
    )
    return dataclasses.replace(settings, initial_version=attempt.version)


def canary_limit_and_queries(attempt: Attempt) -> tuple[CanaryLimit, list[DrivingQuery]]:
    """What the canary of this run compares on."""
    dataset = DrivingDataset(local_folder(attempt.config.data.train), attempt.config.data.num_rows)
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


async def _start_learner(attempt: Attempt, placement: Placement, place: Any) -> LearnerGroup:
    config = attempt.config
    return await LearnerGroup.start(
        "grpo",
        config,
        placement,
        model_folder=attempt.model_folder,
        dataset_folder=place_for_others(config.data.train),
        version=attempt.version,
        checkpoint=attempt.checkpoint.path if attempt.checkpoint else None,
        place=place,
    )


def _make_rollout_pool(attempt: Attempt, placement: Placement, rollout_actor: type) -> RolloutPool:
    config = attempt.config
    actor_class = ray.remote(concurrency_groups={CONTROL: 4})(rollout_actor)

    def spawn(index: int) -> Any:
        return actor_class.options(
            num_cpus=placement.cpus_per_engine,
            num_gpus=placement.gpus_per_engine,
            label_selector=placement.rollout_pool,
            max_restarts=0,
            max_concurrency=max(1000, 2 * config.num_slots),
        ).remote()

    return RolloutPool(
        config.rollout,
        spawn,
        lambda index: settings_of_engine(attempt, index),
        lambda query: group_sampling(config, query.seed),
        greedy_sampling(config),
        room=lambda: room_text(placement.rollout_pool),
    )


def _make_reward_pool(config: Config, rollouts_folder: Path) -> RewardPool:
    pool = parse_pool("cluster.reward_pool", config.cluster.reward_pool)
    actor_class = ray.remote(RewardActor).options(num_cpus=0, max_restarts=0, label_selector=pool)
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
        carrier=_make_carrier(attempt, pool, learner),
        update_mode=config.rollout.update_mode,
    )


def _make_carrier(attempt: Attempt, pool: RolloutPool, learner: LearnerGroup) -> Carrier:
    rollout = attempt.config.rollout
    if rollout.weight_transfer == "file":
        return FileCarrier(learner, WEIGHTS_FOLDER, weights_prefix(attempt.run))
    return StreamCarrier(
        rollout.weight_transfer,
        pool,
        learner,
        bucket_bytes=rollout.weight_bucket_bytes,
        timeout_s=rollout.sync_timeout_s,
        waits=rollout.update_mode == "wait",
    )
