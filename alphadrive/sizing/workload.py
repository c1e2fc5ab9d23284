"""What a run works on: lengths of prompts and answers, and the arithmetic of its batches. Pure."""

import math
from dataclasses import dataclass

from alphadrive.config import Config
from alphadrive.sizing.architecture import Architecture

TEXT_TOKENS = 190
"""Text tokens of a prompt beside its image: about what the prompt takes with Qwen2-VL's tokenizer."""
ANSWER_TOKENS = 80
"""Tokens of a typical answer: one or two sentences of reasoning and a plan."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Lengths in tokens. `rows` are the queries of an epoch, None when not known."""

    text_tokens: int
    vision_tokens: int
    patches: int
    answer_tokens: int
    rows: int | None

    @property
    def prompt_tokens(self) -> int:
        """Text and image."""
        return self.text_tokens + self.vision_tokens


def workload_of(
    config: Config,
    architecture: Architecture,
    rows: int | None,
    text_tokens: int | None = None,
    answer_tokens: int | None = None,
) -> Workload:
    """The workload of a run whose images all have `model.max_pixels`; None for a length is the usual one."""
    return Workload(
        text_tokens=text_tokens or TEXT_TOKENS,
        vision_tokens=architecture.vision_tokens(config.model.max_pixels),
        patches=architecture.patches(config.model.max_pixels),
        answer_tokens=min(answer_tokens or ANSWER_TOKENS, config.grpo.max_new_tokens),
        rows=rows,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A step in prompts and samples. With SFT a group is one sample, and nothing is in flight.

    `optimizer_steps` are those of one step; `groups_in_flight` may be drawn, scored or waiting at once,
    `sequences_per_engine` of their completions may be drawn by one engine at once. `microbatches` a rank
    makes of its groups of one optimizer step, when answers have their typical length and the longest.
    """

    groups: int
    group_size: int
    groups_per_rank: int
    optimizer_steps: int
    groups_per_optimizer_step: int
    groups_in_flight: int
    sequences_per_engine: int
    microbatches: tuple[int, int]
    steps: int
    steps_per_epoch: int | None

    @property
    def samples(self) -> int:
        """Completions a step."""
        return self.groups * self.group_size


def batch_of(config: Config, stage: str, workload: Workload) -> Batch:
    """The arithmetic of a step of `stage` (`grpo`, `debug` or `sft`)."""
    grpo, ranks = config.grpo, 1 if stage == "debug" else config.learner.num_ranks
    is_sft = stage == "sft"
    groups = config.sft.batch_size if is_sft else grpo.groups_per_step
    size = 1 if is_sft else grpo.group_size
    minibatches, epochs = (1, 1) if is_sft else (grpo.minibatches, grpo.epochs)
    per_rank = math.ceil(groups / ranks / minibatches)
    engines = config.rollout.num_workers if stage == "grpo" else 1
    in_flight = 0 if is_sft else config.num_slots
    concurrent = min(config.rollout.max_num_seqs, math.ceil(in_flight / engines) * size)

    def microbatches(answer_tokens: int) -> int:
        each = workload.prompt_tokens + size * answer_tokens
        return math.ceil(per_rank / max(1, config.learner.max_tokens_per_microbatch // each))

    return Batch(
        groups=groups,
        group_size=size,
        groups_per_rank=math.ceil(groups / ranks),
        optimizer_steps=minibatches * epochs,
        groups_per_optimizer_step=groups // minibatches,
        groups_in_flight=in_flight,
        sequences_per_engine=concurrent,
        microbatches=(microbatches(workload.answer_tokens), microbatches(grpo.max_new_tokens)),
        steps=config.sft.steps if is_sft else grpo.steps,
        steps_per_epoch=None if workload.rows is None else math.ceil(workload.rows / groups),
    )
