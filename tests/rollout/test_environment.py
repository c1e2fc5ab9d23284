"""What an engine's process is started with."""

import os
from pathlib import Path

import pytest

from alphadrive.config import Config
from alphadrive.errors import ConfigError
from alphadrive.types import WeightVersion
from rollout.environment import prepare_environment
from rollout.settings import engine_settings


@pytest.mark.parametrize("name", ["VLLM_ALLOW_INSECURE_SERIALIZATION", "VLLM_SERVER_DEV_MODE"])
def test_unsafe_variables_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {name: "1"})
    with pytest.raises(ConfigError, match=name):
        prepare_environment("cpu")
    monkeypatch.setattr(os, "environ", {name: "0"})
    prepare_environment("cpu")


def test_cpu_settings_are_not_set_on_a_gpu_and_a_users_threads_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environment: dict[str, str] = {"OMP_NUM_THREADS": "4"}
    monkeypatch.setattr(os, "environ", environment)
    prepare_environment("cuda")
    assert "TORCHDYNAMO_DISABLE" not in environment and "VLLM_ENABLE_V1_MULTIPROCESSING" not in environment
    prepare_environment("cpu")
    assert environment["OMP_NUM_THREADS"] == "4" and environment["TORCHDYNAMO_DISABLE"] == "1"


def test_settings_follow_the_configuration_and_engines_have_seeds_of_their_own() -> None:
    config = Config()
    first = engine_settings(config, "m", engine_index=0, attempt=3)
    second = engine_settings(config, "m", engine_index=1, attempt=3)
    assert first.seed != second.seed and first.device == "cpu"
    assert first.initial_version == WeightVersion(3, 0)
    assert first.datasets == {"train": str(Path(config.data.train).resolve())}
    config.rollout.gpus_per_worker = 1.0
    assert engine_settings(config, "m").device == "cuda"
