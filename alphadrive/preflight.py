"""Everything that can be known to be wrong before a worker starts.

    model folder ──▶ LoRA targets ──▶ memory, disk ──▶ engine settings ──▶ datasets (every row) ──▶ lengths

Run by every command that trains or evaluates; all it raises is an InputError (exit code 2). Keys and
their arithmetic were checked when the configuration was loaded.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from alphadrive.capacity import check_disk, check_memory
from alphadrive.config import Config
from alphadrive.config_checks import divisors_near
from alphadrive.data.fetching import local_folder
from alphadrive.data.scenes import check_apart
from alphadrive.dataset_check import DatasetLengths, check_dataset
from alphadrive.errors import ConfigError, DataError, ModelError
from alphadrive.lora_targets import num_adapter_parameters
from alphadrive.model_folder import num_parameters, num_vision_parameters, read_json
from alphadrive.model_source import model_folder_of
from alphadrive.resources import FIRST_IMPORTED, shadowed_packages

Stage = Literal["sft", "grpo", "eval", "debug"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCheck:
    """What a run that passed every check starts with. `memory_bytes` is what it needs at least."""

    model_folder: Path
    num_parameters: int
    train: DatasetLengths | None
    eval: DatasetLengths | None
    memory_bytes: int


def check_run(config: Config, stage: Stage, *, remember: bool = True) -> RunCheck:
    """Check model, data, lengths, memory and disk for a stage; valid datasets are remembered if asked.

    Raises ModelError, DataError (with every problem of the dataset), ConfigError or ResourceError.
    """
    _check_working_directory(stage)
    if stage == "sft":
        _check_sft_batch(config)
    needs_eval = stage == "eval" or (stage != "sft" and config.eval.every_steps > 0)
    if needs_eval and config.data.eval is None:
        raise ConfigError(
            f"data.eval is not set, but eval.every_steps={config.eval.every_steps}: set data.eval to a "
            "folder of shards, or eval.every_steps to 0"
        )
    folder = model_folder_of(config.model.path, config.model.revision)
    parameters = num_parameters(folder)
    adapter = 0
    if stage != "eval" and config.learner.lora_rank:
        adapter = num_adapter_parameters(folder, config.learner)
    frozen = num_vision_parameters(folder) if config.learner.freeze_vision else 0
    memory_bytes = check_memory(config, stage, parameters, num_adapter=adapter, num_frozen=frozen)
    if stage != "eval":
        check_disk(config, parameters, num_adapter=adapter)
    if stage != "sft":
        _check_engine_settings(config, folder)
    max_pixels = config.model.max_pixels
    train = eval_lengths = None
    if stage != "eval":
        train = check_dataset(
            local_folder(config.data.train),
            folder,
            max_pixels=max_pixels,
            num_rows=config.data.num_rows,
            remember=remember,
            with_trajectory=config.data.trajectory,
        )
        _check_lengths(config, stage, train, "data.train")
    if stage != "sft" and config.data.eval is not None:
        eval_lengths = check_dataset(
            local_folder(config.data.eval),
            folder,
            max_pixels=max_pixels,
            num_rows=config.eval.num_rows,
            remember=remember,
            with_trajectory=config.data.trajectory,
        )
        _check_lengths(config, "eval", eval_lengths, "data.eval")
        if train is not None:
            check_apart(
                local_folder(config.data.train),
                local_folder(config.data.eval),
                config.data.num_rows,
                config.eval.num_rows,
            )
    return RunCheck(
        model_folder=folder,
        num_parameters=parameters,
        train=train,
        eval=eval_lengths,
        memory_bytes=memory_bytes,
    )


def _check_working_directory(stage: Stage) -> None:
    """Ray's workers import from the working directory first, until `cluster.actors` is imported there."""
    shadowing = shadowed_packages(Path.cwd(), FIRST_IMPORTED) if stage in ("sft", "grpo") else []
    if shadowing:
        raise ConfigError(
            f"{Path.cwd()}: has a package {shadowing[0]!r} of its own, which Ray's workers would import "
            "instead of this project's; start the run from another folder (paths may be absolute)"
        )


