"""What a run tells about its workers: engines, reward workers, learner ranks. Plain values."""

from dataclasses import dataclass
from enum import StrEnum


class WorkerState(StrEnum):
    """Where a worker is in its life."""

    STARTING = "STARTING"
    """Not up yet; without a process id, it waits for the cluster to have room."""
    STALE = "STALE"
    """Up, but its weights are not proved: it is given no group."""
    SERVING = "SERVING"
    DRAINING = "DRAINING"
    """Ends what it has under way and is given nothing more."""
    DEAD = "DEAD"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """One worker. `kind` is `rollout`, `reward` or `learner`, `node` the hex id of its Ray node,
    `last_progress_s` the Unix time of the last group (learner: step) done."""

    kind: str
    id: str
    pid: int | None
    node: str | None
    state: WorkerState
    weight_version: str | None
    groups_done: int
    last_progress_s: float | None
