"""A whole GRPO run that trains a LoRA adapter, with a real engine that gets merged weights."""

import json

import pytest

from alphadrive.cli import run as run_command
from alphadrive.config import load_config
from alphadrive.run_folder import read_metrics

pytest.importorskip("vllm")
pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.e2e]


def test_engines_serve_what_the_adapter_says_and_a_resumed_run_goes_on(tmp_path):
    from cluster.launch import run_grpo

    assert run_command(["data", "synth", "--out", str(tmp_path / "train"), "--num", "12"]) == 0
    options = [
        f"data.train={tmp_path / 'train'}",
        f"run.root={tmp_path}",
        "run.name=r",
        "run.tensorboard=false",
        "rewards.variant=random",
        "grpo.group_size=4",
        "grpo.groups_per_step=2",
        "grpo.max_new_tokens=24",
        "grpo.learning_rate=1e-2",
        "grpo.kl_coef=0.01",
        "data.eval=null",
        "eval.every_steps=0",
        "learner.lora_rank=8",
    ]
    first = run_grpo(load_config("debug", [*options, "grpo.steps=2"]))
    assert (first.status, first.checkpoint.step) == ("finished", 2)
    assert first.summary["canary"]["max_abs_diff"] < 1e-4
    metrics = read_metrics(tmp_path / "r" / "metrics.jsonl")
    # Far more than the canary's limit: engines that still served the base would be found out.
    assert metrics[1]["actor/kl_loss"] > 1e-4
    adapter = json.loads((first.checkpoint.path / "adapter" / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["peft_type"]) == (8, "LORA")
    second = run_grpo(load_config("debug", [*options, "grpo.steps=3"]), resume=True)
    assert (second.status, second.checkpoint.step) == ("finished", 3)
    assert second.summary["canary"]["max_abs_diff"] < 1e-4
    assert (second.checkpoint.model_path / "model.safetensors").is_file()
