"""What a run needs of this machine, in memory and disk, compared with what there is.

Estimates, written out in every message so that a reader can check them. Resident sizes are of a
process after its imports; activations and images in flight are not counted.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil

from alphadrive.config import Config
from alphadrive.errors import ResourceError

GIB = 1 << 30
ENGINE_BYTES = int(1.4 * GIB)
"""An engine's actor and its core process without model and KV cache (vLLM and torch imported twice)."""
RANK_BYTES = int(1.0 * GIB)
"""A learner rank without the model (torch, transformers and DeepSpeed imported)."""
REWARD_BYTES = int(0.2 * GIB)
BASE_BYTES = int(1.2 * GIB)
"""The driver and Ray's own processes."""
OBJECT_STORE_BYTES = 1 << 30
"""Of Ray's object store in /dev/shm, where a private cluster is on CPU. Enough for references of groups:
neither pixels nor weights go through it."""

OFFLOADED_BYTES = 16
"""Bytes a parameter of an offloaded optimizer: weights, two moments and the gradient in float32."""

_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One line of an estimate: so many of something, each of so many bytes."""

    label: str
    count: int
    each_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.count * self.each_bytes

    def __str__(self) -> str:
        return f"{self.label}: {self.count} x {gib(self.each_bytes)} = {gib(self.total_bytes)}"


def gib(num_bytes: float) -> str:
    """Bytes for people: `1.4 GiB`, `12 MiB`."""
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB / 10 else f"{num_bytes / (1 << 20):.0f} MiB"


def memory_limit_bytes() -> int:
    """The memory of this machine, or of the container this process is confined to."""
    limits = [psutil.virtual_memory().total]
    for path in _CGROUP_LIMITS:
        text = path.read_text().strip() if path.is_file() else "max"
        if text.isdigit():
            limits.append(int(text))
    return min(limits)


def memory_parts(
    config: Config, stage: str, num_parameters: int, num_adapter: int = 0, num_frozen: int = 0
) -> list[Part]:
    """The processes of a stage and the memory each needs. Those on GPUs count without model states, but
    with an offloaded optimizer.

    `num_adapter` are the parameters that LoRA adds and trains instead of the weights, 0 without LoRA;
    `num_frozen` those of the weights that are not trained.
    """
    weights_bytes = value_bytes_of(config) * num_parameters
    parts = [Part(label="driver and Ray", count=1, each_bytes=BASE_BYTES)]
    if stage in ("grpo", "debug", "eval"):
        engine_bytes = ENGINE_BYTES
        if not config.rollout.gpus_per_worker:
            # The core prepacks the weights into a copy of its own.
            engine_bytes += 2 * weights_bytes + config.rollout.kv_cache_bytes
        key, engines = "rollout.num_workers", config.rollout.num_workers if stage == "grpo" else 1
        if stage == "grpo" and config.rollout.autoscale.max:
            key, engines = "rollout.autoscale.max", config.rollout.autoscale.max
        parts.append(Part(label=f"{key}={engines}", count=engines, each_bytes=engine_bytes))
    if stage in ("grpo", "debug", "sft"):
        ranks = config.learner.num_ranks if stage != "debug" else 1
        rank_bytes = RANK_BYTES
        if not config.learner.gpus_per_rank:
            states = learner_states(
                config, stage, num_parameters, ranks, num_adapter=num_adapter, num_frozen=num_frozen
            )
            rank_bytes += states.total
        elif config.learner.offload_optimizer:
            rank_bytes += OFFLOADED_BYTES * (num_adapter or num_parameters - num_frozen) // ranks
        parts.append(Part(label=f"learner.num_ranks={ranks}", count=ranks, each_bytes=rank_bytes))
    if stage == "grpo":
        rewards = config.rewards.num_workers
        parts.append(Part(label=f"rewards.num_workers={rewards}", count=rewards, each_bytes=REWARD_BYTES))
    return parts


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerStates:
    """What one rank holds between steps, in bytes."""

    weights: int
    gradients: int
    optimizer: int
    reference: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.reference


def learner_states(
    config: Config,
    stage: str,
    num_parameters: int,
    num_ranks: int,
    *,
    num_adapter: int = 0,
    num_frozen: int = 0,
) -> LearnerStates:
    """Weights, gradients, two float32 moments and the KL reference of one rank; ZeRO stage 1 shards the
    optimizer, 2 the gradients, 3 the weights and the reference.

    DeepSpeed keeps float32 master weights beside the moments under bfloat16, and under every ZeRO stage
    above 0 in float32, too. Of weights that are not trained (`num_frozen`; with LoRA all but the adapter's)
    there are neither gradients nor moments, and with LoRA the reference is the model itself.
    """
    value_bytes, zero = value_bytes_of(config), config.learner.zero_stage
    has_masters = zero >= 1 or value_bytes == 2
    trained = num_adapter or num_parameters - num_frozen

    def held(count: int, each_bytes: int, sharded_from: int) -> int:
        return count * each_bytes // (num_ranks if zero >= sharded_from else 1)

    has_reference = stage != "sft" and config.grpo.kl_coef > 0 and not num_adapter
    return LearnerStates(
        weights=held(num_parameters + num_adapter, value_bytes, 3),
        gradients=held(trained, value_bytes, 2),
        optimizer=held(trained, 12 if has_masters else 8, 1),
        reference=held(num_parameters, value_bytes, 3) if has_reference else 0,
    )


def value_bytes_of(config: Config) -> int:
    """Bytes of a number in the model's dtype."""
    return 2 if config.model.dtype == "bfloat16" else 4


def check_memory(
    config: Config,
    stage: str,
    num_parameters: int,
    limit_bytes: int | None = None,
    num_adapter: int = 0,
    num_frozen: int = 0,
) -> int:
    """The memory a stage needs at least, in bytes; `num_adapter` and `num_frozen` as in `memory_parts`.

    Raises ResourceError with the whole sum, and how many rollout workers would fit, when that is more
    than `limit_bytes` (this machine's, when not given). A cluster named by RAY_ADDRESS is not this
    machine: there only the sum is returned.
    """
    parts = memory_parts(config, stage, num_parameters, num_adapter, num_frozen)
    needed = sum(part.total_bytes for part in parts)
    limit = memory_limit_bytes() if limit_bytes is None else limit_bytes
    if needed <= limit or (limit_bytes is None and os.environ.get("RAY_ADDRESS")):
        return needed
    lines = "\n".join(f"  {part}" for part in parts)
    raise ResourceError(
        f"more workers than this machine can hold: {gib(needed)} of memory needed, there are {gib(limit)}:\n"
        f"{lines}\n{_advice(parts, needed, limit)}"
    )


def _advice(parts: list[Part], needed: int, limit: int) -> str:
    most = max((part for part in parts[1:]), key=lambda part: part.total_bytes)
    key = most.label.partition("=")[0]
    fitting = (limit - (needed - most.total_bytes)) // most.each_bytes
    if fitting >= 1 and most.count > 1:
        return f"{key}={fitting} would fit"
    return "use a smaller model, more memory, or GPUs for engines and learner"


def checkpoint_bytes(config: Config, num_parameters: int, num_adapter: int = 0) -> int:
    """Size of a checkpoint: the model, the adapter, the trained weights in the learner's own form, and their
    optimizer state with master weights. `num_adapter` as in `memory_parts`."""
    value_bytes = value_bytes_of(config)
    trained = num_adapter or num_parameters
    return value_bytes * (num_parameters + num_adapter) + (value_bytes + 12) * trained


def most_checkpoints(config: Config) -> int:
    """Checkpoints that a run may have on the disk at once: those it keeps, and one being written."""
    keep_best = config.checkpoint.keep_best if config.data.eval and config.eval.every_steps else 0
    return config.checkpoint.keep_last + keep_best + 1


def check_disk(
    config: Config, num_parameters: int, free_bytes: int | None = None, num_adapter: int = 0
) -> int:
    """The disk space that a run's checkpoints will take beside those it has, in bytes; `num_adapter` as in
    `memory_parts`.

    Old checkpoints are removed only once a newer one is complete, so one more than are kept must fit.
    Never less than two checkpoints. Raises ResourceError when that does not fit.
    """
    keep_last, most = config.checkpoint.keep_last, most_checkpoints(config)
    keep_best = most - keep_last - 1
    run = Path(config.run.root) / config.run.name
    num_present = len(list((run / "checkpoints").glob("step_*")))
    count = max(2, most - num_present)
    each = checkpoint_bytes(config, num_parameters, num_adapter)
    folder = existing_parent(run)
    free = shutil.disk_usage(folder).free if free_bytes is None else free_bytes
    if count * each > free:
        raise ResourceError(
            f"not enough disk space for checkpoints under {folder}: checkpoint.keep_last={keep_last} + "
            f"checkpoint.keep_best={keep_best} + 1 being written - {num_present} present, but at least 2: "
            f"{count} x {gib(each)} = {gib(count * each)} needed, {gib(free)} free; free some, keep fewer, "
            "or set run.root to another disk"
        )
    return count * each


def check_room(folder: Path, num_bytes: int) -> None:
    """Raises ResourceError when `num_bytes` do not fit where `folder` is or will be."""
    free = shutil.disk_usage(existing_parent(folder)).free
    if num_bytes > free:
        raise ResourceError(
            f"not enough disk space for {folder}: {gib(num_bytes)} needed, {gib(free)} free; free some or "
            "choose another folder"
        )


def unwritable(path: Path) -> Path | None:
    """What keeps a folder from being made or written at a path: the nearest that exists, where it is no
    folder or not ours to write in. None where nothing does."""
    parent = existing_parent(path)
    return None if parent.is_dir() and os.access(parent, os.W_OK | os.X_OK) else parent


def existing_parent(path: Path) -> Path:
    """The path itself or the nearest folder above it that exists."""
    absolute = path.absolute()
    return next(parent for parent in [absolute, *absolute.parents] if parent.exists())
