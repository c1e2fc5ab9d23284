"""The reward workers: one group each at a time, under a hard timeout.

    score ─▶ an idle worker ─▶ header
                 │  raises: tried once more             two failures of its own, or three in all:
                 │  hangs:  killed, tried once more  ─▶ RewardError, and the loop dead-letters the group:
                 └─ dies:   tried again                 an error never becomes a number

A reward that hangs cannot be interrupted, so its worker is killed; another is started in the background, and
meanwhile the others go on. How many there are is `cluster.fleet`'s business. Runs in the driver's event loop.
"""

import asyncio
import dataclasses
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from alphadrive.config import RewardConfig
from alphadrive.errors import GroupLostError, RewardError, RewardWorkerDiedError
from alphadrive.types import GroupHeader
from cluster import remote
from cluster.fleet import Craft, Fleet
from cluster.restarts import RestartPolicy
from cluster.workers import WorkerState, WorkerStatus

logger = logging.getLogger(__name__)

MAX_FAILURES = 2
MAX_ATTEMPTS = 3
MAX_RESTARTS = 4
"""Of one worker in a row, without a group scored between."""
HEALTH_PERIOD_S = 5.0
HEALTH_TIMEOUT_S = 10.0


class RewardWorker:
    """One reward actor, as the driver knows it."""

    kind = "reward"
    weight_version = None

    def __init__(self, index: int, worker_id: str, actor: Any) -> None:
        self.index = index
        self.id = worker_id
        self.actor = actor
        self.pid: int | None = None
        self.node: str | None = None
        self.is_waiting_for_room = False
        self.num_under_way = 0
        self.groups_done = 0
        self.last_done_s: float | None = None
        self.was_fenced = False
        self.state = WorkerState.STARTING

    @property
    def is_up(self) -> bool:
        """Whether it is given groups."""
        return self.state is WorkerState.SERVING

    def enter(self, state: WorkerState) -> None:
        """Go on to another state."""
        self.state = state


