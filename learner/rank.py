"""One rank of the GRPO learner. `cluster` runs one a process and calls every method on all together.

    step(this rank's groups): check versions -> grpo.epochs x grpo.minibatches times:
                                                    microbatches: forward, loss, backward -> optimizer step

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
from alphadrive.profiling.spans import is_recording, span
from alphadrive.types import RolloutGroup, ScoredGroup, StepResult, WeightsFile, WeightVersion
from alphadrive.weight_layout import WeightLayout
from learner.admission import completion_problem, version_problem
from learner.batch import TokenBatch, TrainBatch
from learner.flops import step_flops
from learner.group_batches import TrainGroup, group_batches, start_logprobs
from learner.minibatches import dealt_groups, shuffled_minibatches
from learner.objective import LossInputs, grpo_loss, loss_settings, step_normaliser
from learner.reference import BaseReference, FrozenReference
from learner.schedule import warmup_then_constant
from learner.step_metrics import LossStatistics, group_metrics, mean_of_updates
from learner.trainer import Trainer, Update


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
        meeting_point: str,
        model_folder: Path,
        dataset_folder: Path,
        attempt: int = 0,
    ) -> None:
        self.config, self.attempt = config, attempt
        self._settings = loss_settings(config.grpo)
        self._trainer = Trainer(
            config,
            rank=rank,
            world_size=world_size,
            meeting_point=meeting_point,
            model_folder=model_folder,
            dataset_folder=dataset_folder,
            temperature=config.grpo.temperature,
        )
        self._reference: FrozenReference | BaseReference | None = None
        adapter = self._trainer.policy.adapter
        if config.grpo.kl_coef and adapter is not None:
            self._reference = BaseReference(self._trainer.engine, adapter)
        elif config.grpo.kl_coef:
            starting_policy = self._trainer.load_policy(config.grpo.temperature)
            self._trainer.keep_features_of_reference(starting_policy)
            self._reference = FrozenReference(starting_policy, config, self._trainer.device)

    @property
    def weight_version(self) -> WeightVersion:
        """The version of the policy as it is now."""
        return WeightVersion(self.attempt, self._trainer.step)

    def step(self, groups: Sequence[ScoredGroup]) -> StepResult:
        """One step on the groups of all ranks; `groups` are this rank's (may be none), dealt out in turn.

        `grpo.epochs` times `grpo.minibatches` optimizer steps make one new weight version; one whose loss
        or gradient is not finite is left out, and the result's `problem` says so. Raises, with the weights
        untouched: PolicyLagError for a group of another attempt or outside the lag bound, LearnerError for a
        damaged completion or when no rank has a completion token.
        """
        step = self._trainer.step + 1
        with self._trainer.traces.of(step), span("train", step=step) as training:
            result = self._step(groups)
            if is_recording():
                training.note(**self._work(groups))
        return result

    def _work(self, groups: Sequence[ScoredGroup]) -> dict[str, float]:
        """The arithmetic of a step on this rank's groups, where it is known: see `learner.flops`."""
        policy, processor = self._trainer.policy, self._trainer.reader.processor
        if policy.is_vision_frozen or policy.adapter is not None:
            return {}
        drawn = [scored.group for scored in groups]
        flops = step_flops(policy.model.config, drawn, processor.image_token_id)
        return {} if flops is None else {"flops": flops * self.config.grpo.epochs}

    def _step(self, groups: Sequence[ScoredGroup]) -> StepResult:
        started = time.perf_counter()
        trainer, grpo, step = self._trainer, self.config.grpo, self._trainer.step + 1
        trainer.begin_step([scored.group.query.row for scored in groups])
        self._refuse_unfit([scored.group for scored in groups])
        own = [TrainGroup(scored) for scored in groups]
        timings = {}
        if grpo.old_policy == "learner" and grpo.epochs * grpo.minibatches > 1:
            own = start_logprobs(trainer, own)
            timings[names.OLD_LOG_PROB_S] = trainer.slowest(time.perf_counter() - started)
        learning_rate = warmup_then_constant(step, grpo.learning_rate, grpo.warmup_steps)
        updates = [
            update
            for minibatch in self._minibatches(own, step)
            if (update := self._update(minibatch, learning_rate)) is not None
        ]
        if not updates:
            raise LearnerError(f"step {step}: no completion tokens on any rank; nothing to train on")
        trainer.step = step
        problems = [update.problem for update, _ in updates if update.problem is not None]
        # What was not finite would hide the figures of the other optimizer steps.
        made = [metrics for update, metrics in updates if update.problem is None]
        metrics = mean_of_updates(made or [metrics for _, metrics in updates]) | timings
        metrics |= {
            names.GRAD_SPIKES: float(sum(update.is_spike for update, _ in updates)),
            names.NONFINITE_UPDATES: float(len(problems)),
            names.LEARNING_RATE: learning_rate,
        }
        metrics |= group_metrics(trainer.engine, groups, step - 1, time.perf_counter() - started)
        metrics |= trainer.meter.metrics(trainer.engine, len(groups), metrics[names.UPDATE_S])
        return StepResult(
            step=step,
            weight_version=self.weight_version,
            metrics=metrics,
            problem=problems[0] if problems else None,
            was_updated=bool(made),
        )

    def expect(self, rows: Sequence[int]) -> None:
        """Read the images of dataset rows that this rank will train on soon, in the background."""
        self._trainer.reader.expect(rows)

    def score(self, groups: Sequence[RolloutGroup]) -> list[list[list[float]]]:
        """The policy's log-probability of every token, [group][completion][token], as the engines give
        them: at `grpo.temperature`, over the tokens that may be sampled. Changes nothing.

        Every rank must be called; each scores what it is given.
        """
        scored: list[list[list[float]]] = []
        trainer = self._trainer
        # Asked before: under ZeRO-3 a forward has collectives of its own, which no other may fall between.
        num_fillers = trainer.most(len(groups)) - len(groups)
        with torch.no_grad():
            for group in groups:
                batch = trainer.token_batch([trainer.reader.rollout_row(group)]).to(trainer.device)
                logprobs_T, _ = trainer.engine.forward(batch)
                remaining = iter(logprobs_T.tolist())
                scored.append([list(islice(remaining, len(c.token_ids))) for c in group.completions])
            for _ in range(num_fillers):
                trainer.engine.forward(trainer.filler_batch().to(trainer.device))
        return scored

    def export_weights(self, path: Path) -> WeightsFile | None:
        """Write the weights as one safetensors file, complete under its name at once.

        Every rank takes part; rank 0 returns what it wrote, the others None.
        """
        return self._trainer.export_weights(Path(path), self.weight_version)

    def weight_layout(self, bucket_bytes: int) -> WeightLayout:
        """The tensors of the weights as they are now, in buckets of this size; the same on every rank.

        Raises ModelError for a model that cannot be sent tensor by tensor.
        """
        return WeightLayout(self.weight_version, self._trainer.weight_source.tensors, bucket_bytes)

    def weight_buckets(self, layout: WeightLayout) -> Iterator[list[Tensor]]:
        """The tensors of each bucket, on rank 0, good until the next is asked for; empty lists on the others.

        Every rank must take every bucket.
        """
        return self._trainer.weight_source.buckets(layout, keep=not self._trainer.rank)

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which sends weights."""
        return not self._trainer.rank

    def save_model(self, folder: Path) -> None:
        """Write a model folder that `from_pretrained` and vLLM load."""
        self._trainer.save_model(Path(folder))

    def save_checkpoint(self, folder: Path) -> None:
        """Write what `load_checkpoint` needs to go on exactly."""
        self._trainer.save_checkpoint(Path(folder))

    def load_checkpoint(self, folder: Path) -> None:
        """Go on from a checkpoint of any number of ranks. Raises CheckpointError."""
        self._trainer.load_checkpoint(Path(folder))

    def restore_random_states(self, folder: Path) -> None:
        """Take the random states of this rank from a checkpoint; `load_checkpoint` does that, too."""
        self._trainer.restore_random_states(Path(folder))

    def close(self) -> None:
        """End the background threads."""
        self._trainer.close()

    def _refuse_unfit(self, groups: Sequence[RolloutGroup]) -> None:
        grpo = self.config.grpo
        lag = version_problem(groups, self.weight_version, grpo.max_policy_lag + grpo.sync_every - 1)
        damage = completion_problem(groups)
        has_lag, has_damage = self._trainer.engine.all_reduce([bool(lag), bool(damage)], largest=True)
        if has_lag:
            raise PolicyLagError(lag or "another rank was given a group it must refuse")
        if has_damage:
            raise LearnerError(damage or "another rank was given a completion that is damaged")

    def _minibatches(self, own: Sequence[TrainGroup], step: int) -> Iterator[list[TrainGroup]]:
        """This rank's groups of each optimizer step of a step."""
        grpo, rank = self.config.grpo, self._trainer.rank
        dealt = dealt_groups(self._trainer.from_ranks(len(own)))
        for epoch in range(grpo.epochs):
            seed = (self.config.seed % 2**32, step, epoch)
            for numbers in shuffled_minibatches(len(dealt), grpo.minibatches, seed):
                places = [dealt[number] for number in numbers]
                yield [own[place] for owner, place in places if owner == rank]

    def _update(
        self, groups: Sequence[TrainGroup], learning_rate: float
    ) -> tuple[Update, dict[str, float]] | None:
        """One optimizer step on a minibatch, and its metrics. None, and no step, where no rank has a token
        of it."""
        trainer = self._trainer
        num_tokens, num_completions = trainer.totals(
            sum(group.num_completion_tokens for group in groups),
            sum(len(group.scored.group.completions) for group in groups),
        )
        if not num_tokens:
            return None
        divisor = step_normaliser(self._settings, num_tokens, num_completions)
        statistics = LossStatistics()

        def loss_of(batch: TrainBatch) -> Tensor:
            loss = grpo_loss(self._settings, self._loss_inputs(batch), divisor)
            statistics.add(loss)
            return loss.loss

        local_loss = trainer.accumulate(group_batches(trainer, groups), loss_of)
        update = trainer.apply(local_loss, learning_rate)
        return update, {
            names.LOSS: update.loss,
            names.GRAD_NORM: update.grad_norm,
            **statistics.reduced(trainer.engine, num_tokens, divisor),
        }

    def _loss_inputs(self, batch: TrainBatch) -> LossInputs:
        policy_logprobs_T, entropy_T = self._trainer.engine.forward(batch.tokens)
        return LossInputs(
            policy_logprobs_T=policy_logprobs_T,
            rollout_logprobs_T=batch.rollout_logprobs_T,
            advantages_T=batch.advantages_T,
            entropy_T=entropy_T,
            loss_mask_T=batch.tokens.loss_mask_T,
            sequence_T=batch.tokens.sequence_T,
            num_sequences=batch.tokens.num_sequences,
            old_logprobs_T=batch.old_logprobs_T,
            ref_logprobs_T=self._reference_logprobs(batch.tokens),
        )

    def _reference_logprobs(self, tokens: TokenBatch) -> Tensor | None:
        return None if self._reference is None else self._reference.logprobs(tokens)
