"""One rank of supervised fine-tuning: reasoning and answer, loss on the completion only.

The same packs, policy and engine as GRPO, with one completion a prompt. The loss is a mean over the target
tokens of the whole batch, on all ranks.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from alphadrive import metric_names as names
from alphadrive.config import Config
from alphadrive.profiling.spans import span
from alphadrive.types import StepResult, WeightsFile, WeightVersion
from learner.batch import TokenBatch
from learner.losses import sft_loss
from learner.rows import SftTarget, check_reasoning
from learner.schedule import warmup_then_cosine
from learner.trainer import Trainer


class SftRank:
    """This process's share of supervised fine-tuning; every rank calls every method together.

    Raises DataError naming the first row without reasoning, InputError for a bad model.
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
        self._trainer = Trainer(
            config,
            rank=rank,
            world_size=world_size,
            meeting_point=meeting_point,
            model_folder=model_folder,
            dataset_folder=dataset_folder,
            temperature=1.0,
        )
        check_reasoning(self._trainer.reader.dataset)

    @property
    def weight_version(self) -> WeightVersion:
        """The version of the policy as it is now."""
        return WeightVersion(self.attempt, self._trainer.step)

    def step(self, rows: Sequence[int]) -> StepResult:
        """One optimizer step on the dataset rows of all ranks; `rows` are this rank's.

        A loss or gradient that is not finite leaves the weights as they are; the result says so as its
        `problem`.
        """
        step = self._trainer.step + 1
        with self._trainer.traces.of(step), span("train", step=step):
            return self._step(rows)

    def _step(self, rows: Sequence[int]) -> StepResult:
        started = time.perf_counter()
        trainer, sft, step = self._trainer, self.config.sft, self._trainer.step + 1
        trainer.begin_step(rows)
        targets = [trainer.reader.target(row, sft.target) for row in rows]
        num_step_tokens = trainer.total(sum(len(target.completion_ids) for target in targets))
        num_samples = trainer.total(len(targets))
        entropies: list[Tensor] = []

        def loss_of(batch: TokenBatch) -> Tensor:
            policy_logprobs_T, entropy_T = trainer.engine.forward(batch)
            entropies.append((entropy_T * batch.loss_mask_T).sum())
            return sft_loss(policy_logprobs_T, batch.loss_mask_T, num_step_tokens)

        local_loss = trainer.accumulate(self._batches(targets), loss_of)
        learning_rate = warmup_then_cosine(step, sft.learning_rate, sft.steps, sft.warmup_ratio)
        update = trainer.apply(local_loss, learning_rate)
        trainer.step = step
        seconds = trainer.engine.all_reduce([time.perf_counter() - started], largest=True)[0]
        entropy_sum = trainer.engine.all_reduce([float(sum(entropies))])[0]
        metrics = {
            names.SFT_LOSS: update.loss,
            names.SFT_ENTROPY: entropy_sum / num_step_tokens,
            names.SFT_GRAD_NORM: update.grad_norm,
            names.SFT_GRAD_SPIKES: float(update.is_spike),
            names.SFT_NONFINITE_UPDATES: float(update.problem is not None),
            names.SFT_LEARNING_RATE: learning_rate,
            names.RESPONSE_LENGTH_MEAN: num_step_tokens / num_samples,
            names.SAMPLES_PER_S: num_samples / seconds,
            names.UPDATE_S: seconds,
        }
        metrics |= trainer.meter.metrics(trainer.engine, len(targets), seconds)
        return StepResult(
            step=step,
            weight_version=self.weight_version,
            metrics=metrics,
            problem=update.problem,
            was_updated=update.problem is None,
        )

    def expect(self, rows: Sequence[int]) -> None:
        """Read the images of dataset rows that this rank will train on soon, in the background."""
        self._trainer.reader.expect(rows)

    def _batches(self, targets: Sequence[SftTarget]) -> Iterator[TokenBatch]:
        trainer = self._trainer

        def read(indices: list[int]) -> TokenBatch:
            return trainer.token_batch([trainer.reader.target_row(targets[index]) for index in indices])

        return trainer.microbatches([target.num_tokens for target in targets], read, lambda filler: filler)

    def export_weights(self, path: Path) -> WeightsFile | None:
        """Write the weights as one safetensors file; rank 0 returns what it wrote, the others None."""
        return self._trainer.export_weights(Path(path), self.weight_version)

    def save_model(self, folder: Path) -> None:
        """Write a model folder that `from_pretrained` and vLLM load."""
        self._trainer.save_model(Path(folder))

    def save_checkpoint(self, folder: Path) -> None:
        """Write what `load_checkpoint` needs to go on exactly."""
        self._trainer.save_checkpoint(Path(folder))

    def load_checkpoint(self, folder: Path) -> None:
        """Go on from a checkpoint of any number of ranks. Raises CheckpointError."""
        self._trainer.load_checkpoint(Path(folder))

    def close(self) -> None:
        """End the background threads."""
        self._trainer.close()
