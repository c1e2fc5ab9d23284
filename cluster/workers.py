"""What is known of a worker, whatever its kind: for `alphadrive status`."""

from dataclasses import dataclass
from enum import StrEnum


class WorkerState(StrEnum):
    """Where a worker is in its life."""

    STARTING = "STARTING"
    STALE = "STALE"
    SERVING = "SERVING"
    DRAINING = "DRAINING"
    DEAD = "DEAD"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """One worker as its pool sees it. `kind` is rollout, reward or learner, `node` Ray's id of its node
    (hex), `last_progress_s` the Unix time of the last group (learner: step) done."""

    kind: str
    id: str
    pid: int | None
    node: str | None
    state: WorkerState
    weight_version: str | None
    groups_done: int
    last_progress_s: float | None
