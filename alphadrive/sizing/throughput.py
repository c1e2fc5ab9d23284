"""How fast a run should be on a named GPU, from its arithmetic and stated utilisations. Pure.

rollout of a query   vision tower and prompt once (arithmetic), answers token by token (memory traffic)
training             three forwards of the shared pack, per epoch; a reference or start pass one more
step                 the longer of both where the policy may lag, else their sum; plus optimizer and sync
"""

from dataclasses import dataclass

from alphadrive.capacity import value_bytes_of
from alphadrive.config import Config
from alphadrive.sizing.architecture import Architecture
from alphadrive.sizing.flops import forward_flops, head_flops, text_flops, vision_flops
from alphadrive.sizing.gpus import GB, Gpu
from alphadrive.sizing.workload import Workload, batch_of

TRAIN_UTILISATION = 0.35
PREFILL_UTILISATION = 0.40
DECODE_UTILISATION = 0.50
LINK_UTILISATION = 0.50
SYNC_BYTES_PER_S = 10 * GB
DIGEST_BYTES_PER_S = 8 * GB
GPUS_PER_NODE = 8
NODE_LINK_BYTES_PER_S = 50 * GB
HOST_BYTES_PER_S = 25 * GB
"""Memory of the host, as one rank's optimizer on the CPU gets it, and its way to the GPU."""

