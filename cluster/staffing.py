"""Which workers to start and which to let go, to have as many as are wanted. Pure; for `cluster.fleet`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from cluster.workers import WorkerState


class Worker(Protocol):
    """The driver's handle on one worker actor; a restarted worker gets a new one."""

    kind: str
    id: str
    index: int
    actor: Any
    pid: int | None
    node: str | None
    num_under_way: int
    groups_done: int
    last_done_s: float | None
    was_fenced: bool
    is_waiting_for_room: bool

    @property
    def state(self) -> WorkerState:
        """Where it is in its life."""

    @property
    def is_up(self) -> bool:
        """Whether it is wanted and has started."""

    @property
    def weight_version(self) -> str | None:
        """The weights it has proved last, for engines."""

    def enter(self, state: WorkerState) -> None:
        """Go on to another state. Raises ValueError where there is no way to it."""


W = TypeVar("W", bound=Worker)


@dataclass(slots=True, kw_only=True)
class Changes:
    """What must be done to have as many workers as are wanted."""

    cancel: list[int] = field(default_factory=list)
    """Vacant places that are not to be filled."""
    drain: list[Any] = field(default_factory=list)
    take_back: list[Any] = field(default_factory=list)
    fill: list[int] = field(default_factory=list)


def changes_to(
    num_wanted: int, workers: Sequence[W], vacant: Sequence[int], recallable: Sequence[W]
) -> Changes:
    """What to do for `num_wanted` workers. Pure.

    `workers` are all that live, `vacant` the places that wait for a restart, `recallable` the draining
    workers that could stay. Removed are first places that wait, then workers that have not started, then
    those with the fewest groups under way, then the newest.
    """
    active = [worker for worker in workers if worker.state is not WorkerState.DRAINING]
    missing = num_wanted - len(active) - len(vacant)
    changes = Changes()
    if missing < 0:
        changes.cancel = sorted(vacant, reverse=True)[:-missing]
        by_cost = sorted(
            active,
            key=lambda one: (one.state is not WorkerState.STARTING, one.num_under_way, -one.index),
        )
        changes.drain = by_cost[: -missing - len(changes.cancel)]
    elif missing > 0:
        changes.take_back = list(recallable[:missing])
        used = {worker.index for worker in workers} | set(vacant)
        free = (index for index in range(len(used) + missing) if index not in used)
        changes.fill = [next(free) for _ in range(missing - len(changes.take_back))]
    return changes
