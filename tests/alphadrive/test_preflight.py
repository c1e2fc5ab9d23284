"""A run with wrong data, model, lengths or machine is refused before anything starts."""

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from alphadrive.capacity import (
    GIB,
    check_disk,
    check_memory,
    checkpoint_bytes,
    learner_states,
    memory_limit_bytes,
)
from alphadrive.config import Config, default_config
from alphadrive.data.parquet import write_records
from alphadrive.data.records import DrivingRecord
from alphadrive.errors import ConfigError, DataError, InputError, ModelError, ResourceError
from alphadrive.preflight import check_run

MakeRecord = Callable[..., DrivingRecord]
TWO_BILLION = 2_200_000_000


@pytest.fixture
def config(
    tmp_path: Path, model_folder: Path, make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> Config:
    """A configuration that passes, with its own data, model copy and cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    sizes = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 4}
    content = json.loads((folder / "config.json").read_text())
    content["text_config"] = {**sizes, "max_position_embeddings": 4096}
    (folder / "config.json").write_text(json.dumps(content))
    write_records((make_record(index) for index in range(6)), tmp_path / "train", rows_per_shard=4)
    held_out = (make_record(index, scene_id=f"held-out-{index}") for index in range(3))
    write_records(held_out, tmp_path / "eval")
    config = Config()
    config.run.root = str(tmp_path / "runs")
    config.model.path = str(folder)
    config.data.train = str(tmp_path / "train")
    config.data.eval = str(tmp_path / "eval")
    config.eval.every_steps = 5
    return config


def rewrite(config: Config, *records: DrivingRecord) -> None:
    shutil.rmtree(config.data.train)
    write_records(records, Path(config.data.train))


@pytest.mark.parametrize("stage", ["sft", "grpo", "eval", "debug"])
def test_a_good_run_passes_every_stage(config: Config, stage: str) -> None:
    found = check_run(config, stage)  # type: ignore[arg-type]
    assert found.num_parameters == 16 and found.memory_bytes > GIB
    assert (found.train is not None) == (stage != "eval")
    assert (found.eval is not None) == (stage != "sft")
    if found.train is not None:
        assert found.train.num_rows == 6
        assert found.train.longest_prompt_image == 6  # 56x28 is enlarged to 84x56
        assert found.train.longest_sample > found.train.longest_prompt > 100


def test_the_measured_prompt_is_the_one_the_model_sees(config: Config) -> None:
    from alphadrive.data.parquet import DrivingDataset
    from alphadrive.processing import PromptProcessor

    found = check_run(config, "grpo")
    processor = PromptProcessor(found.model_folder, config.model.max_pixels)
    dataset = DrivingDataset(config.data.train)
    lengths = []
    for row in range(len(dataset)):
        _, grid = processor.pixels(processor.fit(dataset.image(row)))
        lengths.append(len(processor.expanded_ids(processor.prompt_ids(dataset.query(row)), grid)))
    assert found.train is not None and found.train.longest_prompt == max(lengths)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("speed_mps", -1.0, "speed_mps: got -1.0"),
        ("navigation", "go <|image_pad|>", "navigation: contains '<|image_pad|>'"),
        ("reasoning", "so<|endoftext|>", "reasoning: contains '<|endoftext|>'"),
        ("plans", ("FLY, STRAIGHT",), "plans[0]: got 'FLY, STRAIGHT'"),
        ("images", (), "images: got no image at all"),
    ],
)
def test_a_bad_row_stops_the_run_naming_file_row_and_field(
    config: Config, make_record: MakeRecord, field: str, value: object, expected: str
) -> None:
    rewrite(config, make_record(0), make_record(1, **{field: value}), make_record(2, speed_mps=99.0))
    with pytest.raises(DataError) as caught:
        check_run(config, "grpo")
    assert f"part-00000.parquet: row 1: {expected}" in str(caught.value)
    assert "row 2: speed_mps: got 99.0" in str(caught.value)
    assert caught.value.exit_code == 2


def test_only_the_rows_that_are_used_must_be_valid(config: Config, make_record: MakeRecord) -> None:
    rewrite(config, make_record(0), make_record(1, speed_mps=99.0))
    config.data.num_rows = 1
    assert check_run(config, "sft").train is not None


def test_a_second_start_does_not_read_the_rows_again(
    config: Config, caplog: pytest.LogCaptureFixture, make_record: MakeRecord
) -> None:
    caplog.set_level(logging.INFO, logger="alphadrive.dataset_check")
    first = check_run(config, "grpo")
    assert caplog.text.count("checking every row") == 2
    caplog.clear()
    assert check_run(config, "grpo") == first
    assert "checking every row" not in caplog.text

    shard = Path(config.data.train) / "part-00001.parquet"
    os.utime(shard, ns=(0, 0))
    check_run(config, "grpo")
    assert caplog.text.count("checking every row") == 1

    rewrite(config, make_record(0, speed_mps=99.0))
    with pytest.raises(DataError, match="speed_mps"):
        check_run(config, "grpo")
    with pytest.raises(DataError, match="speed_mps"):
        check_run(config, "grpo")


def test_an_unwritable_cache_costs_only_time(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    blocker = Path(config.run.root + "-file")
    blocker.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocker))
    assert check_run(config, "sft").train is not None


def test_a_prompt_that_does_not_fit_is_refused_with_the_sum(config: Config) -> None:
    config.rollout.max_model_len = 300
    with pytest.raises(
        ConfigError, match=r"row \d\) has \d+ text \+ 6 image tokens, \+ .*=256 = \d+, more than .*=300"
    ):
        check_run(config, "grpo")


def test_a_sample_that_does_not_fit_is_refused_for_sft(config: Config) -> None:
    config.rollout.max_model_len = 100
    with pytest.raises(ConfigError, match=r"longest prompt with its answer has \d+ tokens"):
        check_run(config, "sft")


def test_a_group_larger_than_a_microbatch_is_refused_with_the_sum(config: Config) -> None:
    config.learner.max_tokens_per_microbatch = 1000
    with pytest.raises(
        ConfigError,
        match=r"may have \d+ prompt tokens .*=8 x grpo.max_new_tokens=256 = \d+ tokens, more than",
    ):
        check_run(config, "grpo")
    config.learner.max_tokens_per_microbatch = 100
    with pytest.raises(ConfigError, match=r"longest prompt with its answer .*max_tokens_per_microbatch=100"):
        check_run(config, "sft")


def test_sft_needs_reasoning_and_grpo_does_not(config: Config, make_record: MakeRecord) -> None:
    rewrite(config, make_record(0), make_record(1, reasoning=None))
    with pytest.raises(DataError, match=r"part-00000.parquet: row 1: reasoning: missing; SFT needs it"):
        check_run(config, "sft")
    assert check_run(config, "grpo").train is not None


def _wrong_model(config: Config) -> None:
    config.model.path = "nowhere/at-all"


def _missing_data(config: Config) -> None:
    config.data.train = config.data.train + "-missing"


def _no_eval(config: Config) -> None:
    config.data.eval = None


def _beyond_positions(config: Config) -> None:
    config.rollout.max_model_len = 5000


def _small_cache(config: Config) -> None:
    config.rollout.kv_cache_bytes = 1 << 20


def _too_many_workers(config: Config) -> None:
    config.rollout.num_workers = 10_000


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (_wrong_model, ModelError, r"model.path='nowhere/at-all': no such folder"),
        (_missing_data, DataError, r"train-missing: no such folder"),
        (_no_eval, ConfigError, r"data.eval is not set, but eval.every_steps=5"),
        (_beyond_positions, ConfigError, r"max_model_len=5000: the model takes at most 4096 positions"),
        (
            _small_cache,
            ConfigError,
            r"kv_cache_bytes=1048576: one sequence .*2048 tokens x 2048 bytes = 4194304",
        ),
        (_too_many_workers, ResourceError, r"more workers than this machine can hold"),
    ],
)
def test_each_kind_of_wrong_input_has_its_error(
    config: Config, damage: Callable[[Config], None], error: type[InputError], message: str
) -> None:
    damage(config)
    with pytest.raises(error, match=message) as caught:
        check_run(config, "grpo")
    assert caught.value.exit_code == 2


def test_an_sft_batch_that_the_ranks_cannot_share_is_refused_for_sft_alone(config: Config) -> None:
    config.learner.num_ranks, config.sft.batch_size = 3, 16
    check_run(config, "grpo")
    with pytest.raises(ConfigError, match=r"sft.batch_size=16 .*learner.num_ranks=3; use 15 or 18"):
        check_run(config, "sft")


def test_without_evaluation_no_evaluation_data_is_needed(config: Config) -> None:
    config.data.eval, config.eval.every_steps = None, 0
    assert check_run(config, "grpo").eval is None


def test_the_memory_sum_is_written_out_and_says_how_many_workers_fit() -> None:
    config = Config()
    config.rollout.num_workers = 12
    with pytest.raises(ResourceError) as caught:
        check_memory(config, "grpo", 1_000_000, limit_bytes=12 * GIB)
    message = str(caught.value)
    assert "rollout.num_workers=12: 12 x 1.5 GiB" in message
    assert "learner.num_ranks=1: 1 x 1.0 GiB" in message
    assert message.endswith("rollout.num_workers=6 would fit")
    config.rollout.num_workers = 6
    assert check_memory(config, "grpo", 1_000_000, limit_bytes=12 * GIB) <= 12 * GIB


def test_engines_that_autoscale_may_start_must_fit_the_memory() -> None:
    config = Config()
    config.rollout.autoscale.min, config.rollout.autoscale.max = 1, 12
    with pytest.raises(ResourceError, match=r"rollout.autoscale.max=12: 12 x 1.5 GiB"):
        check_memory(config, "grpo", 1_000_000, limit_bytes=12 * GIB)
    assert check_memory(config, "debug", 1_000_000, limit_bytes=12 * GIB) < 4 * GIB


def test_memory_follows_from_model_precision_sharding_and_devices() -> None:
    def needed(stage: str = "grpo", **keys: object) -> int:
        config = Config()
        for key, value in keys.items():
            section, name = key.split("__")
            setattr(getattr(config, section), name, value)
        return check_memory(config, stage, TWO_BILLION, limit_bytes=1 << 50)

    assert needed(model__dtype="bfloat16") < needed()
    assert needed(grpo__kl_coef=0.1) - needed() == 4 * TWO_BILLION
    two_sharded = needed(learner__num_ranks=2, learner__zero_stage=3)
    assert two_sharded < needed(learner__num_ranks=2, learner__zero_stage=0)
    split_reference = needed(learner__num_ranks=2, learner__zero_stage=3, grpo__kl_coef=0.1)
    assert split_reference - two_sharded == 4 * TWO_BILLION
    on_gpus = {"rollout__gpus_per_worker": 1.0, "learner__gpus_per_rank": 1.0}
    assert needed(**on_gpus) < 5 * GIB
    assert needed(**on_gpus, learner__offload_optimizer=True) - needed(**on_gpus) == 16 * TWO_BILLION
    assert needed("sft") < needed() and needed("eval") < needed()


def test_an_optimizer_can_be_offloaded_only_where_zero_holds_it() -> None:
    assert default_config(["learner.offload_optimizer=true"]).learner.offload_optimizer
    with pytest.raises(ConfigError, match=r"offload_optimizer=True: .* set learner.zero_stage to 1, 2 or 3"):
        default_config(["learner.offload_optimizer=true", "learner.zero_stage=0"])


def test_with_lora_only_the_adapter_has_gradients_moments_and_a_place_in_checkpoints() -> None:
    config, adapter = Config(), 10_000_000
    config.model.dtype, config.grpo.kl_coef = "bfloat16", 0.1

    def bytes_of_rank(num_adapter: int, **learner: int) -> int:
        shape = {"zero_stage": 1, "num_ranks": 1} | learner
        config.learner.zero_stage, ranks = shape["zero_stage"], shape["num_ranks"]
        return learner_states(config, "grpo", TWO_BILLION, ranks, num_adapter=num_adapter).total

    assert bytes_of_rank(0) == (2 + 2 + 12 + 2) * TWO_BILLION
    assert bytes_of_rank(adapter) == 2 * TWO_BILLION + (2 + 2 + 12) * adapter
    assert bytes_of_rank(adapter, num_ranks=4) == 2 * TWO_BILLION + (2 + 2 + 3) * adapter
    assert bytes_of_rank(adapter, num_ranks=4, zero_stage=3) == TWO_BILLION // 2 + 4 * adapter
    assert checkpoint_bytes(config, TWO_BILLION, adapter) == 2 * TWO_BILLION + (2 + 2 + 12) * adapter


def test_lora_targets_are_checked_before_anything_starts(config: Config) -> None:
    config.model.path = "tiny"
    config.learner.lora_rank = 8
    with_lora = check_run(config, "grpo").memory_bytes
    config.learner.lora_rank = 0
    assert with_lora < check_run(config, "grpo").memory_bytes
    config.learner.lora_rank, config.learner.lora_targets = 8, "q_proj|v_proj"
    with pytest.raises(ConfigError) as caught:
        check_run(config, "sft")
    message = str(caught.value)
    assert "learner.lora_targets='q_proj|v_proj' matches none of the model's 35 linear modules" in message
    assert "such as model.language_model.layers.0.mlp.down_proj" in message
    config.learner.lora_targets = r".*\.mlp\..*"
    with pytest.raises(ConfigError, match=r"fc1 \(frozen by learner.freeze_vision"):
        config.learner.freeze_vision = True
        check_run(config, "grpo")
    assert check_run(config, "eval").train is None


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("learner.lora_rank=-1", "learner.lora_rank=-1: expected 0 or more"),
        ("learner.lora_alpha=0", "learner.lora_alpha=0: expected above 0"),
        ("learner.lora_targets='(q|v'", r"learner.lora_targets='\(q\|v': not a regular expression: missing"),
    ],
)
def test_lora_settings_out_of_range_are_refused(override: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        default_config([override])


def test_a_cluster_elsewhere_is_not_measured_by_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config()
    config.rollout.num_workers = 10_000
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert check_memory(config, "grpo", 1000) > memory_limit_bytes()


def test_disk_space_for_the_checkpoints_is_checked(tmp_path: Path) -> None:
    config = Config()
    config.run.root = str(tmp_path / "not" / "yet")
    assert check_disk(config, 1_000_000) == 3 * 20 * 1_000_000
    with pytest.raises(ResourceError, match=r"at least 2: 3 x 41.0 GiB = 122.9 GiB needed"):
        check_disk(config, TWO_BILLION, free_bytes=100 * GIB)


def test_a_folder_with_a_package_of_our_name_is_no_place_to_start_from(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("rewards", "cluster"):
        (tmp_path / name / name).mkdir(parents=True)
        (tmp_path / name / name / "__init__.py").touch()
    monkeypatch.chdir(tmp_path / "rewards")
    check_run(config, "grpo")
    monkeypatch.chdir(tmp_path / "cluster")
    check_run(config, "eval")
    with pytest.raises(ConfigError, match="a package 'cluster' of its own"):
        check_run(config, "grpo")


def test_a_scene_of_the_training_data_is_refused_in_the_evaluation_data(
    config: Config, make_record: MakeRecord
) -> None:
    rewrite(config, *(make_record(index, scene_id=f"held-out-{index + 2}") for index in range(4)))
    check_run(config, "sft")
    with pytest.raises(DataError, match=r"'held-out-2' is in data.eval here and in data.train in .*row 0"):
        check_run(config, "grpo")
    config.eval.num_rows = 2
    check_run(config, "grpo")


def test_one_folder_for_training_and_evaluation_is_taken_as_meant(config: Config) -> None:
    config.data.eval = config.data.train
    check_run(config, "grpo")
