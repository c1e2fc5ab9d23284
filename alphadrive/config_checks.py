"""Checks of a configuration: ranges of single values, and what spans several keys.

Pure; called by `alphadrive.config.load_config`. Every problem is found before anything is raised.
"""

import math
import re
from typing import TYPE_CHECKING, Any

from alphadrive.errors import ConfigError
from alphadrive.loss_checks import loss_problems
from alphadrive.object_store import address_problem, is_address
from alphadrive.pools import POOL_KEYS, parse_pool
from alphadrive.reward_names import VARIANTS, weight_problems
from alphadrive.secrets import secret_problems

if TYPE_CHECKING:
    from alphadrive.config import Config


def check_config(config: "Config") -> None:
    """Check values and combinations. Raises ConfigError with every problem found, one a line."""
    problems = [
        *secret_problems(config),
        *_range_problems(config),
        *_arithmetic_problems(config),
        *loss_problems(config.grpo),
        *_reward_problems(config),
        *_place_problems(config),
        *_profile_problems(config),
        *_transfer_problems(config),
    ]
    if problems:
        raise ConfigError("\n".join(problems))


_AT_LEAST_ONE = [
    "grpo.steps",
    "grpo.groups_per_step",
    "grpo.sync_every",
    "grpo.max_new_tokens",
    "grpo.epochs",
    "grpo.minibatches",
    "sft.steps",
    "sft.batch_size",
    "rollout.num_workers",
    "rollout.max_num_seqs",
    "rewards.num_workers",
    "learner.num_ranks",
    "learner.max_tokens_per_microbatch",
    "rollout.max_attempts",
    "checkpoint.every_steps",
    "checkpoint.keep_last",
    "rollout.canary_rows",
    "rollout.kv_cache_bytes",
    "rollout.weight_bucket_bytes",
    "rewards.length_chars",
    "learner.image_workers",
]
_POSITIVE = [
    "grpo.learning_rate",
    "sft.learning_rate",
    "grpo.temperature",
    "rollout.request_timeout_s",
    "rollout.sync_timeout_s",
    "rollout.hang_timeout_s",
    "rewards.timeout_s",
    "rewards.trajectory_cap_m",
    "rewards.judge_timeout_s",
    "learner.max_grad_norm",
    "learner.lora_alpha",
    "learner.hang_timeout_s",
    "checkpoint.stop_grace_s",
]
_AT_LEAST_ZERO = [
    "grpo.max_policy_lag",
    "grpo.kl_coef",
    "grpo.warmup_steps",
    "eval.every_steps",
    "rollout.max_restarts",
    "learner.weight_decay",
    "sft.warmup_ratio",
    "rewards.max_dead_letter_share",
    "rewards.judge_retries",
    "rollout.gpus_per_worker",
    "learner.gpus_per_rank",
    "learner.image_cache_bytes",
    "learner.vision_cache_bytes",
    "learner.lora_rank",
    "checkpoint.keep_best",
    "learner.max_restarts",
    "rollout.autoscale.min",
    "rollout.autoscale.max",
    "cluster.wait_for_nodes_s",
]
_CHOICES: dict[str, tuple[object, ...]] = {
    "model.dtype": ("float32", "bfloat16"),
    "learner.zero_stage": (0, 1, 2, 3),
    "rewards.variant": VARIANTS,
    "data.sampling": ("uniform", "balanced"),
    "sft.target": ("teacher", "recorded"),
    "rollout.update_mode": ("keep", "wait"),
    "rollout.weight_transfer": ("auto", "file", "gloo", "nccl", "ipc"),
}


