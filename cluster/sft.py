"""SFT on the learner's ranks: the rows in the order of `cluster.row_order`, one optimizer step a batch.

No engines, no rewards; the same gang of ranks, run folder, checkpoints and signals as GRPO.
"""

import asyncio
import time
from typing import cast

from alphadrive import metric_names as names
from alphadrive.data.fetching import local_folder, place_for_others
from alphadrive.data.parquet import DrivingDataset
from cluster.checkpointing import CheckpointWriter
from cluster.launch import Attempt
from cluster.learner_group import LearnerGroup
from cluster.nodes import watch_nodes
from cluster.nonfinite import NonFiniteSteps
from cluster.profiler import profiled
from cluster.recovery import train_with_restarts
from cluster.row_order import RowOrder, row_order
from cluster.traced import TracedSft


async def train_sft(attempt: Attempt) -> None:
    """Start the learner, make all steps, write the last checkpoint, stop the learner."""
    config, placement = attempt.config, attempt.placement
    assert placement is not None
    attempt.progress.say(f"starting {config.learner.num_ranks} learner ranks")
    learner = await LearnerGroup.start(
        "sft",
        config,
        placement,
        model_folder=attempt.model_folder,
        dataset_folder=place_for_others(config.data.train),
        version=attempt.version,
        checkpoint=attempt.checkpoint.path if attempt.checkpoint else None,
    )
    attempt.watched.learner = learner
    nodes = asyncio.create_task(watch_nodes((learner,)))
    try:
        await train_with_restarts(attempt, learner, lambda: _recorded_steps(attempt, learner))
        if not attempt.stop.was_asked:
            attempt.status.write(status="finished")
    finally:
        nodes.cancel()
        learner.kill()


def batch_rows(order: RowOrder, num_rows: int, batch_size: int, step: int) -> list[int]:
    """The rows of step `step` (from 1): the epochs end to end, cut into batches. `num_rows` is the length
    of an epoch.

    >>> sorted(batch_rows(uniform_order(4, 0), 4, 2, 1) + batch_rows(uniform_order(4, 0), 4, 2, 2))
    [0, 1, 2, 3]
    """
    first = (step - 1) * batch_size
    rows: list[int] = []
    for epoch in range(first // num_rows, (first + batch_size - 1) // num_rows + 1):
        start = max(0, first - epoch * num_rows)
        rows += order.epoch_rows(epoch)[start : start + batch_size - len(rows)]
    return rows


async def _recorded_steps(attempt: Attempt, learner: LearnerGroup) -> None:
    async with profiled(attempt) as is_recorded:
        await _steps(attempt, cast(LearnerGroup, TracedSft(learner)) if is_recorded else learner)


async def _steps(attempt: Attempt, learner: LearnerGroup) -> None:
    config = attempt.config
    folder = local_folder(config.data.train)
    dataset = DrivingDataset(folder, config.data.num_rows)
    num_rows = len(dataset)
    nonfinite = NonFiniteSteps(attempt.run.path, attempt.saved.get("nonfinite"))
    checkpoints = CheckpointWriter(attempt.run, attempt.status)

    def ledger() -> dict[str, object]:
        return {
            "stage": "sft",
            "step": learner.version.step,
            "attempt": attempt.version.attempt,
            "data_sha256": attempt.data_sha256,
            "nonfinite": nonfinite.state(),
            "summary": {"sft": attempt.summary["sft"]},
        }

    order = row_order(config.data.sampling, folder, num_rows, config.seed)
    stopping = asyncio.Event()
    attempt.stop.on_stop = stopping.set
    attempt.status.write(status="running")
    started_s = time.monotonic()
    rows = batch_rows(order, num_rows, config.sft.batch_size, attempt.version.step + 1)
    learner.expect_rows(rows)
    last_loss: float | None = None
    for step in range(attempt.version.step + 1, config.sft.steps + 1):
        if stopping.is_set():
            break
        next_rows = batch_rows(order, num_rows, config.sft.batch_size, step + 1)
        if step < config.sft.steps:
            learner.expect_rows(next_rows)
        result = await learner.sft_step(rows)
        metrics = result.metrics | {names.CHECKPOINTS_FAILED: float(checkpoints.num_failed)}
        attempt.run.write_metrics(step, metrics)
        figures = {
            "loss": f"{result.metrics[names.SFT_LOSS]:.4f}",
            "samples/s": f"{result.metrics[names.SAMPLES_PER_S]:.1f}",
            "lr": f"{result.metrics[names.SFT_LEARNING_RATE]:.2e}",
        }
        attempt.progress.step(step, figures)
        attempt.status.write(
            step=step,
            weight_version=str(result.weight_version),
            throughput={"samples_per_s": result.metrics[names.SAMPLES_PER_S]},
        )
        num_samples = (step - attempt.version.step) * config.sft.batch_size
        nonfinite.note(result, ({"row": row, "query_id": dataset.query(row).query_id} for row in rows))
        if result.was_updated:
            last_loss = result.metrics[names.SFT_LOSS]
        attempt.summary["sft"] = {
            "steps": step,
            "samples": step * config.sft.batch_size,
            "samples_per_s": num_samples / (time.monotonic() - started_s),
            "loss": last_loss,
            "nonfinite_steps": nonfinite.count,
        }
        nonfinite.raise_if_too_many()
        rows = next_rows
        is_due = step % config.checkpoint.every_steps == 0 or learner.must_move
        if is_due and await checkpoints.write(step, learner.save, ledger) is not None:
            learner.checkpointed()
    step = learner.version.step
    if step not in (checkpoints.last_step, attempt.version.step):
        await checkpoints.write(step, learner.save, ledger, is_last=True)
    await checkpoints.end()
