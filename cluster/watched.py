"""What the control room looks at: the parts of an attempt that are up, as the stage brings them up.

    train_on_ray ──sets──▶ Watched ◀──reads── control room, recorder (metrics)

Plain values and Protocols; no Ray.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from alphadrive import metric_names as names
from cluster.autoscale import Autoscaler
from cluster.buffer import SlotBuffer
from cluster.workers import WorkerState, WorkerStatus


@runtime_checkable
class HasWorkers(Protocol):
    """A pool or a gang that knows how its workers are."""

    def workers(self) -> list[WorkerStatus]:
        """Its workers, the dead ones of the last minutes included."""


@runtime_checkable
class ElasticPool(HasWorkers, Protocol):
    """A pool that can grow and shrink while the run goes on."""

    @property
    def num_wanted(self) -> int:
        """How many workers it is to have."""

    @property
    def num_lost(self) -> int:
        """How many died, hung or were fenced so far."""

    def resize(self, num_workers: int) -> None:
        """Change that number; returns at once."""


@dataclass(slots=True)
class Watched:
    """None is what this stage does not have, or not yet. `buffer` is there once the loop runs."""

    rollouts: ElasticPool | None = None
    rewards: ElasticPool | None = None
    learner: HasWorkers | None = None
    buffer: SlotBuffer | None = None
    autoscaler: Autoscaler | None = None

    def workers(self) -> list[WorkerStatus]:
        """All workers of all parts."""
        parts = (self.rollouts, self.rewards, self.learner)
        return [worker for part in parts if isinstance(part, HasWorkers) for worker in part.workers()]

    def metrics(self) -> dict[str, float]:
        """What belongs to a step's metrics; nothing where there is no pool (`alphadrive debug`)."""
        if not isinstance(self.rollouts, HasWorkers):
            return {}
        metrics = {
            names.ROLLOUT_WORKERS: float(num_in_service(self.rollouts.workers(), "rollout")),
            names.ROLLOUT_WORKERS_LOST: float(self.rollouts.num_lost),
        }
        if self.autoscaler is not None:
            metrics[names.AUTOSCALE_UPS] = float(self.autoscaler.num_ups)
            metrics[names.AUTOSCALE_DOWNS] = float(self.autoscaler.num_downs)
        return metrics


def as_fields(workers: Sequence[WorkerStatus]) -> list[dict[str, Any]]:
    """Workers as `status.json` holds them."""
    return [dataclasses.asdict(worker) | {"state": worker.state.value} for worker in workers]


def num_in_service(workers: Sequence[WorkerStatus], kind: str) -> int:
    """How many workers of a kind do their work. An engine that gets new weights is STALE for a moment: one
    that has drawn groups before counts, one that has yet to prove its first weights does not."""
    return sum(
        worker.state is WorkerState.SERVING or (worker.state is WorkerState.STALE and worker.groups_done > 0)
        for worker in workers
        if worker.kind == kind
    )


def num_placing(workers: Sequence[WorkerStatus], kind: str) -> int:
    """How many workers of a kind have no process yet."""
    return sum(
        worker.kind == kind and worker.state is WorkerState.STARTING and worker.pid is None
        for worker in workers
    )


def pending_of(
    workers: Sequence[WorkerStatus], wanted: Mapping[str, int], waiting: Mapping[str, int]
) -> list[dict[str, Any]]:
    """What is still to happen until as many workers serve as are wanted, in entries of `kind`, `count` and
    `what`: `waiting` for room in the cluster (so many at most), `starting`, or `draining`.

    >>> pending_of([], {"rollout": 2}, {})
    [{'kind': 'rollout', 'count': 2, 'what': 'starting'}]
    """
    pending: list[dict[str, Any]] = []
    for kind, count in wanted.items():
        without_room = min(num_placing(workers, kind), waiting.get(kind, 0))
        counts = {
            "waiting": without_room,
            "starting": max(0, count - num_in_service(workers, kind) - without_room),
            "draining": sum(
                worker.kind == kind and worker.state is WorkerState.DRAINING for worker in workers
            ),
        }
        pending += [{"kind": kind, "count": num, "what": what} for what, num in counts.items() if num]
    return pending
