"""Whole GRPO runs on GPUs, whose weights go from GPU to GPU. Has never run: there was no GPU where it was
written."""

import pytest

from alphadrive.config import load_config

pytest.importorskip("vllm")
pytestmark = [pytest.mark.gpu, pytest.mark.e2e]

WHOLE = ["rollout.gpus_per_worker=1", "learner.gpus_per_rank=1"]
SHARED = [
    "rollout.gpus_per_worker=0.4",
    "learner.gpus_per_rank=0.4",
    "rollout.gpu_memory_utilization=0.3",
]


@pytest.mark.parametrize(
    ("kind", "num_gpus", "keys"),
    [
        ("ipc", 1, SHARED),
        ("nccl", 2, WHOLE),
        ("nccl", 4, [*WHOLE, "rollout.num_workers=2", "learner.num_ranks=2", "learner.zero_stage=3"]),
    ],
    ids=["ipc", "nccl", "nccl-zero-3"],
)
def test_a_run_on_gpus_sends_its_weights_from_gpu_to_gpu(kind, num_gpus, keys, tmp_path):
    import torch
    from test_grpo_run import overrides

    from alphadrive.cli import run as run_command
    from cluster.launch import run_grpo

    if torch.cuda.device_count() < num_gpus:
        pytest.skip(f"needs {num_gpus} GPUs, {torch.cuda.device_count()} here")
    for split in ("train", "eval"):
        folder = str(tmp_path / split)
        assert run_command(["data", "synth", "--out", folder, "--num", "8", "--split", split]) == 0
    more = ["grpo.steps=4", "rollout.weight_bucket_bytes=500000"]
    config = load_config("debug", overrides(tmp_path, tmp_path, *more, *keys))
    result = run_grpo(config)
    assert config.rollout.weight_transfer == kind
    assert result.status == "finished"
    assert result.summary["canary"]["max_abs_diff"] < 2e-2
