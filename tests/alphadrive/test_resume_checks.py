"""What a resumed run may change in its configuration, and what it may not."""

import copy
import json
import logging

import pytest

from alphadrive.config import Config, load_config
from alphadrive.errors import ConfigError
from alphadrive.run_folder import LEDGER_FILE, RunFolder


@pytest.fixture
def config(tmp_path):
    config = Config()
    config.run.root, config.run.tensorboard = str(tmp_path / "runs"), False
    return config


def start(config, stage="grpo", *, with_checkpoint=True):
    with RunFolder.create(config, stage=stage) as run:
        run.write_status({"stage": stage})
        if with_checkpoint:
            (run.begin_checkpoint(1) / LEDGER_FILE).write_text(json.dumps({"next_ticket": 0}))
            run.commit_checkpoint(1)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 1),
        ("grpo.group_size", 16),
        ("model.dtype", "bfloat16"),
        ("model.max_pixels", 100_000),
        ("data.sampling", "balanced"),
        ("data.trajectory", True),
        ("learner.freeze_vision", True),
        ("learner.lora_rank", 8),
    ],
)
def test_a_key_that_the_checkpoint_depends_on_cannot_change(config, key, value):
    start(config)
    changed = copy.deepcopy(config)
    *sections, name = key.split(".")
    setattr(getattr(changed, sections[0]) if sections else changed, name, value)
    with pytest.raises(ConfigError, match=rf"{key}={value}: the run in .* has .*\nset it back, or start"):
        RunFolder.create(changed, resume=True)
    path = f"{config.run.root}/{config.run.name}/config.yaml"
    assert load_config(path) == config, "a refused configuration is not written"


def test_all_keys_that_cannot_change_are_named_at_once(config):
    start(config)
    config.seed, config.grpo.group_size = 5, 4
    with pytest.raises(ConfigError, match=r"seed=5: .* has 0; .*\ngrpo.group_size=4: .* has 8; "):
        RunFolder.create(config, resume=True)


def test_without_a_checkpoint_everything_may_change(config):
    start(config, with_checkpoint=False)
    config.seed = 5
    RunFolder.create(config, resume=True, stage="sft").close()


def test_what_may_change_is_said(config, caplog):
    start(config)
    config.grpo.learning_rate, config.learner.num_ranks, config.sft.batch_size = 1e-5, 2, 64
    with caplog.at_level(logging.WARNING):
        RunFolder.create(config, resume=True).close()
    assert "another grpo.learning_rate: it was 1e-06, now 1e-05" in caplog.text
    assert "another learner.num_ranks: it was 1, now 2" in caplog.text


def test_in_sft_the_batch_size_cannot_change_and_the_group_size_may(config):
    start(config, "sft")
    config.grpo.group_size = 4
    RunFolder.create(config, resume=True, stage="sft").close()
    config.sft.batch_size = 64
    with pytest.raises(ConfigError, match=r"sft.batch_size=64: .* has 32"):
        RunFolder.create(config, resume=True, stage="sft")


def test_a_run_of_another_stage_is_not_gone_on_with(config):
    start(config, "sft")
    with pytest.raises(ConfigError, match=r"holds a run of sft, which `alphadrive grpo` cannot go on with"):
        RunFolder.create(config, resume=True)
