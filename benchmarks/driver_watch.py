"""What engines cost the driver that are only there: watching them, and a weight sync.

    python benchmarks/driver_watch.py --engines 4 12

The shipped pool, health watch, weight sync (digests and canaries included) and learner group on a real Ray,
around engines that do nothing and a learner's rank that hardly does. Time of the event loop's thread:

    watched    for an engine in a second
    status     for an engine each time that its status is told (the control room does so every second)
    sync       for an engine in a weight sync
"""

import argparse
import asyncio
import logging
import tempfile
import time
from pathlib import Path

import capacity_fakes
import ray
from capacity_fakes import SleepingLearnerActor, SleepingRolloutActor
from capacity_validation import make_attempt
from driver_scaling import Rows, start_learner

import cluster.grpo
import cluster.learner_group
from alphadrive.types import WeightVersion
from cluster.grpo import _make_rollout_pool, _make_sync
from cluster.processes import ProcessTree
from cluster.ray_session import ray_session
from cluster.watched import as_fields

NUM_SYNCS, WATCHED_S, NUM_STATUSES = 20, 10.0, 50


async def measure(folder: Path, num_engines: int) -> tuple[float, float, float]:
    """Seconds for one engine: watched, status, sync."""
    attempt = make_attempt(folder, f"{num_engines} engines", {"rollout.num_workers": num_engines})
    assert attempt.placement is not None
    pool = _make_rollout_pool(attempt, attempt.placement, SleepingRolloutActor)
    learner = await start_learner(attempt, attempt.placement)
    try:
        await pool.start()
        sync = _make_sync(attempt, pool, learner)
        await sync.calibrate()
        await sync.publish(WeightVersion(0, 0))
        started_s = time.thread_time()
        await asyncio.sleep(WATCHED_S)
        watched_s = (time.thread_time() - started_s) / WATCHED_S
        started_s = time.thread_time()
        for _ in range(NUM_STATUSES):
            as_fields(pool.workers())
        status_s = (time.thread_time() - started_s) / NUM_STATUSES
        started_s = time.thread_time()
        for _ in range(NUM_SYNCS):
            await sync.publish(WeightVersion(0, 0))
        sync_s = (time.thread_time() - started_s) / NUM_SYNCS
    finally:
        await pool.close()
        learner.kill()
        attempt.run.close()
    return watched_s / num_engines, status_s / num_engines, sync_s / num_engines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="what engines cost the driver that are only there")
    parser.add_argument("--engines", type=int, nargs="+", default=[4, 12])
    args = parser.parse_args()
    cluster.learner_group.LearnerActor = SleepingLearnerActor  # type: ignore[misc]
    cluster.grpo.DrivingDataset = Rows  # type: ignore[attr-defined, misc]
    capacity_fakes.PAUSE_S = capacity_fakes.CANARY_S = 0.0
    logging.disable(logging.WARNING)
    print("engines  watched us/s  status us  sync us")
    with tempfile.TemporaryDirectory() as folder, ProcessTree() as tree, ray_session(0, tree):
        assert ray.is_initialized()
        for num_engines in args.engines:
            watched_s, status_s, sync_s = asyncio.run(measure(Path(folder), num_engines))
            print(
                f"{num_engines:7d}  {1e6 * watched_s:12.0f}  {1e6 * status_s:9.0f}  {1e6 * sync_s:7.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
