"""The driver's handle on one engine: where it is in its life, and what it has under way.

    STARTING ──▶ STALE ◀──────▶ SERVING ──▶ DRAINING ──▶ DEAD     (DEAD also from everywhere else)
                   ▲  proved / sync begins       │
                   └───── wanted again ──────────┘

A restarted engine gets a new handle.
"""

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

from alphadrive.types import WeightVersion
from cluster.exchange import Line
from cluster.watchdog import ProgressWatch
from cluster.workers import WorkerState

_NEXT = {
    WorkerState.STARTING: {WorkerState.STALE, WorkerState.DEAD},
    WorkerState.STALE: {WorkerState.SERVING, WorkerState.DRAINING, WorkerState.DEAD},
    WorkerState.SERVING: {WorkerState.STALE, WorkerState.DRAINING, WorkerState.DEAD},
    WorkerState.DRAINING: {WorkerState.STALE, WorkerState.DEAD},
    WorkerState.DEAD: set(),
}

_NUMBERS = itertools.count()


def _ignored(engine: "Engine") -> None: ...


class Engine:
    """One engine actor, as the driver knows it. `changed` is told of every change of its state."""

    kind = "rollout"

    def __init__(
        self,
        index: int,
        engine_id: str,
        actor: Any,
        watch: ProgressWatch,
        line: Line,
        changed: Callable[["Engine"], None] = _ignored,
    ) -> None:
        self.number = next(_NUMBERS)
        """Grows with every engine that is made."""
        self.index = index
        self.id = engine_id
        self.actor = actor
        self.watch = watch
        self.line = line
        self.pid: int | None = None
        self.node: str | None = None
        self.is_waiting_for_room = False
        self.version: WeightVersion | None = None
        """Of the weights it has proved last."""
        self.draws: dict[asyncio.Future[Any], None] = {}
        """Groups it draws now; given up when it dies, for a process that hangs answers nobody."""
        self.groups_done = 0
        self.last_done_s: float | None = None
        self.garbage_in_a_row = 0
        self.reserved_for: object = None
        """The only group that may be drawn on it, where there is such a one."""
        self.settled = asyncio.Event()
        """Not set while what it draws waits for the proof of its weights."""
        self.settled.set()
        self.is_catching_up = False
        self.is_updating = False
        """In the middle of an update: no token is expected of it."""
        self.was_fenced = False
        self.was_alone = False
        """Whether it had one group under way when it was fenced."""
        self.blames_groups = False
        """Whether what it drew when it was fenced may be the reason: not when it only had to go."""
        self._state = WorkerState.STARTING
        self._changed = changed

    @property
    def state(self) -> WorkerState:
        """Where it is in its life."""
        return self._state

    @property
    def num_under_way(self) -> int:
        """Groups it draws now."""
        return len(self.draws)

    @property
    def is_dead(self) -> bool:
        """Whether it is gone for good."""
        return self._state is WorkerState.DEAD

    @property
    def is_up(self) -> bool:
        """Whether it serves, or will as soon as its weights are proved."""
        return self._state in (WorkerState.STALE, WorkerState.SERVING)

    @property
    def weight_version(self) -> str | None:
        """The weights it has proved last, for people."""
        return None if self.version is None else str(self.version)

    def enter(self, state: WorkerState) -> None:
        """Go on to another state. Raises ValueError where there is no way to it."""
        if state not in _NEXT[self._state]:
            raise ValueError(f"{self.id}: there is no way from {self._state} to {state}")
        if self._state is WorkerState.SERVING and state is not WorkerState.DEAD:
            self.line.flush()
        self._state = state
        self._changed(self)
        if state is WorkerState.DEAD:
            self.settled.set()
            self.line.close()
            for draw in self.draws:
                draw.cancel()