ASSUMPTIONS = (
    f"utilisation of the GPU's arithmetic: {TRAIN_UTILISATION:.0%} in training, {PREFILL_UTILISATION:.0%} in "
    f"prefill; {DECODE_UTILISATION:.0%} of its memory's speed in decoding; {LINK_UTILISATION:.0%} of its "
    "links'; not measured",
    f"{GPUS_PER_NODE} GPUs a node, {NODE_LINK_BYTES_PER_S / GB:.0f} GB/s a GPU between nodes",
    f"weights move at {SYNC_BYTES_PER_S / GB:.0f} GB/s, their SHA-256 takes {DIGEST_BYTES_PER_S / GB:.0f} "
    "GB/s; sent by file, both twice, one after the other",
    "reading images, rewards and checkpoints hide behind the rest",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """Seconds of one step of the whole run, and what follows. `bound` is what a step waits for."""

    rollout_s: float
    train_s: float
    optimizer_s: float
    sync_s: float
    step_s: float
    bound: str
    samples_per_s: float
    epoch_s: float | None
    run_s: float


def throughput_of(
    config: Config, stage: str, architecture: Architecture, workload: Workload, gpu: Gpu
) -> Throughput | None:
    """The estimate; None where learner or engines run without a GPU: there only measuring helps."""
    needs_engines = stage != "sft"
    if not config.learner.gpus_per_rank or (needs_engines and not config.rollout.gpus_per_worker):
        return None
    batch, ranks = batch_of(config, stage, workload), config.learner.num_ranks
    rollout_s = 0.0
    if needs_engines:
        each_s = rollout_query_s(config, architecture, workload, gpu, batch.sequences_per_engine)
        rollout_s = batch.groups * each_s / config.rollout.num_workers
    each_flops = training_flops(config, stage, architecture, workload)
    train_s = batch.groups * each_flops / ranks / (gpu.flops * TRAIN_UTILISATION)
    optimizer_s = batch.optimizer_steps * _optimizer_s(config, architecture, gpu, ranks)
    weights = architecture.parameters * value_bytes_of(config)
    sync_s = weights * (1 / SYNC_BYTES_PER_S + 1 / DIGEST_BYTES_PER_S) / config.grpo.sync_every
    if not needs_engines:
        sync_s = 0.0
    elif config.rollout.weight_transfer == "file":
        sync_s *= 2
    learner_s = train_s + optimizer_s + sync_s
    is_shared = config.learner.gpus_per_rank + config.rollout.gpus_per_worker <= 1
    if needs_engines and config.grpo.max_policy_lag and not is_shared:
        step_s, bound = max(learner_s, rollout_s), "learner" if learner_s >= rollout_s else "rollout engines"
    else:
        step_s = learner_s + rollout_s
        bound = "learner and rollout engines in turn" if needs_engines else "learner"
    return Throughput(
        rollout_s=rollout_s,
        train_s=train_s,
        optimizer_s=optimizer_s,
        sync_s=sync_s,
        step_s=step_s,
        bound=bound,
        samples_per_s=batch.samples / step_s,
        epoch_s=None if batch.steps_per_epoch is None else batch.steps_per_epoch * step_s,
        run_s=batch.steps * step_s,
    )


def training_flops(config: Config, stage: str, architecture: Architecture, workload: Workload) -> float:
    """Operations of a step for one group: forward, backward, recomputation, reference, old policy.

    A backward pass is worth two forwards, or one with LoRA, where weights have no gradient. A frozen vision
    tower has none, and its features serve every pass.
    """
    grpo, learner = config.grpo, config.learner
    is_sft = stage == "sft"
    vision = vision_flops(architecture, workload.patches)
    text = -vision + forward_flops(
        architecture,
        num_text=workload.text_tokens,
        num_patches=workload.patches,
        num_completion=workload.answer_tokens,
        group_size=1 if is_sft else grpo.group_size,
    )
    passes = (2.0 if learner.lora_rank else 3.0) + learner.activation_checkpointing
    epochs, without_gradient = 1, 0
    if not is_sft:
        epochs, without_gradient = grpo.epochs, grpo.epochs * (grpo.kl_coef > 0)
        without_gradient += grpo.old_policy == "learner" and grpo.epochs * grpo.minibatches > 1
    total = epochs * passes + without_gradient
    return text * total + vision * (total if architecture.trains_vision(learner) else epochs)


def rollout_query_s(
    config: Config, architecture: Architecture, workload: Workload, gpu: Gpu, sequences: int
) -> float:
    """Seconds of an engine for a query and its completions, with so many sequences drawn at once."""
    value, text, size = value_bytes_of(config), architecture.text, config.grpo.group_size
    prefill = vision_flops(architecture, workload.patches)
    prefill += text_flops(architecture, workload.prompt_tokens, 0, 1)
    read = architecture.text_parameters * value
    context = workload.prompt_tokens + workload.answer_tokens / 2
    read += int(sequences * context * 2 * text.layers * text.kv_width * value)
    tokens = size * workload.answer_tokens
    arithmetic = text_flops(architecture, workload.prompt_tokens, workload.answer_tokens, size)
    arithmetic -= text_flops(architecture, workload.prompt_tokens, 0, 1)
    arithmetic += head_flops(architecture, tokens)
    decode_s = max(
        tokens / sequences * read / (gpu.bytes_per_s * DECODE_UTILISATION),
        arithmetic / (gpu.flops * PREFILL_UTILISATION),
    )
    return prefill / (gpu.flops * PREFILL_UTILISATION) + decode_s


def _optimizer_s(config: Config, architecture: Architecture, gpu: Gpu, ranks: int) -> float:
    """Reducing the gradients, gathering the weights, and reading and writing weights and moments."""
    learner, value = config.learner, value_bytes_of(config)
    trained = architecture.adapter_parameters(learner) or architecture.parameters
    shard = ranks if learner.zero_stage else 1
    memory_s = trained * 28 / shard / gpu.bytes_per_s
    if learner.offload_optimizer:
        memory_s = trained * (28 + 2 * value) / shard / HOST_BYTES_PER_S
    exchanged = 2 * trained * value * (ranks - 1) / ranks
    link = gpu.link_bytes_per_s
    if ranks > GPUS_PER_NODE:
        link = min(link, NODE_LINK_BYTES_PER_S)
    return memory_s + exchanged / (link * LINK_UTILISATION)
