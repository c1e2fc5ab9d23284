"""DeepSpeed's process group and configurations; what is evaluated only is split here, too.

What trains is in `learner.engine`.
"""

import logging
import os
from datetime import timedelta
from typing import Any

import torch
from torch import nn

from alphadrive.config import LearnerConfig
from alphadrive.errors import LearnerError

COLLECTIVE_TIMEOUT = timedelta(minutes=10)


def join_process_group(rank: int, world_size: int, meeting_point: str, on_gpu: bool) -> torch.device:
    """Join the learner's process group (gloo on CPU, nccl on GPU) and give this rank's device.

    `meeting_point` is where the ranks find each other: `file:///PATH` of a file that is not there yet, which
    opens no port, or `tcp://HOST:PORT` with rank 0's host. Uses the group that exists where one process
    holds several learners one after another. Raises LearnerError when that group is of another shape.
    """
    local_rank = rank % max(1, torch.cuda.device_count()) if on_gpu else 0
    os.environ.update(
        DS_ACCELERATOR="cuda" if on_gpu else "cpu",
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK=str(local_rank),
        LOCAL_SIZE=str(world_size),
    )
    import_deepspeed().init_distributed(
        "nccl" if on_gpu else "gloo",
        auto_mpi_discovery=False,
        verbose=False,
        timeout=COLLECTIVE_TIMEOUT,
        init_method=meeting_point,
        rank=rank,
        world_size=world_size,
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


def import_deepspeed() -> Any:
    """DeepSpeed, quiet and without what it would compile on CPU."""
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
    if learner.offload_optimizer:
        config["zero_optimization"]["offload_optimizer"] = {
            "device": "cpu",
            "pin_memory": learner.gpus_per_rank > 0,
        }
        # Otherwise DeepSpeed insists on its own CPU Adam, which it compiles at first use.
        config["zero_force_ds_cpu_optimizer"] = False
    if learner.zero_stage < 2:
        config["zero_optimization"]["overlap_comm"] = False
    if dtype == "bfloat16":
        config["bf16"] = {"enabled": True, "check_grad_overflow": True}
    return config


def shard_frozen(module: nn.Module, dtype: str) -> nn.Module:
    """A module that is only evaluated, on its device, split over the ranks: each keeps a share of every
    weight and gathers one layer at a time. Every rank must run the same number of forwards."""
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3},
        "steps_per_print": None,
    }
    if dtype == "bfloat16":
        config["bf16"] = {"enabled": True}
    engine, *_ = import_deepspeed().initialize(model=module, config=config, dist_init_required=False)
    engine.eval()
    return engine
