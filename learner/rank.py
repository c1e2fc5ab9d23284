"""One rank of the GRPO learner. `cluster` runs one a process and calls every method on all together.

    step(this rank's groups): check versions -> microbatches: forward, loss, backward -> one optimizer step

All ranks see the same metrics. An error on one rank that the others cannot know of (an image that does
not decode, a process that dies) leaves them waiting in a collective: whoever runs the ranks ends them all.
"""

import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from alphadrive import metric_names as names
from alphadrive.config import Config
from alphadrive.errors import LearnerError, PolicyLagError
from alphadrive.types import RolloutGroup, ScoredGroup, StepResult, WeightsFile, WeightVersion
from learner.batch import TokenBatch, TrainBatch
from learner.losses import GrpoLoss, grpo_loss
from learner.rows import in_microbatches, prepared_ahead
from learner.schedule import warmup_then_constant
from learner.step_metrics import LossStatistics, group_metrics
from learner.trainer import Trainer


class LearnerRank:
    """This process's share of the GRPO learner.

    `model_folder` holds the policy the run starts from, also when a checkpoint is loaded afterwards: the
    KL is to it. `attempt` counts restarts of the learner. Raises InputError for a bad model or dataset.
    """

    def __init__(
        self,
        config: Config,
        *,
        rank: int,
        world_size: int,
        master_addr: str,
        master_port: int,
        model_folder: Path,
        dataset_folder: Path,
        attempt: int = 0,
    ) -> None:
        self.config, self.attempt = config, attempt
        self._trainer = Trainer(
            config,
            rank=rank,
            world_size=world_size,
            master_addr=master_addr,
            master_port=master_port,
            model_folder=model_folder,
            dataset_folder=dataset_folder,
            temperature=config.grpo.temperature,
        )
        self._reference = None
        if config.grpo.kl_coef:
            self._reference = self._trainer.load_policy(config.grpo.temperature).requires_grad_(False).eval()
            self._reference.to(self._trainer.device)

    @property
    def weight_version(self) -> WeightVersion:
        """The version of the policy as it is now."""
        return WeightVersion(self.attempt, self._trainer.step)

    def step(self, groups: Sequence[ScoredGroup]) -> StepResult:
        """One optimizer step on the groups of all ranks; `groups` are this rank's (may be none).

        Raises, with the weights untouched: PolicyLagError for a group of another attempt or outside the
        lag bound, NonFiniteError for a loss or gradient that is not finite, LearnerError when no rank
        has a completion token.
        """
        started = time.perf_counter()
        trainer, step = self._trainer, self._trainer.step + 1
        self._refuse_foreign_versions([scored.group for scored in groups])
        num_step_tokens = trainer.total(sum(_num_tokens(scored.group) for scored in groups))
        if not num_step_tokens:
            raise LearnerError(f"step {step}: no completion tokens on any rank; nothing to train on")
        statistics = LossStatistics()

        def loss_of(batch: TrainBatch) -> Tensor:
            loss = self._loss(batch, num_step_tokens)
            statistics.add(loss)
            return loss.loss

        local_loss = trainer.accumulate(self._train_batches(groups), loss_of)
        learning_rate = warmup_then_constant(
            step, self.config.grpo.learning_rate, self.config.grpo.warmup_steps
        )
        loss, grad_norm = trainer.apply(local_loss, learning_rate)
        metrics = {names.LOSS: loss, names.GRAD_NORM: grad_norm, names.LEARNING_RATE: learning_rate}
        metrics |= statistics.reduced(trainer.engine, num_step_tokens)
        metrics |= group_metrics(trainer.engine, groups, step - 1, time.perf_counter() - started)
        return StepResult(step=step, weight_version=self.weight_version, metrics=metrics)

    def score(self, groups: Sequence[RolloutGroup]) -> list[list[list[float]]]:
        """The policy's log-probability of every token, [group][completion][token], as the engines give
        them: at `grpo.temperature`, over the tokens that may be sampled. Changes nothing.

        Every rank must be called; each scores what it is given.
        """
        scored: list[list[list[float]]] = []
        trainer = self._trainer
        with torch.no_grad():
            for group in groups:
                batch = trainer.token_batch([trainer.reader.rollout_row(group)]).to(trainer.device)
                logprobs_T, _ = trainer.engine.forward(batch)
                remaining = iter(logprobs_T.tolist())
                scored.append([list(islice(remaining, len(c.token_ids))) for c in group.completions])
            for _ in range(trainer.most(len(groups)) - len(groups)):
                trainer.engine.forward(trainer.filler_batch().to(trainer.device))
        return scored

    def export_weights(self, path: Path) -> WeightsFile | None:
        """Write the weights as one safetensors file, complete under its name at once.

        Every rank takes part; rank 0 returns what it wrote, the others None.
        """
        return self._trainer.export_weights(Path(path), self.weight_version)

    def save_model(self, folder: Path) -> None:
        """Write a model folder that `from_pretrained` and vLLM load."""
        self._trainer.save_model(Path(folder))

    def save_checkpoint(self, folder: Path) -> None:
        """Write what `load_checkpoint` needs to go on exactly."""
        self._trainer.save_checkpoint(Path(folder))

    def load_checkpoint(self, folder: Path) -> None:
        """Go on from a checkpoint of the same number of ranks. Raises CheckpointError."""
        self._trainer.load_checkpoint(Path(folder))

    def _refuse_foreign_versions(self, groups: Sequence[RolloutGroup]) -> None:
        grpo = self.config.grpo
        problem = version_problem(groups, self.weight_version, grpo.max_policy_lag + grpo.sync_every - 1)
        if self._trainer.most(int(problem is not None)):
            raise PolicyLagError(problem or "another rank was given a group it must refuse")

    def _train_batches(self, groups: Sequence[ScoredGroup]) -> Iterator[TrainBatch]:
        """This rank's microbatches, then fillers up to the number that the busiest rank has."""
        trained = [scored for scored in groups if _num_tokens(scored.group)]
        sizes = [len(scored.group.prompt_token_ids) + _num_tokens(scored.group) for scored in trained]
        microbatches = in_microbatches(sizes, self.config.learner.max_tokens_per_microbatch)
        num_fillers = self._trainer.most(len(microbatches)) - len(microbatches)

        def read(indices: list[int]) -> TrainBatch:
            return self._train_batch([trained[index] for index in indices])

        yield from prepared_ahead(microbatches, read)
        for _ in range(num_fillers):
            tokens = self._trainer.filler_batch()
            zeros_T = torch.zeros_like(tokens.loss_mask_T)
            yield TrainBatch(tokens=tokens, rollout_logprobs_T=zeros_T, advantages_T=zeros_T)

    def _train_batch(self, groups: list[ScoredGroup]) -> TrainBatch:
        reader = self._trainer.reader
        answers = [
            (completion, advantage)
            for scored in groups
            for completion, advantage in zip(scored.group.completions, scored.advantages, strict=True)
        ]
        return TrainBatch(
            tokens=self._trainer.token_batch([reader.rollout_row(scored.group) for scored in groups]),
            rollout_logprobs_T=torch.tensor(
                [logprob for answer, _ in answers for logprob in answer.rollout_logprobs]
            ),
            advantages_T=torch.tensor([float(value) for answer, value in answers for _ in answer.token_ids]),
        )

    def _loss(self, batch: TrainBatch, num_step_tokens: int) -> GrpoLoss:
        policy_logprobs_T, entropy_T = self._trainer.engine.forward(batch.tokens)
        return grpo_loss(
            policy_logprobs_T=policy_logprobs_T,
            rollout_logprobs_T=batch.rollout_logprobs_T,
            advantages_T=batch.advantages_T,
            entropy_T=entropy_T,
            loss_mask_T=batch.tokens.loss_mask_T,
            num_step_tokens=num_step_tokens,
            clip_low=self.config.grpo.clip_low,
            clip_high=self.config.grpo.clip_high,
            kl_coef=self.config.grpo.kl_coef,
            ref_logprobs_T=self._reference_logprobs(batch.tokens),
        )

    def _reference_logprobs(self, tokens: TokenBatch) -> Tensor | None:
        if self._reference is None:
            return None
        with torch.no_grad():
            ref_logprobs_T, _ = self._reference(tokens)
        return ref_logprobs_T


def version_problem(groups: Sequence[RolloutGroup], now: WeightVersion, max_lag: int) -> str | None:
    """Why these groups must not train the policy `now`; None when they may.

    Every token must be of this attempt, not newer than `now`, and at most `max_lag` versions older.
    """
    for group in groups:
        for version in {span.version for answer in group.completions for span in answer.weight_versions}:
            lag = now.step - version.step
            if version.attempt != now.attempt:
                expected = f"attempt {now.attempt}: the learner was restarted since"
            elif lag < 0:
                expected = f"step {now.step} or older: this version does not exist yet"
            elif lag > max_lag:
                bound = f"grpo.max_policy_lag + grpo.sync_every - 1 = {max_lag}"
                expected = f"step {now.step - max_lag} or newer ({bound})"
            else:
                continue
            return (
                f"ticket {group.ticket} (query {group.query.query_id}, engine {group.engine_id}) has tokens "
                f"of version {version}; expected {expected}"
            )
    return None


def _num_tokens(group: RolloutGroup) -> int:
    return sum(len(completion.token_ids) for completion in group.completions)
