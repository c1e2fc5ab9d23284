"""DeepSpeed behind a narrow door: one process group, one engine, a variable number of microbatches a step.

    for every microbatch:  loss = engine.forward(...) ... ; engine.backward(loss)
    then once:             engine.step(learning_rate) -> gradient norm

Every rank must run the same number of forwards under ZeRO-3 (each is a collective there), so callers
agree on it first. The optimizer is torch's AdamW: DeepSpeed's own compile a kernel at first use.
"""

import contextlib
import logging
import math
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alphadrive.config import LearnerConfig
from alphadrive.errors import CheckpointError, LearnerError, NonFiniteError

CHECKPOINT_TAG = "learner"
COLLECTIVE_TIMEOUT = timedelta(minutes=10)


def join_process_group(
    rank: int, world_size: int, master_addr: str, master_port: int, on_gpu: bool
) -> torch.device:
    """Join the learner's process group (gloo on CPU, nccl on GPU) and give this rank's device.

    Uses the group that exists where one process holds several learners one after another. Raises
    LearnerError when that group is of another shape.
    """
    local_rank = rank % max(1, torch.cuda.device_count()) if on_gpu else 0
    os.environ.update(
        DS_ACCELERATOR="cuda" if on_gpu else "cpu",
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK=str(local_rank),
        LOCAL_SIZE=str(world_size),
        MASTER_ADDR=master_addr,
        MASTER_PORT=str(master_port),
    )
    _import_deepspeed().init_distributed(
        "nccl" if on_gpu else "gloo", auto_mpi_discovery=False, verbose=False, timeout=COLLECTIVE_TIMEOUT
    )
    joined = (torch.distributed.get_rank(), torch.distributed.get_world_size())
    if joined != (rank, world_size):
        raise LearnerError(
            f"this process is rank {joined[0]} of {joined[1]} already, asked to be rank {rank} of "
            f"{world_size}; start each learner shape in its own process"
        )
    if on_gpu:
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    return torch.device("cpu")


def _import_deepspeed() -> Any:
    import deepspeed
    import deepspeed.ops
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    # On CPU, DeepSpeed compiles a shared-memory op for over a minute when the group starts; gloo needs none.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def deepspeed_config(learner: LearnerConfig, dtype: str) -> dict[str, Any]:
    """The DeepSpeed configuration of a learner. bfloat16 keeps float32 master weights and moments."""
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "zero_allow_untested_optimizer": True,
        # Stage 0 clips in a hook of its own, see `TrainingEngine`.
        "gradient_clipping": learner.max_grad_norm if learner.zero_stage else 0.0,
        "zero_optimization": {"stage": learner.zero_stage},
        "steps_per_print": None,
    }
    if learner.zero_stage < 2:
        config["zero_optimization"]["overlap_comm"] = False
    if dtype == "bfloat16":
        config["bf16"] = {"enabled": True, "check_grad_overflow": True}
    return config


class TrainingEngine:
    """A module under DeepSpeed. Every rank calls every method together.

    Losses passed to `backward` are this rank's share of one global sum: gradients are summed over
    ranks, not averaged.
    """

    def __init__(self, module: nn.Module, learner: LearnerConfig, dtype: str, device: torch.device) -> None:
        self.zero_stage = learner.zero_stage
        self.device = device
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
        self._engine, *_ = _import_deepspeed().initialize(
            model=module.to(device),
            optimizer=optimizer,
            config=deepspeed_config(learner, dtype),
            dist_init_required=False,
        )
        self.module = module

    def forward(self, *args: Any) -> Any:
        """The module's forward."""
        return self._engine(*args)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss` to this step's."""
        self._engine.backward(loss * self.world_size, scale_wrt_gas=False)

    def step(self, learning_rate: float) -> float:
        """Clip, apply the optimizer, forget the gradients. Returns the norm before clipping.

        Raises NonFiniteError, with the weights untouched, when the gradient is not finite on any rank.
        """
        if self._checks_itself:
            self._refuse_non_finite_gradients()
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        grad_norm = self._hooked_grad_norm
        if grad_norm is None:
            grad_norm = float(self._engine.get_global_grad_norm())
        if not self._engine.was_step_applied() or not math.isfinite(grad_norm):
            raise _non_finite(grad_norm)
        return grad_norm

    def discard(self) -> None:
        """Forget the gradients of this step; the weights stay as they are."""
        with contextlib.suppress(NonFiniteError):
            self.step(learning_rate=0.0)

    def _refuse_non_finite_gradients(self) -> None:
        gradients = [parameter.grad for parameter in self.module.parameters() if parameter.grad is not None]
        is_finite = all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
        if self.all_reduce([float(not is_finite)], largest=True)[0]:
            self._engine.zero_grad()
            raise _non_finite(math.nan)

    def _clip(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        """Runs just before the optimizer, when the gradients are summed over the ranks."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._hooked_grad_norm = float(torch.nn.utils.clip_grad_norm_(parameters, self._max_grad_norm))

    def for_each_parameter(self, visit: Callable[[str, Tensor], None]) -> None:
        """Call `visit(name, whole tensor)` for each parameter, gathered where ZeRO-3 has split it.

        The tensor is only valid during the call. Shared parameters come once, under their first name.
        """
        gathered_parameters = _import_deepspeed().zero.GatheredParameters
        for name, parameter in self.module.named_parameters():
            with gathered_parameters([parameter], enabled=self.zero_stage == 3):
                visit(name, parameter.detach())

    def all_reduce(self, values: list[float], *, largest: bool = False) -> list[float]:
        """Sums (or maxima) over all ranks, in double precision."""
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        operation = torch.distributed.ReduceOp.MAX if largest else torch.distributed.ReduceOp.SUM
        torch.distributed.all_reduce(tensor, op=operation)
        return tensor.tolist()

    def save(self, folder: Path, client_state: dict[str, Any]) -> None:
        """Write weights, optimizer and `client_state` of all ranks into `folder`."""
        self._engine.save_checkpoint(str(folder), tag=CHECKPOINT_TAG, client_state=client_state)

    def load(self, folder: Path) -> dict[str, Any]:
        """Read what `save` wrote; gives its `client_state`. Raises CheckpointError.

        The files are pickles (DeepSpeed's format): load only folders whose manifest was verified.
        """
        if not (folder / CHECKPOINT_TAG).is_dir():
            raise CheckpointError(
                f"{folder}: no folder {CHECKPOINT_TAG!r} in it; it is no learner checkpoint"
            )
        path, client_state = self._engine.load_checkpoint(str(folder), tag=CHECKPOINT_TAG)
        if path is None:
            raise CheckpointError(f"{folder}: DeepSpeed found no complete checkpoint for this rank in it")
        return client_state


def _non_finite(grad_norm: float) -> NonFiniteError:
    return NonFiniteError(
        f"the gradient of the step is not finite (norm {grad_norm}); the weights were not updated"
    )


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
