"""Memory of each kind of GPU of a run, item by item, against what a GPU has. Pure.

    learner GPU    model states, DeepSpeed's buffers, activations of the fullest microbatch, context, margin
    rollout GPU    weights, profile run, KV cache for what is drawn at once; within gpu_memory_utilization
    shared GPU     both, where a rank and engines take fractions of one

Model states come from `alphadrive.capacity`; what is assumed is named in `ASSUMPTIONS`.
"""

from dataclasses import dataclass

from alphadrive.capacity import GIB, Part, learner_states, memory_limit_bytes, memory_parts, value_bytes_of
from alphadrive.config import Config
from alphadrive.sizing.activations import (
    Pack,
    embedding_gradient_bytes,
    kept_bytes,
    vision_layer_bytes,
    working_bytes,
)
from alphadrive.sizing.architecture import Architecture
from alphadrive.sizing.gpus import Gpu
from alphadrive.sizing.workload import Workload, batch_of

CONTEXT_BYTES = int(1.5 * GIB)
FRAGMENTATION = 0.08
BUCKET_NUMBERS = 500_000_000
"""DeepSpeed's default `reduce_bucket_size`: gradients gathered for one reduction, ZeRO stages 1 to 3."""
LIVE_NUMBERS = 1_050_000_000
"""DeepSpeed's default `stage3_max_live_parameters` and `stage3_prefetch_bucket_size`: gathered weights."""
BATCHED_TOKENS = 2048
"""Tokens that vLLM's async engine computes at once by default."""
PROFILE_PATCHES = 65_536
"""Patches of the largest image that Qwen2-VL's own processor makes, with which vLLM tries its memory out."""
GRAPH_BYTES = GIB

