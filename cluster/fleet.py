"""Keeping as many workers as are wanted: started, restarted, drained. For engines and reward workers alike.

    resize ─▶ make ─▶ STARTING ─ start ─▶ up ─ surplus, node goes away ─▶ DRAINING ─ empty, too late ─▶ DEAD
               ▲          │                │                                 │                           ▲
               │          └────────────────┴──────────── lose ───────────────┼───────────────────────────┘
               └── restart policy ◀─────── a place is vacant                 └── wanted again: up

A worker that is asked for and does not fit waits as a pending Ray actor, which an autoscaler sees; it is
started when there is room. What a worker does is its pool's business. Runs in the driver's event loop.
"""

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic

from alphadrive.errors import EngineDiedError, InputError
from cluster import remote
from cluster.restarts import RestartPolicy
from cluster.staffing import W, Worker, changes_to
from cluster.workers import WorkerState, WorkerStatus

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 10.0
ROOM_NOTE_S = 30.0
"""A worker that was not placed for so long is told about, once."""
DEAD_SHOWN_S = 300.0
SAFE_SHARE = 0.9
"""A node that goes away is empty after this share of the time it has left."""

GONE = (EngineDiedError, remote.ActorGoneError, TimeoutError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Craft(Generic[W]):
    """What a fleet must know about its kind of worker.

    Ids are `prefix` and a number; `needs` says in words what one worker reserves. `make(index, id)` gives
    a handle on a new actor; `start` brings it from placed to up. One that is wanted again while it drains
    enters `taken_back_as`, and `take_back` does the rest. `until_empty` waits until it has nothing under
    way. `none_left(reason)` is the error that ends the fleet.
    """

    kind: str
    prefix: str
    make: Callable[[int, str], W]
    start: Callable[[W], Awaitable[None]]
    taken_back_as: WorkerState
    take_back: Callable[[W], Awaitable[None]]
    until_empty: Callable[[W], Awaitable[None]]
    none_left: Callable[[str], Exception]
    needs: str
    room: Callable[[], str] = str
    """What is free where such a worker may go, in words; may ask Ray, and take a moment."""


class Fleet(Generic[W]):
    """The workers of one kind. A worker too many has `patience_s` to end what it has under way."""

    def __init__(self, craft: Craft[W], policy: RestartPolicy, patience_s: float) -> None:
        self.living: list[W] = []
        """Those that are not dead."""
        self.num_wanted = 0
        self.num_lost = 0
        self._craft = craft
        self._policy = policy
        self._patience_s = patience_s
        self._vacant: dict[int, asyncio.Task[None]] = {}
        self._drains: dict[str, asyncio.Task[None]] = {}
        self._num_made: Counter[int] = Counter()
        self._dead: deque[tuple[float, WorkerStatus]] = deque()
        self._closing: set[str] = set()
        self._leaving_nodes: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: Exception | None = None
        self._has_started = self._is_closing = False
        self._changed = asyncio.Event()

    @property
    def num_up(self) -> int:
        """Workers that are wanted and have started."""
        return sum(worker.is_up for worker in self.living)

    async def start(self, num_workers: int) -> None:
        """Start the first workers; returns when those that have room are up, or are tried again.

        Raises InputError where a worker says that it cannot start, `none_left` when none can be had.
        """
        self.resize(num_workers)
        while not self._is_started():
            await self.changed()
        self._has_started = True

    def resize(self, num_workers: int) -> None:
        """Want so many workers from now on; returns at once. Raises ValueError below 1."""
        if num_workers < 1:
            raise ValueError(f"{num_workers} {self._craft.kind} workers asked for, expected 1 or more")
        self.num_wanted = num_workers
        self._reconcile()

    def drain_node(self, node_id: str, deadline_s: float | None) -> None:
        """Empty a node that goes away in `deadline_s` seconds (None: it does not say when)."""
        self._leaving_nodes.add(node_id)
        left_s = self._patience_s if deadline_s is None else SAFE_SHARE * deadline_s
        for worker in [worker for worker in self.living if worker.node == node_id]:
            logger.warning("%s drains within %.0f s: node %s goes away", worker.id, left_s, node_id[:8])
            self._drain(worker, min(self._patience_s, left_s))
        self._reconcile()

    def lose(self, worker: W, reason: object, *, counts: bool = True) -> None:
        """Kill a worker that cannot be used any more and start another in its place.

        `counts` is False for a death that is not its own fault.
        """
        if worker.state is WorkerState.DEAD or worker.id in self._closing:
            return
        was_wanted = worker.state is not WorkerState.DRAINING
        worker.was_fenced = True
        self.num_lost += 1
        logger.warning("%s lost (%d so far): %s", worker.id, self.num_lost, reason)
        if was_wanted:
            self._policy.died(worker.index, had_worked=worker.groups_done > 0, counts=counts)
        self._bury(worker)
        self._reconcile()
        self._fail_if_hopeless(f"{worker.id}: {reason}")

    def statuses(self) -> list[WorkerStatus]:
        """All workers, and those that died in the last minutes; one that never had a place did not live."""
        now_s = asyncio.get_running_loop().time()
        while self._dead and now_s - self._dead[0][0] > DEAD_SHOWN_S:
            self._dead.popleft()
        return [*map(_status, self.living), *(status for _, status in self._dead)]

    async def close(self) -> None:
        """Close all workers; what was asked of the fleet before is forgotten. Cut off, it kills them."""
        self._is_closing = True
        for task in list(self._tasks):
            task.cancel()
        try:
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await asyncio.gather(*(self._close(worker) for worker in list(self.living)))
        finally:
            for worker in list(self.living):
                self._bury(worker)

    async def changed(self) -> None:
        """Wait until something may have become possible. Raises what ended the fleet."""
        self.raise_failure()
        await self._changed.wait()

    def notify(self) -> None:
        """Wake all that wait in `changed`."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def fail(self, failure: Exception) -> None:
        """End the fleet: all that wait for a worker get this error."""
        self._failure = self._failure or failure
        self.notify()

    def raise_failure(self) -> None:
        """Raise what ended the fleet, where something has."""
        if self._failure is not None:
            raise self._failure

    def in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something until the fleet is closed; an error that it raises ends the fleet."""

        async def guarded() -> None:
            try:
                await work
            except Exception as error:
                self.fail(error)

        task = asyncio.get_running_loop().create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: work.close())  # where it was cancelled before it began
        return task

    def _is_started(self) -> bool:
        self.raise_failure()
        return any(worker.is_up for worker in self.living) and all(
            worker.is_up or worker.is_waiting_for_room or self._policy.deaths(worker.index)
            for worker in self.living
        )

    def _reconcile(self) -> None:
        if self._is_closing:
            return
        recallable = [
            worker
            for worker in self.living
            if worker.id in self._drains and worker.node not in self._leaving_nodes
        ]
        changes = changes_to(self.num_wanted, self.living, list(self._vacant), recallable)
        for index in changes.cancel:
            self._vacant.pop(index).cancel()
        for worker in changes.drain:
            logger.info("%s drains: %d workers are wanted", worker.id, self.num_wanted)
            self._drain(worker, self._patience_s)
        for worker in changes.take_back:
            self._drains.pop(worker.id).cancel()
            worker.enter(self._craft.taken_back_as)
            self.in_background(self._craft.take_back(worker))
        for index in changes.fill:
            delay_s = self._policy.delay_s(index)
            if delay_s:
                self._vacant[index] = self.in_background(self._fill_later(index, delay_s))
            else:
                self._fill(index)

    async def _fill_later(self, index: int, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        del self._vacant[index]
        self._fill(index)

    def _fill(self, index: int) -> None:
        suffix = f".{self._num_made[index]}" if self._num_made[index] else ""
        self._num_made[index] += 1
        worker = self._craft.make(index, f"{self._craft.prefix}{index}{suffix}")
        self.living.append(worker)
        self.in_background(self._bring_up(worker))

    async def _bring_up(self, worker: W) -> None:
        try:
            await self._until_placed(worker)
            if worker.node in self._leaving_nodes:
                logger.info("%s is not started: its node goes away", worker.id)
                self._bury(worker)
                return self._reconcile()
            await self._craft.start(worker)
        except GONE as error:
            self.lose(worker, f"did not start: {error or type(error).__name__}")
        except InputError as error:
            if not self._has_started:
                raise
            self._policy.cannot_start(worker.index)
            self.lose(worker, f"cannot start: {error}")
        self.notify()

    async def _until_placed(self, worker: W) -> None:
        """Wait until the actor has a process, for ever if need be: a node may join."""
        where = worker.actor.where.remote()
        try:
            worker.pid, worker.node = await remote.fetch(where, ROOM_NOTE_S)
        except TimeoutError:
            worker.is_waiting_for_room = True
            self.notify()
            logger.warning(
                "%s waits for room in the cluster (%s); %d of %d are up%s",
                worker.id,
                self._craft.needs,
                self.num_up,
                self.num_wanted,
                await asyncio.to_thread(self._craft.room),
            )
            worker.pid, worker.node = await remote.fetch(where)
            worker.is_waiting_for_room = False

    def _drain(self, worker: W, patience_s: float) -> None:
        """Give it nothing new, and close it when what is under way has ended or `patience_s` is over."""
        if worker.id in self._drains:
            self._drains.pop(worker.id).cancel()
        if worker.state is WorkerState.STARTING:
            self._bury(worker)
            return
        if worker.state is not WorkerState.DRAINING:
            worker.enter(WorkerState.DRAINING)
        self._drains[worker.id] = self.in_background(self._close_when_empty(worker, patience_s))
        self.notify()

    async def _close_when_empty(self, worker: W, patience_s: float) -> None:
        try:
            async with asyncio.timeout(patience_s):
                await self._craft.until_empty(worker)
        except TimeoutError:
            self.lose(worker, "what it had under way did not end before it had to go")
            return
        del self._drains[worker.id]
        await self._close(worker)

    async def _close(self, worker: W) -> None:
        if worker.state not in (WorkerState.STARTING, WorkerState.DEAD):
            self._closing.add(worker.id)
            try:
                await remote.fetch(worker.actor.close.remote(), CLOSE_TIMEOUT_S)
            except (TimeoutError, remote.ActorGoneError) as error:
                logger.warning("%s did not close by itself: %s", worker.id, error or "no answer")
        self._bury(worker)

    def _bury(self, worker: W) -> None:
        if worker.state is WorkerState.DEAD:
            return
        worker.enter(WorkerState.DEAD)
        remote.kill(worker.actor)
        self.living.remove(worker)
        drain = self._drains.pop(worker.id, None)
        if drain is not None and drain is not asyncio.current_task():
            drain.cancel()
        if worker.pid is not None:
            self._dead.append((asyncio.get_running_loop().time(), _status(worker)))
        self.notify()

    def _fail_if_hopeless(self, reason: str) -> None:
        """End the fleet when no worker is up and none may be restarted."""
        starting = {worker.index for worker in self.living if worker.state is WorkerState.STARTING}
        is_hopeless = all(self._policy.is_used_up(index) for index in starting | set(self._vacant))
        if is_hopeless and not any(worker.is_up for worker in self.living) and not self._is_closing:
            self.fail(self._craft.none_left(reason))


def _status(worker: Worker) -> WorkerStatus:
    """Its status, with the event loop's time told as Unix time."""
    last_s = worker.last_done_s
    return WorkerStatus(
        kind=worker.kind,
        id=worker.id,
        pid=worker.pid,
        node=worker.node,
        state=worker.state,
        weight_version=worker.weight_version,
        groups_done=worker.groups_done,
        last_progress_s=(
            None if last_s is None else time.time() - asyncio.get_running_loop().time() + last_s
        ),
    )
