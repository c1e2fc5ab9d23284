"""Every configuration in `configs/` loads, by path and by name, from any working directory."""

import re
from pathlib import Path

import pytest

from alphadrive.config import load_config, save_config
from alphadrive.errors import ConfigError

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.yaml"))


def test_there_are_shipped_configurations() -> None:
    assert CONFIGS


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_a_shipped_configuration_loads(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config(str(file)) == load_config(file.stem) == load_config(f"configs/{file.name}")


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["rollout.autoscale.max=4"], "expected 1 <= min <= max, or both 0"),
        (["rollout.autoscale.min=1"], "expected 1 <= min <= max, or both 0"),
        (["rollout.autoscale.min=3", "rollout.autoscale.max=2"], "expected 1 <= min <= max"),
        (["rollout.autoscale.min=2", "rollout.autoscale.max=4"], "rollout.num_workers=1: what a run starts"),
        (
            ["checkpoint.mirror=a/folder"],
            "checkpoint.mirror: expected s3://BUCKET/PATH, gs://BUCKET/PATH or file:///PATH, got no address",
        ),
        (["rollout.autoscale.maximum=4"], "did you mean 'rollout.autoscale.max'"),
        (["rollout.autoscale=4"], "'rollout.autoscale' is a section; its keys are rollout.autoscale.m"),
    ],
)
def test_values_that_make_no_sense_are_refused(overrides: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(problem)):
        load_config("debug", overrides)


def test_bounds_of_autoscale_are_read_from_a_file_and_written_back(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("rollout:\n  num_workers: 2\n  autoscale:\n    min: 1\n    max: 4\n")
    config = load_config(str(file))
    assert (config.rollout.autoscale.min, config.rollout.autoscale.max) == (1, 4)
    save_config(config, file)
    assert load_config(str(file)) == config


def test_the_demo_keeps_the_reward_that_its_published_results_were_made_with() -> None:
    assert load_config("demo").rewards.variant == "paper"