class RewardPool:
    """All reward workers of a run. `spawn(worker_id)` makes a worker's actor."""

    def __init__(self, config: RewardConfig, spawn: Callable[[str], Any]) -> None:
        self._config = config
        craft = Craft(
            kind="reward",
            prefix="w",
            make=lambda index, worker_id: RewardWorker(index, worker_id, spawn(worker_id)),
            start=self._open,
            take_back=self._open,
            until_empty=self._until_empty,
            none_left=_none_left,
            needs="its code, nothing else",
        )
        self._fleet: Fleet[RewardWorker] = Fleet(craft, RestartPolicy(MAX_RESTARTS), 2 * config.timeout_s)
        self._waiting: deque[asyncio.Future[RewardWorker]] = deque()

    @property
    def num_wanted(self) -> int:
        """Workers there are to be."""
        return self._fleet.num_wanted

    async def start(self) -> None:
        """Start all workers. Raises RewardWorkerDiedError when none can be had."""
        self._fleet.in_background(self._end_waiting())
        self._fleet.in_background(self._watch())
        await self._fleet.start(self._config.num_workers)

    async def score(self, group: object) -> GroupHeader:
        """Score the group behind a reference.

        Raises RewardError when the group is given up, RewardWorkerDiedError when no worker can be had any
        more, GroupLostError when the group is gone with the node that held it.
        """
        failures: list[str] = []
        num_own = 0
        while num_own < MAX_FAILURES and len(failures) < MAX_ATTEMPTS:
            worker = await self._idle_worker()
            try:
                return await self._scored(worker, group)
            except TimeoutError:
                num_own += 1
                failures.append(f"no answer in rewards.timeout_s={self._config.timeout_s}")
                self._fleet.lose(worker, failures[-1], counts=False)
            except remote.ActorGoneError as error:
                failures.append(f"{worker.id} died: {error}")
                self._fleet.lose(worker, error, counts=False)
            except remote.ObjectGoneError as error:
                raise GroupLostError(f"a drawn group was lost before it was scored: {error}") from error
            except RewardError as error:
                num_own += 1
                failures.append(f"{type(error).__name__}: {error}")
            finally:
                self._free(worker)
        raise RewardError(f"failed {len(failures)} times: {failures[-1]}")

    def resize(self, num_workers: int) -> None:
        """Want so many workers from now on; returns at once. Raises ValueError below 1."""
        self._fleet.resize(num_workers)

    def drain_node(self, node_id: str, deadline_s: float | None) -> None:
        """Empty a node that goes away in `deadline_s` seconds (None: it does not say when)."""
        self._fleet.drain_node(node_id, deadline_s)

    def workers(self) -> list[WorkerStatus]:
        """All workers, and those that died in the last minutes."""
        return self._fleet.statuses()

    async def flush(self) -> None:
        """Write what was scored until now: afterwards no worker holds a group that was given to it before."""
        for worker in [worker for worker in self._fleet.living if worker.state is not WorkerState.STARTING]:
            try:
                await remote.fetch(worker.actor.flush.remote(), self._config.timeout_s)
            except (TimeoutError, remote.ActorGoneError) as error:
                reason = error if str(error) else "no answer in rewards.timeout_s"
                self._fleet.lose(worker, f"did not write what it has scored: {reason}")

    async def close(self) -> None:
        """Write what is not on disk yet and end the workers."""
        await self._fleet.close()

    async def _scored(self, worker: RewardWorker, group: object) -> GroupHeader:
        header, scored = worker.actor.score.options(num_returns=2).remote(group)
        try:
            done = await remote.fetch(header, self._config.timeout_s)
        except BaseException:
            remote.forget(scored)
            raise
        worker.groups_done += 1
        worker.last_done_s = asyncio.get_running_loop().time()
        return dataclasses.replace(done, scored=scored)

    async def _idle_worker(self) -> RewardWorker:
        """An idle worker, which from now on has a group under way; those that wait longest come first."""
        self._fleet.raise_failure()
        waiter: asyncio.Future[RewardWorker] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        self._hand_out()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._free(waiter.result())
            raise

    def _hand_out(self) -> None:
        idle = (worker for worker in self._fleet.living if worker.is_up and not worker.num_under_way)
        while self._waiting and (worker := next(idle, None)) is not None:
            while self._waiting and (waiter := self._waiting.popleft()).done():
                pass
            if not waiter.done():
                worker.num_under_way = 1
                waiter.set_result(worker)

    def _free(self, worker: RewardWorker) -> None:
        worker.num_under_way = 0
        if worker.state is WorkerState.DRAINING:
            self._fleet.notify()
        self._hand_out()

    async def _open(self, worker: RewardWorker) -> None:
        if worker.state is not WorkerState.DEAD:
            worker.enter(WorkerState.SERVING)
            self._hand_out()

    async def _until_empty(self, worker: RewardWorker) -> None:
        while worker.num_under_way and worker.state is not WorkerState.DEAD:
            await self._fleet.changed()

    async def _watch(self) -> None:
        """Find idle workers that are gone or hang; a busy one has its timeout."""
        while True:
            await asyncio.sleep(HEALTH_PERIOD_S)
            idle = [worker for worker in self._fleet.living if worker.is_up and not worker.num_under_way]
            await asyncio.gather(*(self._ask(worker) for worker in idle))

    async def _ask(self, worker: RewardWorker) -> None:
        try:
            await remote.fetch(worker.actor.where.remote(), max(HEALTH_TIMEOUT_S, self._config.timeout_s))
        except TimeoutError:
            # No failed start: on a machine that is too busy this may come again and again.
            if not worker.num_under_way:
                self._fleet.lose(worker, "hung: it answers nothing while idle", counts=False)
        except remote.ActorGoneError as error:
            if not worker.num_under_way:
                self._fleet.lose(worker, error)

    async def _end_waiting(self) -> None:
        """When the fleet has failed, those that wait for a worker get its error."""
        try:
            while True:
                await self._fleet.changed()
        except Exception as error:
            for waiter in self._waiting:
                if not waiter.done():
                    waiter.set_exception(error)


def _none_left(reason: str) -> Exception:
    return RewardWorkerDiedError(
        f"no reward worker is left, and none starts: {MAX_RESTARTS} restarts in a row failed. The last "
        f"reason: {reason}"
    )