def _check_sft_batch(config: Config) -> None:
    if config.sft.batch_size % config.learner.num_ranks:
        raise ConfigError(
            f"sft.batch_size={config.sft.batch_size} samples is not divisible by learner.num_ranks="
            f"{config.learner.num_ranks}; use "
            f"{divisors_near(config.sft.batch_size, config.learner.num_ranks)}"
        )


def _check_lengths(config: Config, stage: str, lengths: DatasetLengths, key: str) -> None:
    limit, budget = config.rollout.max_model_len, config.learner.max_tokens_per_microbatch
    remedy = "raise rollout.max_model_len, lower model.max_pixels"
    if stage == "sft":
        if lengths.without_reasoning_where is not None:
            raise DataError(
                f"{lengths.without_reasoning_where}: reasoning: missing; SFT needs it in every row of {key}: "
                "label the dataset, or start with grpo"
            )
        if lengths.longest_sample > limit:
            raise ConfigError(
                f"{key}: the longest prompt with its answer has {lengths.longest_sample} tokens "
                f"({lengths.longest_sample_where}), more than rollout.max_model_len={limit}; {remedy}"
            )
        if lengths.longest_sample > budget:
            raise ConfigError(
                f"{key}: the longest prompt with its answer has {lengths.longest_sample} tokens "
                f"({lengths.longest_sample_where}), more than learner.max_tokens_per_microbatch={budget}; "
                "raise it"
            )
        return
    total = lengths.longest_prompt + config.grpo.max_new_tokens
    if total > limit:
        text = lengths.longest_prompt - lengths.longest_prompt_image
        raise ConfigError(
            f"{key}: the longest prompt ({lengths.longest_prompt_where}) has {text} text + "
            f"{lengths.longest_prompt_image} image tokens, + grpo.max_new_tokens="
            f"{config.grpo.max_new_tokens} = {total}, more than rollout.max_model_len={limit}; "
            f"{remedy} or grpo.max_new_tokens"
        )
    group = lengths.longest_prompt + config.grpo.group_size * config.grpo.max_new_tokens
    if stage != "eval" and group > budget:
        raise ConfigError(
            f"{key}: a group may have {lengths.longest_prompt} prompt tokens "
            f"({lengths.longest_prompt_where}) + grpo.group_size={config.grpo.group_size} x "
            f"grpo.max_new_tokens={config.grpo.max_new_tokens} = {group} tokens, more than "
            f"learner.max_tokens_per_microbatch={budget}, and a group is never split; raise that to {group} "
            "or more"
        )


def _check_engine_settings(config: Config, folder: Path) -> None:
    """What an engine would refuse: a context beyond the model's, a KV cache too small for one sequence."""
    whole = read_json(folder, "config.json")
    text = whole.get("text_config", whole)
    limit = config.rollout.max_model_len
    positions = text.get("max_position_embeddings")
    if isinstance(positions, int) and limit > positions:
        raise ConfigError(
            f"rollout.max_model_len={limit}: the model takes at most {positions} positions "
            "(max_position_embeddings); lower it"
        )
    if config.rollout.gpus_per_worker:
        return
    try:
        heads = text["num_attention_heads"]
        head_dim = text.get("head_dim") or text["hidden_size"] // heads
        kv_heads = text.get("num_key_value_heads") or heads
        value_bytes = 2 if config.model.dtype == "bfloat16" else 4
        token_bytes = 2 * text["num_hidden_layers"] * kv_heads * head_dim * value_bytes
    except (KeyError, TypeError) as error:
        raise ModelError(
            f"{folder / 'config.json'}: the text model's sizes are incomplete: {error}"
        ) from error
    if limit * token_bytes > config.rollout.kv_cache_bytes:
        raise ConfigError(
            f"rollout.kv_cache_bytes={config.rollout.kv_cache_bytes}: one sequence of "
            f"rollout.max_model_len={limit} tokens x {token_bytes} bytes = {limit * token_bytes} does not "
            f"fit; raise the first to {limit * token_bytes} or more, or lower the second"
        )
