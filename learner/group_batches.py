"""Scored groups to microbatches of the GRPO update, and their tokens' numbers back to groups."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from alphadrive.types import ScoredGroup
from learner.admission import num_completion_tokens
from learner.batch import TokenBatch, TrainBatch
from learner.trainer import Trainer


@dataclass(frozen=True, slots=True)
class TrainGroup:
    """A scored group and, once the policy has moved, the learner's log-probabilities of its completion
    tokens at the step's start, in order, on the CPU."""

    scored: ScoredGroup
    old_logprobs: Tensor | None = None

    @property
    def num_completion_tokens(self) -> int:
        """Tokens of all its completions."""
        return num_completion_tokens(self.scored.group)


def group_batches(trainer: Trainer, groups: Sequence[TrainGroup]) -> Iterator[TrainBatch]:
    """This rank's groups in order, packed into microbatches; then fillers. Groups without a completion token
    have nothing to compute and are in none."""
    trained = [group for group in groups if group.num_completion_tokens]
    sizes = [len(group.scored.group.prompt_token_ids) + group.num_completion_tokens for group in trained]
    return trainer.microbatches(
        sizes, lambda indices: _train_batch(trainer, [trained[index] for index in indices]), _filler
    )


def start_logprobs(trainer: Trainer, groups: Sequence[TrainGroup]) -> list[TrainGroup]:
    """The groups with the log-probabilities that the policy gives their tokens now, by one forward pass."""
    batches, parts = group_batches(trainer, groups), []
    with torch.no_grad():
        for batch in batches:
            logprobs_T, _ = trainer.engine.forward(batch.tokens.to(trainer.device))
            parts.append(logprobs_T.cpu())
    lengths = [group.num_completion_tokens for group in groups]
    # Fillers come last: what is left over is theirs.
    by_group = torch.cat([*parts, torch.zeros(0)])[: sum(lengths)].split(lengths)
    return [TrainGroup(group.scored, logprobs) for group, logprobs in zip(groups, by_group, strict=True)]


def _train_batch(trainer: Trainer, groups: list[TrainGroup]) -> TrainBatch:
    scored = [group.scored for group in groups]
    answers = [
        (completion, advantage)
        for each in scored
        for completion, advantage in zip(each.group.completions, each.advantages, strict=True)
    ]
    logprobs = chain.from_iterable(completion.rollout_logprobs for completion, _ in answers)
    olds = [group.old_logprobs for group in groups if group.old_logprobs is not None]
    return TrainBatch(
        tokens=trainer.token_batch([trainer.reader.rollout_row(each.group) for each in scored]),
        rollout_logprobs_T=torch.tensor(list(logprobs)),
        advantages_T=torch.tensor([float(value) for answer, value in answers for _ in answer.token_ids]),
        old_logprobs_T=torch.cat(olds) if olds else None,
    )


def _filler(tokens: TokenBatch) -> TrainBatch:
    zeros_T = torch.zeros_like(tokens.loss_mask_T)
    return TrainBatch(tokens=tokens, rollout_logprobs_T=zeros_T, advantages_T=zeros_T)