ASSUMPTIONS = (
    "a microbatch is as full as it can be: short answers, so that it holds as many images as possible, "
    "each of model.max_pixels",
    "beside what the backward pass needs: gradients of one layer's activations, logits, and the gradient of "
    f"the embedding; {FRAGMENTATION:.0%} of it all is lost to fragmentation",
    f"{CONTEXT_BYTES / GIB:.1f} GiB a process for the CUDA context and NCCL",
    f"an engine: the largest image's vision pass, {GRAPH_BYTES / GIB:.0f} GiB for CUDA graphs, KV cache for "
    "the training groups it may draw at once, prompts shared",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A kind of GPU of a run (or its host, without GPUs), and what each holds.

    `available_bytes` is None where it is not known here. `spare` says what the rest is good for.
    """

    label: str
    count: float
    parts: tuple[Part, ...]
    available_bytes: int | None
    spare: str | None = None

    @property
    def needed_bytes(self) -> int:
        return sum(part.total_bytes for part in self.parts)

    @property
    def fits(self) -> bool:
        return self.available_bytes is None or self.needed_bytes <= self.available_bytes


def devices_of(
    config: Config, stage: str, architecture: Architecture, workload: Workload, gpu: Gpu
) -> tuple[Device, ...]:
    """Every kind of device of a run. Without GPUs, this machine."""
    ranks = 1 if stage == "debug" else config.learner.num_ranks
    engines = 0 if stage == "sft" else (config.rollout.num_workers if stage == "grpo" else 1)
    on_gpu = config.learner.gpus_per_rank > 0, engines > 0 and config.rollout.gpus_per_worker > 0
    devices: list[Device] = []
    sharing = _engines_beside_a_rank(config, engines) if all(on_gpu) else 0
    if on_gpu[0]:
        parts = learner_parts(config, stage, architecture, workload)
        label = "learner GPU"
        if sharing:
            label = "GPU shared by a learner rank and " + (
                "an engine" if sharing == 1 else f"{sharing} engines"
            )
            share = int(config.rollout.gpu_memory_utilization * gpu.memory_bytes)
            parts += (_part("engine: rollout.gpu_memory_utilization", share, sharing),)
        devices.append(Device(label=label, count=ranks, parts=parts, available_bytes=gpu.memory_bytes))
    if on_gpu[1]:
        devices.append(_engine_device(config, stage, architecture, workload, gpu, engines))
    return (*devices, _host(config, stage, architecture, workload, has_gpus=any(on_gpu)))


def _part(label: str, num_bytes: int, count: int = 1) -> Part:
    return Part(label=label, count=count, each_bytes=num_bytes)


def _engines_beside_a_rank(config: Config, engines: int) -> int:
    """Engines that Ray may put on a rank's GPU: as many as the rest of it has room for."""
    left = 1 - config.learner.gpus_per_rank
    if left <= 0 or config.rollout.gpus_per_worker > left + 1e-9:
        return 0
    return min(engines, int(left / config.rollout.gpus_per_worker + 1e-9))


def _frozen_parameters(config: Config, architecture: Architecture) -> int:
    return architecture.vision_parameters if config.learner.freeze_vision else 0


def fullest_pack(config: Config, stage: str, workload: Workload) -> Pack:
    """The microbatch that needs most memory: as many tokens as the budget and a rank's share of an optimizer
    step allow, in as many groups, with their images, as that many tokens can be."""
    batch = batch_of(config, stage, workload)
    groups = -(-batch.groups_per_rank // (1 if stage == "sft" else config.grpo.minibatches))
    longest = workload.prompt_tokens + batch.group_size * config.grpo.max_new_tokens
    if stage == "sft":
        longest = config.rollout.max_model_len  # the bound of what a sample may have
    budget = config.learner.max_tokens_per_microbatch
    images = max(1, min(groups, budget // (workload.prompt_tokens + batch.group_size)))
    return Pack(tokens=min(budget, groups * longest), patches=images * workload.patches)


def learner_parts(
    config: Config, stage: str, architecture: Architecture, workload: Workload
) -> tuple[Part, ...]:
    """What a learner rank holds on its device at most."""
    learner, value = config.learner, value_bytes_of(config)
    ranks, zero = 1 if stage == "debug" else learner.num_ranks, learner.zero_stage
    adapter = architecture.adapter_parameters(learner)
    frozen = _frozen_parameters(config, architecture)
    states = learner_states(
        config, stage, architecture.parameters, ranks, num_adapter=adapter, num_frozen=frozen
    )
    shape = {
        "is_checkpointed": learner.activation_checkpointing,
        "trains_vision": architecture.trains_vision(learner),
    }
    pack = fullest_pack(config, stage, workload)
    kept = kept_bytes(architecture, pack, value, **shape)
    working = working_bytes(architecture, pack, value, **shape)
    if not adapter:
        working += embedding_gradient_bytes(architecture, value)
    buffers = BUCKET_NUMBERS * value if zero else 0
    if zero == 3:
        buffers += min(architecture.parameters, LIVE_NUMBERS) * value
    # In the optimizer's step the activations are gone, and float32 gradients are there.
    trained = adapter or architecture.parameters - frozen
    step = 0 if learner.offload_optimizer else trained * 4 // (ranks if zero else 1)
    margin = int(FRAGMENTATION * (kept + working))
    optimizer = "optimizer (on the CPU)" if learner.offload_optimizer else "optimizer"
    return (
        _part("weights", states.weights),
        _part("gradients", states.gradients),
        _part(optimizer, 0 if learner.offload_optimizer else states.optimizer),
        _part("reference model", states.reference),
        _part("DeepSpeed's buffers", buffers),
        _part(f"activations of {pack.tokens:,} tokens, {pack.patches // workload.patches} images", kept),
        _part("at work: a layer, logits, embedding's gradient", working),
        _part("optimizer step beyond that", max(0, step - kept - working - margin)),
        _part("CUDA context, NCCL", CONTEXT_BYTES),
        _part("fragmentation", margin),
    )


def _engine_device(
    config: Config, stage: str, architecture: Architecture, workload: Workload, gpu: Gpu, engines: int
) -> Device:
    text, value = architecture.text, value_bytes_of(config)
    batch = batch_of(config, stage, workload)
    kv_token = 2 * text.layers * text.kv_width * value
    groups = -(-batch.sequences_per_engine // batch.group_size)
    tokens = max(
        config.rollout.max_model_len,
        groups * workload.prompt_tokens + batch.sequences_per_engine * config.grpo.max_new_tokens,
    )
    vision = PROFILE_PATCHES * vision_layer_bytes(architecture, value) // 2
    logits = config.rollout.max_num_seqs * text.vocabulary * 4 * 3
    language = BATCHED_TOKENS * (4 * text.width + 3 * text.mlp) * value
    parts = (
        _part("weights", architecture.parameters * value),
        _part("profile run: vision, logits", max(vision, language) + logits),
        _part("CUDA context, graphs", CONTEXT_BYTES + GRAPH_BYTES),
        _part(f"KV cache of {batch.sequences_per_engine} sequences in {groups} groups", tokens * kv_token),
    )
    share = int(config.rollout.gpu_memory_utilization * gpu.memory_bytes)
    spare = (share - sum(part.total_bytes for part in parts[:-1])) // kv_token
    return Device(
        label=f"rollout engine, its {config.rollout.gpu_memory_utilization:.0%} of a GPU",
        count=engines,
        parts=parts,
        available_bytes=share,
        spare=f"room for {max(0, spare):,} tokens of KV cache, {tokens:,} asked for",
    )


def _host(
    config: Config, stage: str, architecture: Architecture, workload: Workload, *, has_gpus: bool
) -> Device:
    parts = memory_parts(
        config,
        stage,
        architecture.parameters,
        architecture.adapter_parameters(config.learner),
        _frozen_parameters(config, architecture),
    )
    value, ranks = value_bytes_of(config), 1 if stage == "debug" else config.learner.num_ranks
    if stage != "eval" and config.learner.gpus_per_rank:
        # Every rank loads the model before it goes to its GPU; later the first one collects it to be sent.
        copies = max(ranks, 2)
        weights = architecture.parameters * value
        parts.append(_part("model: loading, weight sync, checkpoints", weights, copies))
    elif stage != "eval":
        pack = fullest_pack(config, stage, workload)
        shape = {
            "is_checkpointed": config.learner.activation_checkpointing,
            "trains_vision": architecture.trains_vision(config.learner),
        }
        held = kept_bytes(architecture, pack, value, **shape)
        held += working_bytes(architecture, pack, value, **shape)
        if not config.learner.lora_rank:
            held += embedding_gradient_bytes(architecture, value)
        parts.append(_part(f"activations of {pack.tokens:,} tokens", held, ranks))
    return Device(
        label="host memory, all nodes together" if has_gpus else "this machine's memory",
        count=1,
        parts=tuple(parts),
        available_bytes=None if has_gpus else memory_limit_bytes(),
    )
