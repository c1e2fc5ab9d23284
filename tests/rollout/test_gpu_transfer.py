"""vLLM's `nccl` and `ipc` transfers under ours. Has never run: there was no GPU where it was written."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tiny_qwen import add_noise, changed_model, largest_difference, reference_logprobs

from alphadrive.data.parquet import DrivingDataset
from alphadrive.types import WeightsStream, WeightVersion
from alphadrive.weight_layout import TensorMeta, WeightLayout
from rollout.engine import RolloutEngine
from rollout.settings import EngineSettings, Sampling


@pytest.mark.gpu
@pytest.mark.vllm
@pytest.mark.parametrize(("kind", "num_gpus"), [("nccl", 2), ("ipc", 1)])
def test_a_gpu_engine_takes_two_versions_from_this_process(
    kind: str, num_gpus: int, tiny_model: Path, noise_dataset: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """The learner's end is here on GPU 0; the engine is on the last of `num_gpus`."""
    torch = pytest.importorskip("torch")
    if torch.cuda.device_count() < num_gpus:
        pytest.skip(f"{kind} needs {num_gpus} GPUs, {torch.cuda.device_count()} here")
    from safetensors.torch import load_file

    from rollout.weight_sender import WeightSender

    settings = EngineSettings(
        model_folder=str(tiny_model),
        datasets={"train": str(noise_dataset)},
        device="cuda",
        gpu_memory_utilization=0.3,
        weight_transfer=kind,
    )

    async def main() -> None:
        with monkeypatch.context() as patch:
            patch.setenv("CUDA_VISIBLE_DEVICES", str(num_gpus - 1))
            engine = await RolloutEngine.start(settings, "engine-0")
        torch.cuda.set_device(0)
        sender = WeightSender(kind, "127.0.0.1", 60.0)
        try:
            for step in (1, 2):
                version = WeightVersion(0, step)
                new = changed_model(tiny_model, tmp_path / str(step), version, add_noise(0.02, seed=step))
                tensors = load_file(new.folder / "model.safetensors", device="cuda:0")
                metas = tuple(
                    TensorMeta(name, str(tensors[name].dtype)[6:], tuple(tensors[name].shape))
                    for name in sorted(tensors)
                )
                layout = WeightLayout(version, metas, 100_000)
                stream = WeightsStream(offer=sender.offer(layout), member="engine-0", timeout_s=60.0)
                buckets = [[tensors[slot.tensor.name] for slot in bucket] for bucket in layout.buckets]
                await engine.see_offer(stream)
                sent, received = await asyncio.gather(
                    asyncio.to_thread(sender.send, ["engine-0"], ["engine-0"], buckets),
                    engine.update_weights(stream),
                )
                assert received == sent.sha256 == new.weights.sha256 and sent.missing == {}
                query = DrivingDataset(noise_dataset).query(1)
                group = await engine.generate(0, query, Sampling(num_samples=2, max_new_tokens=16, seed=4))
                expected = reference_logprobs(new.folder, noise_dataset, group, 1.0)
                assert largest_difference(group, expected) < 2e-2
        finally:
            sender.close()
            await engine.close()

    asyncio.run(main())
