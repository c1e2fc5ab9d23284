"""Updates that go wrong on a real engine, against a real learner, at a learning rate of 1e-6."""

import asyncio
import dataclasses

import numpy as np
import pytest
import ray

from alphadrive.cli import run as run_command
from alphadrive.config import load_config
from alphadrive.errors import WeightSyncError
from alphadrive.model_folder import resolve_model
from alphadrive.types import RewardBreakdown, ScoredGroup, WeightVersion
from cluster.actors import CONTROL, RolloutActor
from cluster.batches import BatchItem
from rollout.settings import UpdateReceipt

pytest.importorskip("vllm")
pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.e2e]


class SabotagedActor(RolloutActor):
    """`skip`: does nothing and says so. `lie`: does nothing, and claims what the learner sent.
    `wrong_file`: loads a file in which one number differs."""

    mode = None
    held = ""

    async def sabotage(self, mode):
        self.mode = mode

    @ray.method(concurrency_group=CONTROL)
    async def update_weights(self, weights, queries, sampling):
        from safetensors.numpy import load_file, save_file

        if self.mode in ("skip", "lie"):
            claimed = self.held if self.mode == "skip" else weights.sha256
            draw = self._engine.generate
            groups = [await self._in_engine_loop(draw(-2, query, sampling)) for query in queries]
            return UpdateReceipt(sha256=claimed, paused_s=0.0), *groups
        if self.mode == "wrong_file":
            tensors = load_file(weights.path)
            name = sorted(tensors)[0]
            flat = tensors[name].reshape(-1)
            flat[0] = np.nextafter(flat[0], np.float32(1e9))
            wrong = f"{weights.path}.wrong"
            save_file(tensors, wrong)
            weights = dataclasses.replace(weights, path=wrong)
        update = self._engine.update_and_draw(weights, queries, sampling)
        receipt, groups = await self._in_engine_loop(update)
        self.held = receipt.sha256
        return receipt, *groups


def test_every_sabotage_is_caught_at_the_sync_it_happens_in(tmp_path):
    import sys

    from cluster.processes import ProcessTree
    from cluster.ray_session import ray_session

    data = tmp_path / "train"
    assert run_command(["data", "synth", "--out", str(data), "--num", "8"]) == 0
    config = load_config(
        "debug",
        [f"data.train={data}", "grpo.learning_rate=1e-6", "grpo.max_new_tokens=24", "grpo.max_policy_lag=9"],
    )
    with ProcessTree() as tree, ray_session(0, tree):
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        asyncio.run(_sabotage(config, tmp_path))
    assert list(tmp_path.glob("*.safetensors")) == []


async def _sabotage(config, folder):
    from alphadrive.data.parquet import DrivingDataset
    from cluster.carriers import FileCarrier
    from cluster.learner_group import LearnerGroup
    from cluster.packing import Node
    from cluster.placement import plan_placement
    from cluster.proof import CanaryLimit
    from cluster.rollout_pool import RolloutPool
    from cluster.weight_sync import WeightSync
    from rollout.settings import engine_settings, greedy_sampling, group_sampling

    model = resolve_model("tiny")
    actor = ray.remote(concurrency_groups={CONTROL: 4})(SabotagedActor)
    pool = RolloutPool(
        config.rollout,
        lambda index: actor.options(num_cpus=0).remote(),
        lambda index: engine_settings(config, str(model), engine_index=index),
        lambda query: group_sampling(config, seed=query.row),
        greedy_sampling(config),
    )
    starting = LearnerGroup.start(
        "grpo",
        config,
        plan_placement(config, "grpo", [Node(cpus=2)]),
        model_folder=model,
        dataset_folder=config.data.train,
        version=WeightVersion(0, 0),
    )
    _, learner = await asyncio.gather(pool.start(), starting)
    dataset = DrivingDataset(config.data.train)
    sync = WeightSync(
        pool,
        learner,
        [dataset.query(0), dataset.query(4)],
        CanaryLimit("float32"),
        temperature=1.0,
        timeout_s=60.0,
        carrier=FileCarrier(learner, folder, "weights"),
    )
    engine = pool.engines[0]

    async def step():
        group = await (await pool.generate(learner.version.step, dataset.query(1)))
        half = len(group.completions) // 2
        advantages = (1.0,) * half + (-1.0,) * half
        rewards = tuple(RewardBreakdown(terms={"made_up": a}, total=a) for a in advantages)
        scored = ScoredGroup(group=group, rewards=rewards, advantages=advantages)
        await learner.step([BatchItem(ray.put((scored,)), 0)])

    async def fails(mode, message):
        await engine.actor.sabotage.remote(mode)
        with pytest.raises(WeightSyncError, match=message):
            await sync.publish(learner.version)
        await engine.actor.sabotage.remote(None)

    try:
        await sync.calibrate()
        await sync.publish(learner.version)
        await step()
        await fails("skip", "received tensors with SHA-256")
        pool.admit(engine)
        await sync.publish(learner.version)
        for _ in range(3):
            await step()
        await fails("lie", "canary at version")
        pool.admit(engine)
        await sync.publish(learner.version)
        await step()
        await fails("wrong_file", "workers received")
    finally:
        learner.kill()
        await pool.close()
