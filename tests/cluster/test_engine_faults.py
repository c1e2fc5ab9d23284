"""Real engines whose processes are killed or stopped: noticed, replaced, and no group lost."""

import asyncio
import os
import signal
import time

import psutil
import pytest

from alphadrive.cli import run as run_command
from alphadrive.config import load_config
from alphadrive.model_folder import resolve_model
from cluster.processes import is_alive

pytest.importorskip("vllm")
pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.e2e]


def core_of(pid):
    """The EngineCore process of an engine's actor. It takes its name a moment after it is up."""
    for _ in range(600):
        children = psutil.Process(pid).children()
        cores = [child for child in children if "EngineCore" in " ".join(child.cmdline())]
        if cores:
            return cores[0]
        time.sleep(0.1)
    raise AssertionError(f"process {pid} has no EngineCore, only {children}")


def test_killed_and_stopped_engine_processes_are_replaced_and_every_group_is_drawn(small_ray, tmp_path):
    import ray

    from alphadrive.data.parquet import DrivingDataset
    from cluster.actors import CONTROL, RolloutActor
    from cluster.rollout_pool import RolloutPool
    from rollout.settings import Sampling, engine_settings, greedy_sampling

    data = tmp_path / "train"
    assert run_command(["data", "synth", "--out", str(data), "--num", "8"]) == 0
    config = load_config(
        "debug", [f"data.train={data}", "rollout.hang_timeout_s=20", "rollout.num_workers=2"]
    )
    model = resolve_model("tiny")
    actor = ray.remote(concurrency_groups={CONTROL: 4})(RolloutActor)
    pool = RolloutPool(
        config.rollout,
        lambda index: actor.options(num_cpus=0, max_concurrency=1000).remote(),
        lambda index: engine_settings(config, str(model), engine_index=index),
        lambda query: Sampling(num_samples=8, max_new_tokens=200, seed=query.row),
        greedy_sampling(config),
    )
    dataset = DrivingDataset(data)

    async def draw(ticket):
        group = await (await pool.generate(ticket, dataset.query(ticket % len(dataset))))
        return group.ticket, len(group.completions)

    async def main():
        await pool.start()
        first, second = pool.engines
        killed, stopped = core_of(first.pid), core_of(second.pid)
        os.kill(killed.pid, signal.SIGKILL)
        async with asyncio.timeout(90):
            while first in pool.engines:
                await asyncio.sleep(0.1)
        drawing = [asyncio.create_task(draw(ticket)) for ticket in range(6)]
        before = await second.actor.health.remote()
        while await second.actor.health.remote() < before + 100:
            await asyncio.sleep(0.05)
        os.kill(stopped.pid, signal.SIGSTOP)
        async with asyncio.timeout(90):
            while second in pool.engines:
                await asyncio.sleep(0.1)
        drawn = await asyncio.gather(*drawing)
        assert drawn == [(ticket, 8) for ticket in range(6)]
        assert pool.num_lost == 2
        assert not is_alive(killed) and not is_alive(stopped)

    async def whole():
        try:
            await main()
        finally:
            await pool.close()

    asyncio.run(whole())
