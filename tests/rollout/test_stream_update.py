"""A real engine that takes its weights from a stream; the learner's end is in this process."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_qwen import ModelVersion, add_noise, changed_model, largest_difference, reference_logprobs

from alphadrive.data.parquet import DrivingDataset
from alphadrive.errors import TransferCutError, WeightSyncError
from alphadrive.types import RolloutGroup, WeightsSent, WeightsStream, WeightVersion
from alphadrive.weight_layout import TensorMeta, WeightLayout
from rollout.engine import RolloutEngine
from rollout.settings import EngineSettings, Sampling

pytestmark = pytest.mark.vllm

TOLERANCE = 1e-3
BUCKET_BYTES = 100_000
SHORT = Sampling(num_samples=2, max_new_tokens=16, seed=4)


class Learner:
    """Sends model folders to one engine."""

    def __init__(self, timeout_s: float = 20.0) -> None:
        from rollout.weight_sender import WeightSender

        self.timeout_s = timeout_s
        self.sender = WeightSender("gloo", "127.0.0.1", timeout_s)

    def offer(self, new: ModelVersion) -> tuple[WeightsStream, list[Any]]:
        from safetensors.torch import load_file

        tensors = load_file(new.folder / "model.safetensors")
        metas = tuple(
            TensorMeta(name, str(tensors[name].dtype).removeprefix("torch."), tuple(tensors[name].shape))
            for name in sorted(tensors)
        )
        layout = WeightLayout(new.weights.version, metas, BUCKET_BYTES)
        offer = self.sender.offer(layout)
        buckets = [[tensors[slot.tensor.name] for slot in bucket] for bucket in layout.buckets]
        assert len(buckets) > 5
        return WeightsStream(offer=offer, member="engine-0", timeout_s=self.timeout_s), buckets

    async def send(self, buckets: list[Any]) -> WeightsSent:
        return await asyncio.to_thread(self.sender.send, ["engine-0"], ["engine-0"], buckets)


@pytest.fixture(scope="module")
def engine(tiny_model: Path, noise_dataset: Path, runner: asyncio.Runner) -> Iterator[RolloutEngine]:
    pytest.importorskip("vllm")
    settings = EngineSettings(
        model_folder=str(tiny_model), datasets={"train": str(noise_dataset)}, weight_transfer="gloo"
    )
    engine = runner.run(RolloutEngine.start(settings, "engine-0"))
    yield engine
    runner.run(engine.close())


@pytest.fixture(scope="module")
def learner() -> Iterator[Learner]:
    learner = Learner()
    yield learner
    learner.sender.close()


def test_streamed_weights_are_those_it_computes_with_also_in_mid_draw(
    engine: RolloutEngine,
    learner: Learner,
    tiny_model: Path,
    noise_dataset: Path,
    tmp_path: Path,
    runner: asyncio.Runner,
) -> None:
    query = DrivingDataset(noise_dataset).query(1)

    async def update(step: int) -> tuple[ModelVersion, RolloutGroup]:
        new = changed_model(
            tiny_model, tmp_path / str(step), WeightVersion(0, step), add_noise(0.02, seed=step)
        )
        stream, buckets = learner.offer(new)
        drawing = asyncio.create_task(engine.generate(0, query, replace(SHORT, max_new_tokens=120)))
        await engine.see_offer(stream)
        sent, received = await asyncio.gather(learner.send(buckets), engine.update_weights(stream))
        assert received == sent.sha256 == new.weights.sha256 and sent.missing == {}
        await drawing
        assert engine.version == stream.version
        return new, await engine.generate(0, query, SHORT)

    for step in (1, 2):
        new, group = runner.run(update(step))
        assert group.oldest_version == WeightVersion(0, step)
        expected = reference_logprobs(new.folder, noise_dataset, group, 1.0)
        assert largest_difference(group, expected) < TOLERANCE
    assert len(learner.sender._fabric._kept) == 1  # type: ignore[attr-defined]


def test_another_version_and_an_older_one_are_refused_before_anything_stops(
    engine: RolloutEngine,
    learner: Learner,
    tiny_model: Path,
    noise_dataset: Path,
    tmp_path: Path,
    runner: asyncio.Runner,
) -> None:
    new = changed_model(tiny_model, tmp_path / "new", WeightVersion(0, 3), add_noise(0.02))
    stream, _ = learner.offer(new)
    wrong = replace(stream, offer=replace(stream.offer, version=WeightVersion(1, 3)))
    with pytest.raises(WeightSyncError, match=r"the learner offers version 0\.3 .* expected 1\.3"):
        runner.run(engine.see_offer(wrong))
    old = replace(stream, offer=replace(stream.offer, version=WeightVersion(0, 1)))
    with pytest.raises(WeightSyncError, match=r"asked to go back from version 0\.2 to 0\.1"):
        runner.run(engine.see_offer(old))
    runner.run(engine.generate(0, DrivingDataset(noise_dataset).query(0), SHORT))


def test_a_transfer_that_breaks_off_is_told_and_the_engine_serves_nothing_more(
    engine: RolloutEngine,
    tiny_model: Path,
    noise_dataset: Path,
    tmp_path: Path,
    runner: asyncio.Runner,
) -> None:
    """The last test of the shared engine: it is of no use afterwards."""
    new = changed_model(tiny_model, tmp_path / "new", WeightVersion(0, 3), add_noise(0.02))
    learner = Learner(timeout_s=2.0)
    stream, buckets = learner.offer(new)

    def broken() -> Iterator[Any]:
        yield from buckets[:2]
        learner.sender.close()
        raise OSError("the learner is gone")

    async def update() -> None:
        sending = asyncio.create_task(learner.send(broken()))  # type: ignore[arg-type]
        with pytest.raises(TransferCutError, match=r"engine-0 got \d+ of \d+ tensors of version 0\.3"):
            await engine.update_weights(stream)
        with pytest.raises(OSError, match="the learner is gone"):
            await sending
        with pytest.raises(TransferCutError):
            await engine.generate(0, DrivingDataset(noise_dataset).query(0), SHORT)
        with pytest.raises(TransferCutError):
            await engine.see_offer(stream)

    runner.run(update())
