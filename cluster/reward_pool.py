"""The reward workers: what waits goes to the next idle one, under a hard timeout.

    score ─▶ an idle worker ─▶ header
                 │  raises: tried once more             two failures of its own, or three in all:
                 │  hangs:  killed, tried once more  ─▶ RewardError, and the loop dead-letters the group:
                 └─ dies:   tried again                 an error never becomes a number

A worker gets several groups in one call when several wait and are quickly scored. When it is lost with them,
none counts as failed, and none is on disk: from now on each is tried alone.

A reward that hangs cannot be interrupted, so its worker is killed; another is started in the background, and
meanwhile the others go on. How many there are is `cluster.fleet`'s business. Runs in the driver's event loop.
"""

import asyncio
import dataclasses
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from alphadrive.config import RewardConfig
from alphadrive.errors import AlphaDriveError, GroupLostError, RewardError, RewardWorkerDiedError
from alphadrive.types import GroupHeader
from cluster import remote
from cluster.batches import BatchItem, packed
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
BATCH_S = 0.02
"""Groups that wait are scored in one call as far as a worker needs no longer for them: quick rewards cost the
driver few calls, slow ones are spread over the workers and each has the timeout for itself."""
PERIOD_S = 0.004
"""Between two times at which waiting groups are given to workers: with many engines each call has more."""


class _BatchFailedError(Exception):
    """A worker was lost with several groups; whose fault it was is not known, so each is tried alone."""


