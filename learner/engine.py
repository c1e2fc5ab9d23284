"""DeepSpeed behind a narrow door: one process group, one engine, a variable number of microbatches a step.

    for every microbatch:  loss = engine.forward(...) ... ; engine.backward(loss)
    then once:             engine.step(learning_rate) -> gradient norm, whether the update was made

Every rank must run the same number of forwards under ZeRO-3 (each is a collective there), so callers
agree on it first. The optimizer is torch's AdamW: DeepSpeed's own compile a kernel at first use.
"""

import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from alphadrive.config import LearnerConfig
from alphadrive.errors import CheckpointError, CheckpointWriteError, NonFiniteError
from alphadrive.manifest import check_owner
from alphadrive.profiling.spans import is_recording, span
from learner.deepspeed_setup import deepspeed_config, import_deepspeed
from learner.resharding import LearnerShape, make_universal, needs_conversion

CHECKPOINT_TAG = "learner"
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)
"""What a full disk is to those who write: torch raises RuntimeError."""
_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What an optimizer step did: the gradient's norm before clipping, NaN when the update was not made."""

    grad_norm: float
    was_applied: bool


class TrainingEngine:
    """A module under DeepSpeed. Every rank calls every method together.

    Losses passed to `backward` are this rank's share of one global sum: gradients are summed over
    ranks, not averaged.
    """

    def __init__(self, module: nn.Module, learner: LearnerConfig, dtype: str, device: torch.device) -> None:
        self.zero_stage = learner.zero_stage
        self.device = device
        self._dtype = dtype
        self.world_size = torch.distributed.get_world_size()
        self._max_grad_norm = learner.max_grad_norm
        optimizer = torch.optim.AdamW(
            _parameter_groups(module, learner.weight_decay),
            lr=0.0,
            betas=(0.9, learner.adam_beta2),
            fused=device.type == "cuda",
        )
        # ZeRO stage 0 in float32 has no gradient norm and no overflow check of its own.
        self._checks_itself = not learner.zero_stage and dtype == "float32"
        self._hooked_grad_norm: float | None = None
        if self._checks_itself:
            optimizer.register_step_pre_hook(self._clip)
        self._frozen_sum = _bit_sum(each for each in module.parameters() if not each.requires_grad)
        self._engine, *_ = import_deepspeed().initialize(
            model=module.to(device),
            optimizer=optimizer,
            config=deepspeed_config(learner, dtype),
            dist_init_required=False,
        )
        self.module = module

    def forward(self, *args: Any) -> Any:
        """The module's forward."""
        with span("forward"):
            output = self._engine(*args)
            self._finish_on_gpu()
        return output

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss` to this step's. A loss that is not finite makes the step's gradient so,
        too: no rank will apply it."""
        finite_or_nan = torch.where(torch.isfinite(loss.detach()), 1.0, math.nan)
        with span("backward"):
            self._engine.backward(loss * (finite_or_nan * self.world_size), scale_wrt_gas=False)
            self._finish_on_gpu()

    def _finish_on_gpu(self) -> None:
        """Where a run is profiled, wait for the GPU, which works on its own: a span would end too early."""
        if self.device.type == "cuda" and is_recording():
            torch.cuda.synchronize(self.device)

    def step(self, learning_rate: float) -> StepOutcome:
        """Clip, apply the optimizer, forget the gradients.

        The update is not made, on any rank, when the gradient is not finite on one of them. Raises
        NonFiniteError when it was made nevertheless: the weights are then damaged.
        """
        if self._checks_itself and self._has_non_finite_gradient():
            self._engine.zero_grad()
            return StepOutcome(math.nan, was_applied=False)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        if not self._engine.was_step_applied():
            return StepOutcome(math.nan, was_applied=False)
        grad_norm = self._hooked_grad_norm
        if grad_norm is None:
            grad_norm = float(self._engine.get_global_grad_norm())
        if not math.isfinite(grad_norm):
            raise NonFiniteError(
                f"DeepSpeed applied an update whose gradient has the norm {grad_norm}: the weights are "
                "damaged; go on from the last checkpoint with --resume"
            )
        return StepOutcome(grad_norm, was_applied=True)

    def _has_non_finite_gradient(self) -> bool:
        gradients = [parameter.grad for parameter in self.module.parameters() if parameter.grad is not None]
        is_finite = all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
        return bool(self.all_reduce([float(not is_finite)], largest=True)[0])

    def _clip(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        """Runs just before the optimizer, when the gradients are summed over the ranks."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._hooked_grad_norm = float(torch.nn.utils.clip_grad_norm_(parameters, self._max_grad_norm))

    def for_each_parameter(
        self, visit: Callable[[str, Tensor], None], wanted: Callable[[str], bool] = lambda name: True
    ) -> None:
        """Call `visit(name, whole tensor)` for each parameter of a wanted name, gathered where ZeRO-3 has
        split it.

        The tensor is only valid during the call. Shared parameters come once, under their first name.
        """
        gathered_parameters = import_deepspeed().zero.GatheredParameters
        for name, parameter in self.module.named_parameters():
            if not wanted(name):
                continue
            with gathered_parameters([parameter], enabled=self.zero_stage == 3):
                visit(name, parameter.detach())

    def gathered(self, batches: Iterable[Sequence[str]]) -> Iterator[dict[str, Tensor]]:
        """The whole tensors of each batch of parameter names in turn, gathered together where ZeRO-3 has
        split them; valid until the next batch is asked for. Every rank must take every batch."""
        gathered_parameters = import_deepspeed().zero.GatheredParameters
        parameters = dict(self.module.named_parameters())
        for names in batches:
            batch = {name: parameters[name] for name in names}
            with gathered_parameters(list(batch.values()), enabled=self.zero_stage == 3):
                yield {name: parameter.detach() for name, parameter in batch.items()}

    def all_reduce(self, values: list[float], *, largest: bool = False) -> list[float]:
        """Sums (or maxima) over all ranks, in double precision."""
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        operation = torch.distributed.ReduceOp.MAX if largest else torch.distributed.ReduceOp.SUM
        torch.distributed.all_reduce(tensor, op=operation)
        return tensor.tolist()

    @property
    def shape(self) -> LearnerShape:
        """What a checkpoint of this learner must be loaded into."""
        parameters = dict(self.module.named_parameters())
        return LearnerShape(
            num_ranks=self.world_size,
            zero_stage=self.zero_stage,
            dtype=self._dtype,
            parameters={name: list(_whole_shape(each)) for name, each in parameters.items()},
            frozen=[name for name, each in parameters.items() if not each.requires_grad],
            frozen_sum=self._frozen_sum,
        )

    def save(self, folder: Path, client_state: dict[str, Any]) -> None:
        """Write trained weights, optimizer and `client_state` of all ranks into `folder`.

        Raises CheckpointWriteError, on every rank, when one of them could not write: DeepSpeed has the ranks
        wait for each other, so its writes must not raise.
        """
        is_first = torch.distributed.get_rank() == 0
        self.write(lambda: (folder / CHECKPOINT_TAG).mkdir(parents=True, exist_ok=True))
        writer = self._engine.checkpoint_engine
        failures: list[Exception] = []

        def save_or_note(state_dict: dict[str, Any], path: str) -> None:
            try:
                type(writer).save(writer, state_dict, path)
            except WRITE_ERRORS as error:
                failures.append(error)

        writer.save = save_or_note
        # Scripts that DeepSpeed puts beside its files, by calls that may raise on one rank alone.
        self._engine._copy_recovery_script = lambda path: None
        try:
            self._engine.save_checkpoint(
                str(folder),
                tag=CHECKPOINT_TAG,
                client_state=client_state,
                save_latest=False,
                exclude_frozen_parameters=True,
            )
        finally:
            del writer.save, self._engine._copy_recovery_script
        self._agree(failures[0] if failures else None)
        self.write(lambda: self.shape.write(folder), is_mine=is_first)

    def write(self, work: Callable[[], object], *, is_mine: bool = True) -> None:
        """Have the ranks whose turn it is write something. Raises CheckpointWriteError, on every rank, when
        one of them could not."""
        failure: Exception | None = None
        try:
            if is_mine:
                work()
        except WRITE_ERRORS as error:
            failure = error
        self._agree(failure)

    def _agree(self, failure: Exception | None) -> None:
        (has_failed,) = self.all_reduce([float(failure is not None)], largest=True)
        if failure is not None:
            raise CheckpointWriteError(f"{type(failure).__name__}: {failure}") from failure
        if has_failed:
            raise CheckpointWriteError("another rank could not write its share")

    def load(self, folder: Path) -> dict[str, Any]:
        """Read what `save` wrote, by any number of ranks; gives its `client_state`. Frozen weights stay what
        they are. Raises CheckpointError, before a weight changes when it is another model's.

        The files are pickles (DeepSpeed's format): load only folders whose manifest was verified. Those that
        somebody else may have written are refused.
        """
        if not (folder / CHECKPOINT_TAG).is_dir():
            raise CheckpointError(
                f"{folder}: no folder {CHECKPOINT_TAG!r} in it; it is no learner checkpoint"
            )
        check_owner(folder)
        if not needs_conversion(LearnerShape.read(folder), self.shape, folder):
            return self._load(folder)
        # The next checkpoint removes what a crash leaves here, see `CheckpointStore.begin`.
        universal = folder.with_name(f".tmp-universal-{folder.name}")
        self._on_rank_0(lambda: _convert(folder, universal))
        self._engine._config.load_universal_checkpoint = True
        try:
            client_state = self._load(universal)
        finally:
            self._engine._config.load_universal_checkpoint = False
        torch.distributed.barrier()
        self._on_rank_0(lambda: shutil.rmtree(universal))
        return client_state

    def _load(self, folder: Path) -> dict[str, Any]:
        optimizer = self._engine.optimizer
        groups = optimizer.param_groups
        settings = [{key: value for key, value in group.items() if key != "params"} for group in groups]
        has_all_weights = all(parameter.requires_grad for parameter in self.module.parameters())
        path, client_state = self._engine.load_checkpoint(
            str(folder), tag=CHECKPOINT_TAG, load_module_strict=has_all_weights
        )
        if path is None:
            raise CheckpointError(f"{folder}: DeepSpeed found no complete checkpoint for this rank in it")
        # This run's configuration counts, and DeepSpeed gives every group the first one's under ZeRO-3.
        for group, own in zip(optimizer.param_groups, settings, strict=True):
            group.update(own)
        if self.zero_stage in (1, 2):
            optimizer.clip_grad = self._max_grad_norm
        # From a universal checkpoint all groups share one step counter, and each would advance it.
        for state in optimizer.state.values():
            if isinstance(state.get("step"), Tensor):
                state["step"] = state["step"].clone()
        return client_state

    def _on_rank_0(self, work: Callable[[], None]) -> None:
        """Have rank 0 do what may take longer than a collective waits; the others wait. Raises what it
        raised, and CheckpointError on the other ranks."""
        is_mine = torch.distributed.get_rank() == 0
        with ThreadPoolExecutor(max_workers=1) as worker:
            future = worker.submit(work if is_mine else lambda: None)
            is_running = has_failed = True
            while is_running:
                is_done = future.done()
                failure = future.exception() if is_done else None
                running, failed = self.all_reduce(
                    [float(not is_done), float(failure is not None)], largest=True
                )
                is_running, has_failed = bool(running), bool(failed)
                time.sleep(_POLL_S if is_running else 0)
        future.result()
        if has_failed:
            raise CheckpointError("rank 0 could not prepare the checkpoint; its own error says why")


def _bit_sum(weights: Iterable[Tensor]) -> int:
    """A number that tells one set of weights from another: the sum of their bit patterns as integers."""
    patterns = {2: torch.int16, 4: torch.int32}
    return sum(int(weight.view(patterns[weight.itemsize]).sum(dtype=torch.int64)) for weight in weights)


def _whole_shape(parameter: nn.Parameter) -> torch.Size:
    """The shape of a parameter that ZeRO-3 may have split."""
    return getattr(parameter, "ds_shape", parameter.shape)


def _convert(folder: Path, universal: Path) -> None:
    shutil.rmtree(universal, ignore_errors=True)
    make_universal(folder / CHECKPOINT_TAG, universal / CHECKPOINT_TAG)


def _parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trained parameters; matrices decay, biases and norms do not."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.dim() >= 2]
    others = [parameter for parameter in trained if parameter.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
