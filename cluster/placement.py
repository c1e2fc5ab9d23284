"""What a run asks of the cluster, compared with what there is, before anything is placed.

Pure arithmetic on numbers the caller looked up. On a machine without GPUs workers may share cores: a
worker too many costs time there, not correctness, and memory is the limit (`alphadrive.capacity`).
"""

import math
from dataclasses import dataclass

from alphadrive.config import Config
from alphadrive.errors import ResourceError


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """What each actor reserves, and what the user should know about it."""

    cpus_per_engine: float
    gpus_per_engine: float
    cpus_per_rank: float
    gpus_per_rank: float
    threads_per_rank: int
    note: str | None = None

    def rank_resources(self) -> dict[str, float]:
        """One learner rank's bundle."""
        bundle = {"CPU": max(self.cpus_per_rank, 0.01), "GPU": self.gpus_per_rank}
        return {name: amount for name, amount in bundle.items() if amount}


def num_engines(config: Config, stage: str) -> int:
    """Engines a stage needs: SFT needs none."""
    return config.rollout.num_workers if stage == "grpo" else 0


def plan_placement(config: Config, stage: str, num_cpus: float, num_gpus: float) -> Placement:
    """Reservations for `stage` (`grpo` or `sft`) on this many CPUs and GPUs. Without GPUs, as many engines as
    `rollout.autoscale` may start share the CPUs; with GPUs they need nodes of their own.

    Raises ResourceError naming what is asked for and what there is.
    """
    engines, ranks = num_engines(config, stage), config.learner.num_ranks
    asked_gpus = engines * config.rollout.gpus_per_worker + ranks * config.learner.gpus_per_rank
    key = "rollout.num_workers"
    if engines and not asked_gpus and config.rollout.autoscale.max:
        key, engines = "rollout.autoscale.max", config.rollout.autoscale.max
    asked_cpus = engines * config.rollout.cpus_per_worker + ranks * config.learner.cpus_per_rank
    sums = f"{key}={engines} x {{engine:g}} + learner.num_ranks={ranks} x {{rank:g}}"
    if asked_gpus > num_gpus:
        arithmetic = sums.format(engine=config.rollout.gpus_per_worker, rank=config.learner.gpus_per_rank)
        raise ResourceError(
            f"{asked_gpus:g} GPUs asked for ({arithmetic}), {num_gpus:g} available; lower the workers or "
            "rollout.gpus_per_worker and learner.gpus_per_rank"
        )
    share, note = 1.0, None
    if asked_cpus > num_cpus:
        arithmetic = sums.format(engine=config.rollout.cpus_per_worker, rank=config.learner.cpus_per_rank)
        if asked_gpus:
            raise ResourceError(
                f"{asked_cpus:g} CPUs asked for ({arithmetic}), {num_cpus:g} available; lower the workers or "
                "rollout.cpus_per_worker and learner.cpus_per_rank"
            )
        share = num_cpus / asked_cpus
        note = (
            f"{engines + ranks} workers share {num_cpus:g} CPUs ({arithmetic} = {asked_cpus:g} asked for): "
            "correct, but each is slower than alone"
        )
    return Placement(
        cpus_per_engine=_share(config.rollout.cpus_per_worker, share),
        gpus_per_engine=config.rollout.gpus_per_worker,
        cpus_per_rank=_share(config.learner.cpus_per_rank, share),
        gpus_per_rank=config.learner.gpus_per_rank,
        threads_per_rank=max(1, int(config.learner.cpus_per_rank)),
        note=note,
    )


def _share(amount: float, share: float) -> float:
    return amount if share >= 1 else math.floor(amount * share * 100) / 100