def get_key(config: "Config", key: str) -> Any:
    """The value at a dotted key."""
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def _range_problems(config: "Config") -> list[str]:
    problems = []
    for keys, low, inclusive, words in (
        (_AT_LEAST_ONE, 1, True, "1 or more"),
        (_POSITIVE, 0, False, "above 0"),
        (_AT_LEAST_ZERO, 0, True, "0 or more"),
    ):
        for key in keys:
            value = get_key(config, key)
            is_fine = math.isfinite(value) and (value >= low if inclusive else value > low)
            if not is_fine:
                problems.append(f"{key}={value}: expected {words}")
    for key, choices in _CHOICES.items():
        if get_key(config, key) not in choices:
            problems.append(f"{key}={get_key(config, key)}: expected one of {', '.join(map(str, choices))}")
    if config.grpo.temperature > 2:
        problems.append(
            f"grpo.temperature={config.grpo.temperature}: expected 2, the sampler's limit, or less"
        )
    for key in ("data.num_rows", "eval.num_rows"):
        value = get_key(config, key)
        if value is not None and value < 1:
            problems.append(f"{key}={value}: expected 1 or more, or null for all")
    share = config.rollout.gpu_memory_utilization
    if not 0 < share <= 1:
        problems.append(f"rollout.gpu_memory_utilization={share}: expected a share above 0, at most 1")
    if config.model.max_pixels < 28 * 28:
        problems.append(
            f"model.max_pixels={config.model.max_pixels}: expected {28 * 28} (one vision token) or more"
        )
    try:
        re.compile(config.learner.lora_targets)
    except re.error as error:
        problems.append(
            f"learner.lora_targets={config.learner.lora_targets!r}: not a regular expression: {error}"
        )
    if not config.run.name or "/" in config.run.name or config.run.name in (".", ".."):
        problems.append(f"run.name={config.run.name!r}: expected a plain folder name")
    return problems


def divisors_near(total: int, ranks: int) -> str:
    """The nearest totals that `ranks` divides, for a message."""
    below, above = total // ranks * ranks, -(-total // ranks) * ranks
    return " or ".join(str(value) for value in sorted({below, above} - {0}))


def _arithmetic_problems(config: "Config") -> list[str]:
    problems = []
    grpo, ranks = config.grpo, config.learner.num_ranks
    if grpo.group_size < 2:
        problems.append(
            f"grpo.group_size={grpo.group_size}: expected 2 or more; the advantage of a completion is "
            "relative to its group, so it is always 0 in a group of one"
        )
    if ranks >= 1 and grpo.groups_per_step % ranks:
        samples = grpo.groups_per_step * grpo.group_size
        problems.append(
            f"grpo.groups_per_step={grpo.groups_per_step} prompts (x grpo.group_size={grpo.group_size} = "
            f"{samples} samples a step) is not divisible by learner.num_ranks={ranks}; use "
            f"{divisors_near(grpo.groups_per_step, ranks)}"
        )
    elif ranks >= 1 and grpo.minibatches >= 1 and grpo.groups_per_step % (ranks * grpo.minibatches):
        problems.append(
            f"grpo.groups_per_step={grpo.groups_per_step} is not divisible by grpo.minibatches="
            f"{grpo.minibatches} x learner.num_ranks={ranks} = {ranks * grpo.minibatches}; use "
            f"{divisors_near(grpo.groups_per_step, ranks * grpo.minibatches)}"
        )
    if config.learner.offload_optimizer and not config.learner.zero_stage:
        problems.append(
            "learner.offload_optimizer=True: stage 0 keeps the optimizer with the weights; set "
            "learner.zero_stage to 1, 2 or 3"
        )
    if config.rollout.sync_timeout_s > config.rollout.request_timeout_s:
        problems.append(
            f"rollout.sync_timeout_s={config.rollout.sync_timeout_s} exceeds "
            f"rollout.request_timeout_s={config.rollout.request_timeout_s}; a request paused by a weight "
            "sync would time out: lower the first or raise the second"
        )
    if config.rollout.hang_timeout_s >= config.rollout.request_timeout_s:
        problems.append(
            f"rollout.hang_timeout_s={config.rollout.hang_timeout_s} reaches "
            f"rollout.request_timeout_s={config.rollout.request_timeout_s}; the queries of a hung engine "
            "would be given up before it is replaced: lower the first or raise the second"
        )
    return problems + _autoscale_problems(config)


def _autoscale_problems(config: "Config") -> list[str]:
    bounds, start = config.rollout.autoscale, config.rollout.num_workers
    if not bounds.min and not bounds.max:
        return []
    words = f"rollout.autoscale.min={bounds.min}, rollout.autoscale.max={bounds.max}"
    if not 1 <= bounds.min <= bounds.max:
        return [f"{words}: expected 1 <= min <= max, or both 0 for a fixed number of workers"]
    if not bounds.min <= start <= bounds.max:
        return [f"rollout.num_workers={start}: what a run starts with is outside of {words}"]
    return []