@dataclass(frozen=True, slots=True, eq=False)
class _Request:
    """A group that waits for a worker."""

    group: BatchItem
    is_alone: bool
    header: asyncio.Future[GroupHeader]


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
            taken_back_as=WorkerState.SERVING,
            take_back=self._open,
            until_empty=self._until_empty,
            none_left=_none_left,
            needs="its code, nothing else",
        )
        self._fleet: Fleet[RewardWorker] = Fleet(craft, RestartPolicy(MAX_RESTARTS), 2 * config.timeout_s)
        self._waiting: deque[_Request] = deque()
        self._unanswered: set[asyncio.Future[GroupHeader]] = set()
        self._is_handing_out = False
        self._group_s = BATCH_S
        self._handed_out_s = float("-inf")
        """What a group took lately; at first one is scored at a time."""

    @property
    def num_wanted(self) -> int:
        """Workers there are to be."""
        return self._fleet.num_wanted

    @property
    def num_lost(self) -> int:
        """Workers that died or hung so far."""
        return self._fleet.num_lost

    @property
    def num_up(self) -> int:
        """Workers that are given groups."""
        return self._fleet.num_up

    async def start(self) -> None:
        """Start all workers. Raises RewardWorkerDiedError when none can be had."""
        self._fleet.in_background(self._end_all())
        self._fleet.in_background(self._watch())
        await self._fleet.start(self._config.num_workers)

    async def score(self, group: BatchItem) -> GroupHeader:
        """Score a group.

        Raises RewardError when the group is given up, RewardWorkerDiedError when no worker can be had any
        more, GroupLostError when the group is gone with the node that held it.
        """
        failures: list[str] = []
        num_own = 0
        is_alone = False
        while num_own < MAX_FAILURES and len(failures) < MAX_ATTEMPTS:
            try:
                return await self._header(group, is_alone)
            except _BatchFailedError:
                is_alone = True
            except TimeoutError:
                num_own += 1
                failures.append(f"no answer in rewards.timeout_s={self._config.timeout_s}")
            except remote.ActorGoneError as error:
                failures.append(str(error))
            except remote.ObjectGoneError as error:
                raise GroupLostError(f"a drawn group was lost before it was scored: {error}") from error
            except RewardWorkerDiedError:
                raise
            except RewardError as error:
                num_own += 1
                failures.append(f"{type(error).__name__}: {error}")
        raise RewardError(f"failed {len(failures)} times: {failures[-1]}")

    def resize(self, num_workers: int) -> None:
        """Want so many workers from now on; returns at once. Raises ValueError below 1."""
        self._fleet.resize(num_workers)

    def drain_node(self, node_id: str, deadline_s: float | None) -> None:
        """Empty a node that goes away in `deadline_s` seconds (None: it does not say when)."""
        self._fleet.drain_node(node_id, deadline_s)

    def actors(self) -> list[tuple[str, Any]]:
        """Id and actor of every worker that is not dead."""
        return [(worker.id, worker.actor) for worker in self._fleet.living]

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

    async def _header(self, group: BatchItem, is_alone: bool) -> GroupHeader:
        """What a worker says of a group; those that wait longest come first."""
        self._fleet.raise_failure()
        header: asyncio.Future[GroupHeader] = asyncio.get_running_loop().create_future()
        self._unanswered.add(header)
        header.add_done_callback(self._unanswered.discard)
        self._waiting.append(_Request(group, is_alone, header))
        self._hand_out_soon()
        return await header

    def _hand_out_soon(self) -> None:
        """When all that came at once wait."""
        if not self._is_handing_out:
            self._is_handing_out = True
            asyncio.get_running_loop().call_at(self._handed_out_s + PERIOD_S, self._hand_out)

    def _hand_out(self) -> None:
        self._is_handing_out = False
        idle = [worker for worker in self._fleet.living if worker.is_up and not worker.num_under_way]
        while idle and (requests := self._next_requests()):
            worker = idle.pop(0)
            worker.num_under_way = len(requests)
            self._handed_out_s = asyncio.get_running_loop().time()
            self._fleet.in_background(self._score(worker, requests))

    def _next_requests(self) -> list[_Request]:
        """As many of those waiting as are scored in `BATCH_S`, one at least; one that must be alone is."""
        requests: list[_Request] = []
        while self._waiting and len(requests) < max(1.0, BATCH_S / self._group_s):
            if self._waiting[0].header.done():
                self._waiting.popleft()
                continue
            if requests and (requests[0].is_alone or self._waiting[0].is_alone):
                break
            requests.append(self._waiting.popleft())
        return requests

    async def _score(self, worker: RewardWorker, requests: list[_Request]) -> None:
        picks, batches = packed([request.group for request in requests])
        reply, scored = worker.actor.score.options(num_returns=2).remote(picks, *batches)
        try:
            headers, seconds = await remote.fetch(reply, self._config.timeout_s)
        except Exception as error:
            _fail(requests, self._noted(worker, error))
            remote.forget(scored)
        else:
            self._group_s = (self._group_s + seconds / len(requests)) / 2
            worker.groups_done += _deliver(requests, headers, scored)
            worker.last_done_s = asyncio.get_running_loop().time()
        finally:
            self._free(worker)

    def _noted(self, worker: RewardWorker, error: Exception) -> Exception:
        """The error of a call, after its worker was replaced where that is lost."""
        if isinstance(error, TimeoutError):
            reason = f"no answer in rewards.timeout_s={self._config.timeout_s}"
            self._fleet.lose(worker, reason, counts=False)
        elif isinstance(error, remote.ActorGoneError):
            self._fleet.lose(worker, error, counts=False)
            return remote.ActorGoneError(f"{worker.id} died: {error}")
        return error

    def _free(self, worker: RewardWorker) -> None:
        worker.num_under_way = 0
        if worker.state is WorkerState.DRAINING:
            self._fleet.notify()
        self._hand_out_soon()

    async def _open(self, worker: RewardWorker) -> None:
        if worker.state is not WorkerState.DEAD:
            worker.enter(WorkerState.SERVING)
            self._hand_out_soon()

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

    async def _end_all(self) -> None:
        """When the fleet has failed, all that was not answered yet gets its error."""
        try:
            while True:
                await self._fleet.changed()
        except Exception as error:
            for header in self._unanswered:
                if not header.done():
                    header.set_exception(error)


def _fail(requests: list[_Request], error: Exception) -> None:
    for request in requests:
        if not request.header.done():
            request.header.set_exception(error if len(requests) == 1 else _BatchFailedError())


def _deliver(requests: list[_Request], headers: list[GroupHeader | AlphaDriveError], scored: Any) -> int:
    """Tell each how it ended; `scored` refers to the groups that have a header. Returns their number."""
    index = 0
    for request, header in zip(requests, headers, strict=True):
        is_waiting = not request.header.done()
        if isinstance(header, AlphaDriveError):
            if is_waiting:
                request.header.set_exception(header)
            continue
        if is_waiting:
            request.header.set_result(dataclasses.replace(header, scored=BatchItem(scored, index)))
        index += 1
    return index


def _none_left(reason: str) -> Exception:
    return RewardWorkerDiedError(
        f"no reward worker is left, and none starts: {MAX_RESTARTS} restarts in a row failed. The last "
        f"reason: {reason}"
    )
