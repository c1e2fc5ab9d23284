"""One model under one optimizer: what the GRPO rank and the SFT rank have in common.

Knows microbatches and a function that makes a loss of each; knows nothing about rewards or targets.
"""

import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from alphadrive.config import Config
from alphadrive.processing import PromptProcessor
from alphadrive.profiling.spans import in_span, note_facts, span
from alphadrive.types import WeightsFile, WeightVersion
from learner.batch import TokenBatch, TokenRow, build_token_batch
from learner.data_metrics import DataMeter
from learner.deepspeed_setup import join_process_group
from learner.engine import TrainingEngine
from learner.export import collect_factors, collect_weights, write_model_folder, write_weights
from learner.gradient_norms import GradientNorms
from learner.lora import ADAPTER_FOLDER, check_same_adapter
from learner.patches import PatchTable
from learner.policy import Policy
from learner.rows import RowReader, in_microbatches, prepared_ahead
from learner.torch_traces import StepTraces
from learner.vision import FrozenFeatures
from learner.weight_source import WeightSource

logger = logging.getLogger(__name__)


class Movable(Protocol):
    """A microbatch: tensors that move to a device together."""

    def to(self, device: torch.device) -> Self: ...


Batch = TypeVar("Batch", bound=Movable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What one optimizer step did, the same on every rank.

    `loss` is that of all ranks, `grad_norm` before clipping (NaN when the update was left out), `is_spike`
    whether it stands out. `problem` says what was not finite and so kept the weights as they were; None
    when the update was made.
    """

    loss: float
    grad_norm: float
    is_spike: bool
    problem: str | None


class Trainer:
    """This rank's share of the model, the optimizer and the reader of its rows."""

    def __init__(
        self,
        config: Config,
        *,
        rank: int,
        world_size: int,
        meeting_point: str,
        model_folder: Path,
        dataset_folder: Path,
        temperature: float,
    ) -> None:
        self.config, self.rank, self.world_size = config, rank, world_size
        self.model_folder = Path(model_folder)
        self.step = 0
        self.traces = StepTraces(
            config.profile.torch_steps if rank == 0 else (), Path(config.run.root, config.run.name, "torch")
        )
        self.gradient_norms = GradientNorms()
        on_gpu = config.learner.gpus_per_rank > 0
        if not on_gpu:
            torch.set_num_threads(max(1, int(config.learner.cpus_per_rank)))
        _seed_everything(config.seed + rank)
        self.device = join_process_group(rank, world_size, meeting_point, on_gpu)
        note_facts(device=torch.cuda.get_device_name(self.device) if on_gpu else "cpu")
        processor = PromptProcessor(self.model_folder, config.model.max_pixels, config.data.trajectory)
        self.reader = RowReader(
            dataset_folder,
            processor,
            config.data.num_rows,
            image_cache_bytes=config.learner.image_cache_bytes,
            image_workers=config.learner.image_workers,
        )
        self.policy = self.load_policy(temperature)
        if config.learner.freeze_vision:
            self.policy.freeze_vision()
        if config.learner.lora_rank:
            self.policy.add_adapter(config.learner, config.seed)
        self._reference: Policy | None = None
        if self.policy.is_vision_frozen:
            self.policy.frozen_features = self.reader.frozen_features = self._room_for_features()
        self.meter = DataMeter(self.reader.images, [self.policy])
        if config.learner.activation_checkpointing:
            self.policy.checkpoint_activations()
        self.policy.train()
        self.engine = TrainingEngine(self.policy, config.learner, config.model.dtype, self.device)

    def load_policy(self, temperature: float) -> Policy:
        """The starting policy, on the CPU and not under DeepSpeed."""
        processor, dtype = self.reader.processor, self.config.model.dtype
        policy = Policy.from_folder(self.model_folder, dtype, processor.vision_token_ids, temperature)
        policy.patch_table = PatchTable.of(processor)
        return policy

    def keep_features_of_reference(self, reference: Policy) -> None:
        """Keep what the tower of a policy that is never trained gives; what the trained policy's gives
        serves both while that is frozen."""
        reference.frozen_features = self.policy.frozen_features or self._room_for_features()
        self.meter.policies.append(reference)
        self._reference = reference

    def _room_for_features(self) -> FrozenFeatures | None:
        learner = self.config.learner
        agree = learner.zero_stage == 3 and self.world_size > 1
        any_rank = (lambda is_due: bool(self.most(int(is_due)))) if agree else None
        return FrozenFeatures(learner.vision_cache_bytes, any_rank) if learner.vision_cache_bytes else None

    def token_batch(self, rows: list[TokenRow]) -> TokenBatch:
        """Rows as tensors, on the CPU (called from the reader thread)."""
        return build_token_batch(rows, self.policy.prompt_positions)

    def filler_batch(self) -> TokenBatch:
        """A batch for a rank without rows of its own; none of its tokens counts."""
        return self.token_batch([self.reader.filler_row()]).as_filler()

    def microbatches(
        self,
        sizes: Sequence[int],
        read: Callable[[list[int]], Batch],
        filler: Callable[[TokenBatch], Batch],
    ) -> Iterator[Batch]:
        """This rank's rows of these sizes (tokens) as microbatches, then fillers up to the number that the
        busiest rank has.

        `read` makes a microbatch of rows, in the reader thread; `filler` one of a batch whose tokens do not
        count.
        """
        microbatches = in_microbatches(sizes, self.config.learner.max_tokens_per_microbatch)
        num_fillers = self.most(len(microbatches)) - len(microbatches)
        yield from self.meter.waiting(prepared_ahead(microbatches, in_span("pack", read, "reader")))
        for _ in range(num_fillers):
            yield filler(self.filler_batch())

    def begin_step(self, rows: Iterable[int]) -> None:
        """Start reading the images of a step, in the order in which they will be needed."""
        self.meter.begin_step()
        self.reader.begin_step(rows)

    def most(self, count: int) -> int:
        """The largest of a count over the ranks."""
        return int(self.engine.all_reduce([float(count)], largest=True)[0])

    def total(self, count: int) -> int:
        """The sum of a count over the ranks."""
        return self.totals(count)[0]

    def totals(self, *counts: int) -> list[int]:
        """The sum of each count over the ranks."""
        return [int(total) for total in self.engine.all_reduce([float(count) for count in counts])]

    def from_ranks(self, count: int) -> list[int]:
        """The count of every rank, in their order."""
        return self.totals(*(count if rank == self.rank else 0 for rank in range(self.world_size)))

    def slowest(self, seconds: float) -> float:
        """The largest time of the ranks."""
        return self.engine.all_reduce([seconds], largest=True)[0]

    def accumulate(self, microbatches: Iterable[Batch], loss_of: Callable[[Batch], Tensor]) -> float:
        """Forward and backward of this rank's microbatches. Gives this rank's share of the loss.

        Every rank must bring the same number of microbatches (see `filler_batch`).
        """
        total = torch.zeros((), device=self.device)
        for microbatch in microbatches:
            loss = loss_of(microbatch.to(self.device))
            self.engine.backward(loss)
            total += loss.detach()
        return float(total)

    def apply(self, local_loss: float, learning_rate: float) -> Update:
        """One optimizer step; left out, on every rank, when a loss or the gradient is not finite on any.

        `step` is counted by the caller.
        """
        loss = self.engine.all_reduce([local_loss])[0]
        with span("step"):
            outcome = self.engine.step(learning_rate)
        if outcome.was_applied:
            is_spike = self.gradient_norms.add(outcome.grad_norm)
            return Update(loss=loss, grad_norm=outcome.grad_norm, is_spike=is_spike, problem=None)
        problem = "the gradient is not finite" if np.isfinite(loss) else f"the loss is {loss}"
        return Update(loss=loss, grad_norm=outcome.grad_norm, is_spike=False, problem=problem)

    def export_weights(self, path: Path, version: WeightVersion) -> WeightsFile | None:
        """Write the weights for the engines; rank 0 returns what it wrote, the others None."""
        started = time.perf_counter()
        weights = collect_weights(self.engine, self.policy, keep=self.rank == 0)
        if self.rank:
            return None
        written = write_weights(weights, path, version)
        seconds = time.perf_counter() - started
        logger.info("weights %s: %d bytes in %.3f s", version, written.num_bytes, seconds)
        return written

    @cached_property
    def weight_source(self) -> WeightSource:
        """The weights for the engines, a bucket at a time. Raises as `WeightSource`."""
        return WeightSource(self.engine, self.policy)

    def save_model(self, folder: Path) -> None:
        """Write a folder that `from_pretrained` and vLLM load (rank 0 writes). Raises
        CheckpointWriteError."""
        weights = collect_weights(self.engine, self.policy, keep=self.rank == 0)
        self.engine.write(
            lambda: write_model_folder(weights, self.policy, self.model_folder, folder), is_mine=not self.rank
        )

    def save_checkpoint(self, folder: Path) -> None:
        """Write optimizer, trained weights, step and random states of all ranks, and an adapter in peft's
        own format too. Raises CheckpointWriteError, on every rank, when one of them could not write."""
        self.engine.save(folder, {"step": self.step, "gradient_norms": self.gradient_norms.state()})
        adapter = self.policy.adapter
        if adapter:
            factors = collect_factors(self.engine, keep=self.rank == 0)
            self.engine.write(lambda: adapter.save(factors, folder / ADAPTER_FOLDER), is_mine=not self.rank)
        self.engine.write(lambda: torch.save(_random_states(), folder / f"random_rank{self.rank}.pt"))

    def load_checkpoint(self, folder: Path) -> None:
        """Go on from what `save_checkpoint` wrote, on any number of ranks. Raises CheckpointError.

        Ranks that the checkpoint does not know keep the random state of their seed.
        """
        check_same_adapter(folder, self.config.learner)
        state = self.engine.load(folder)
        self.step = int(state["step"])
        self.gradient_norms = GradientNorms(state["gradient_norms"])
        if self.policy.frozen_features is not None:
            self.policy.frozen_features.forget()
            if self._reference is not None:
                # The checkpoint's tower need not be the one that the run started from.
                self._reference.frozen_features = self._room_for_features()
                self.reader.frozen_features = None
        self.restore_random_states(folder)

    def restore_random_states(self, folder: Path) -> None:
        """Take this rank's random states from a checkpoint; keeps its own where that has none for it."""
        states = folder / f"random_rank{self.rank}.pt"
        if states.is_file():
            _restore_random_states(torch.load(states, weights_only=True))

    def close(self) -> None:
        """End the background threads."""
        self.reader.close()


def _seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _random_states() -> dict[str, object]:
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _restore_random_states(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    kind, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])