def _place_problems(config: "Config") -> list[str]:
    problems = []
    for key in POOL_KEYS:
        try:
            parse_pool(key, get_key(config, key))
        except ConfigError as error:
            problems.append(str(error))
    for key in ("rollout.gpus_per_worker", "learner.gpus_per_rank"):
        gpus = get_key(config, key)
        if gpus > 1:
            problems.append(f"{key}={gpus}: expected 1 or a part of one: no engine or rank uses several GPUs")
    if config.learner.num_ranks > 1 and 0 < config.learner.gpus_per_rank <= 0.5:
        problems.append(
            f"learner.gpus_per_rank={config.learner.gpus_per_rank} with learner.num_ranks="
            f"{config.learner.num_ranks}: two ranks would share a GPU, which NCCL refuses; use more than 0.5"
        )
    for key in ("run.root", "model.path"):
        if is_address(get_key(config, key)):
            problems.append(
                f"{key}: expected a folder, got an address; data.train, data.eval and checkpoint.mirror may "
                "be one"
            )
    for key in ("data.train", "data.eval", "checkpoint.mirror"):
        place = get_key(config, key)
        is_to_be_address = place is not None and (is_address(place) or key == "checkpoint.mirror")
        if is_to_be_address and (problem := address_problem(place)):
            problems.append(f"{key}: {problem}")
    return problems


def _profile_problems(config: "Config") -> list[str]:
    wrong = [step for step in config.profile.torch_steps if step < 1]
    return [f"profile.torch_steps={wrong}: steps count from 1"] if wrong else []


def _transfer_problems(config: "Config") -> list[str]:
    kind, learner = config.rollout.weight_transfer, config.learner
    if kind not in ("nccl", "ipc"):
        return []
    words = f"rollout.weight_transfer={kind}"
    problems = []
    gpus = min(config.rollout.gpus_per_worker, learner.gpus_per_rank)
    if not gpus:
        problems.append(
            f"{words}: goes from GPU to GPU, but rollout.gpus_per_worker={config.rollout.gpus_per_worker:g} "
            f"and learner.gpus_per_rank={learner.gpus_per_rank:g}; set both, or use auto"
        )
    elif kind == "nccl" and gpus < 1:
        problems.append(
            f"{words}: each engine and each rank needs whole GPUs of its own, but rollout.gpus_per_worker="
            f"{config.rollout.gpus_per_worker:g} and learner.gpus_per_rank={learner.gpus_per_rank:g}; set "
            "both to 1 or more, or use ipc"
        )
    most = max(config.rollout.num_workers, config.rollout.autoscale.max)
    if kind == "ipc" and (learner.num_ranks > 1 or most > 1):
        problems.append(
            f"{words}: the learner's only rank and one engine share a GPU, but learner.num_ranks="
            f"{learner.num_ranks} and rollout.num_workers={config.rollout.num_workers} (autoscale.max="
            f"{config.rollout.autoscale.max}); set them to 1, or use nccl"
        )
    return problems


def _reward_problems(config: "Config") -> list[str]:
    rewards = config.rewards
    problems = weight_problems(rewards.weights)
    if rewards.weights.get("trajectory") and not config.data.trajectory:
        problems.append(
            "rewards.weights.trajectory: no answer states a trajectory while data.trajectory=False; "
            "set that to true, or the weight to 0"
        )
    if not rewards.weights.get("judge"):
        return problems
    if not (rewards.judge_url or "").startswith(("http://", "https://")):
        problems.append(f"rewards.judge_url={rewards.judge_url}: expected an http or https address")
    if not rewards.judge_model:
        problems.append(f"rewards.judge_model={rewards.judge_model}: expected the name of the judge's model")
    patience_s = rewards.judge_timeout_s * (rewards.judge_retries + 1)
    if patience_s >= rewards.timeout_s:
        problems.append(
            f"rewards.judge_timeout_s={rewards.judge_timeout_s} x (rewards.judge_retries="
            f"{rewards.judge_retries} + 1) = {patience_s} reaches rewards.timeout_s={rewards.timeout_s}, "
            "after which a worker is killed: lower the first or raise the last"
        )
    return problems
