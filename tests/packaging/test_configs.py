"""Every configuration in `configs/` loads, by path and by name, from any working directory."""

from pathlib import Path

import pytest

from alphadrive.config import load_config

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.yaml"))


def test_there_are_shipped_configurations() -> None:
    assert CONFIGS


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_a_shipped_configuration_loads(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config(str(file)) == load_config(file.stem) == load_config(f"configs/{file.name}")


def test_the_demo_keeps_the_reward_that_its_published_results_were_made_with() -> None:
    assert load_config("demo").rewards.variant == "paper"
