"""A gang of actors: placed all or none, called all at once, lost as a whole.

    reserve ──▶ place ──▶ call, call, ... ──▶ end ──▶ place again, where it was
                              │ a process is gone, or a call does not end in time
                              ▼
              LearnerDiedError: the others wait in a collective for what will never come

`watch` notices a death between calls: a ping waits in the queue of every rank, and Ray fails it when the
process is gone. Knows neither models nor steps; `cluster.learner_group` does.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, Self

import ray
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from alphadrive.errors import AlphaDriveError, LearnerDiedError, LearnerError, ResourceError
from alphadrive.pools import pool_text
from cluster.actors import Meeting
from cluster.inventory import room_text
from cluster.placement import NO_ROOM_REMEDY, needs_text
from cluster.remote import ActorGoneError, ObjectGoneError, fetch, kill

PING_INTERVAL_S = 1.0
PEER_DEATH_S = 5.0
"""How long after one rank's error another one's death may show that caused it."""
MACHINE_FAULTS = {"AcceleratorError", "DistBackendError", "DistNetworkError", "DistStoreError"}
"""torch's errors of a device or a connection that fails under a program that is right."""


class Gang:
    """The ranks' actors, in the place that `reserve` gives. Make one with `place`."""

    def __init__(self, ranks: list[Any]) -> None:
        self.ranks = ranks
        self.processes: list[Meeting] = []
        """Where the ranks run, once they have met."""
        self.call_under_way: tuple[str, float] | None = None
        """The method that runs, and since when (monotonic)."""

    @classmethod
    def place(cls, actor_class: Any, num_ranks: int, resources: dict[str, float], group: Any) -> Self:
        """Start all ranks' processes in a placement group that stands."""
        return cls([_spawn(actor_class, group, rank, resources) for rank in range(num_ranks)])

    async def meet(self, timeout_s: float) -> list[Meeting]:
        """Wait for the processes; where each runs. Raises as `call`."""
        self.processes = await self.call("rendezvous", [()] * len(self.ranks), timeout_s)
        return self.processes

    async def call(
        self,
        method: str,
        arguments: list[tuple[Any, ...]],
        timeout_s: float,
        measure: Callable[[], object] = lambda: None,
    ) -> list[Any]:
        """Call a method on all ranks at once; one result a rank.

        Raises the first failure without waiting for the others: what a rank raised, or LearnerDiedError
        when a process is gone, or when `timeout_s` pass in which what `measure` gives stays the same.
        """
        references = [
            getattr(actor, method).remote(*args) for actor, args in zip(self.ranks, arguments, strict=True)
        ]
        calls = [
            asyncio.ensure_future(self._checked(rank, method, reference))
            for rank, reference in enumerate(references)
        ]
        self.call_under_way = (method, time.monotonic())
        try:
            return await _unless_stuck(calls, method, timeout_s, measure)
        finally:
            self.call_under_way = None

    async def watch(self) -> NoReturn:
        """Raises LearnerDiedError when a process is gone, whatever the ranks are doing."""
        while True:
            pings = [fetch(rank.ping.remote()) for rank in self.ranks]
            try:
                await asyncio.gather(*pings)
            except ActorGoneError as error:
                raise LearnerDiedError(f"a learner rank died: {error}") from error
            await asyncio.sleep(PING_INTERVAL_S)

    def end(self) -> None:
        """End all processes (Ray ends stopped ones, too); their place is kept."""
        for rank in self.ranks:
            kill(rank)

    async def _checked(self, rank: int, method: str, reference: Any) -> Any:
        label = f"learner rank {rank} of {len(self.ranks)}"
        try:
            return await fetch(reference)
        except ActorGoneError as error:
            raise LearnerDiedError(f"{label} died in {method}: {error}") from error
        except ObjectGoneError as error:
            raise LearnerDiedError(f"{label}, {method}: a group was lost with its node: {error}") from error
        except Exception as error:
            words = f"{label} failed in {method}: {type(error).__name__}: {error}"
            if type(error).__name__ in MACHINE_FAULTS or await self._has_lost_a_rank():
                raise LearnerDiedError(words) from error
            if isinstance(error, AlphaDriveError):
                raise
            raise LearnerError(words) from error

    async def _has_lost_a_rank(self) -> bool:
        """Whether a process is gone, or will be in a moment: its peers may notice it before Ray does."""
        if len(self.ranks) == 1:
            return False
        pings = [asyncio.ensure_future(fetch(rank.ping.remote())) for rank in self.ranks]
        done, waiting = await asyncio.wait(pings, timeout=PEER_DEATH_S, return_when=asyncio.FIRST_EXCEPTION)
        for ping in waiting:
            ping.cancel()
        return any(isinstance(ping.exception(), ActorGoneError) for ping in done)


async def _unless_stuck(
    calls: Sequence["asyncio.Future[Any]"], method: str, timeout_s: float, measure: Callable[[], object]
) -> list[Any]:
    work = asyncio.gather(*calls)
    seen = measure()
    try:
        while not (await asyncio.wait([work], timeout=timeout_s))[0]:
            now = measure()
            if now == seen:
                silent = ", ".join(str(rank) for rank, call in enumerate(calls) if not call.done())
                raise LearnerDiedError(
                    f"the learner hangs: {method} did not end in {timeout_s:g} s (learner.hang_timeout_s "
                    "bounds all calls but those of a start; raise it where a step takes so long); no answer "
                    f"from rank {silent} of {len(calls)}"
                )
            seen = now
        return work.result()
    finally:
        work.cancel()
        work.add_done_callback(lambda done: done.cancelled() or done.exception())


async def reserve(
    num_ranks: int,
    resources: dict[str, float],
    pool: Mapping[str, str],
    timeout_s: float,
    kept: Any = None,
) -> Any:
    """A placement group with a bundle of `resources` for every rank, on nodes with the labels of `pool`, as
    soon as there is room for all. `kept` is that of ranks that have ended, used again where it stands.

    Raises ResourceError, which says what is free and who holds the rest.
    """
    if kept is not None and not await asyncio.to_thread(_stands, kept):
        remove_placement_group(kept)
        kept = None
    selectors = [dict(pool)] * num_ranks if pool else None
    group = kept or placement_group([resources] * num_ranks, strategy="PACK", bundle_label_selector=selectors)
    try:
        await asyncio.wait_for(group.ready(), timeout_s)
    except BaseException as error:
        remove_placement_group(group)
        if not isinstance(error, TimeoutError):
            raise
        raise ResourceError(
            f"the learner has no place after {timeout_s:.0f} s: learner.num_ranks={num_ranks} bundles of "
            f"{needs_text(resources)} (cluster.learner_pool: {pool_text(pool)}) do not fit together beside "
            f"what others hold:{await asyncio.to_thread(room_text, pool)}\n{NO_ROOM_REMEDY}"
        ) from None
    return group


def _stands(group: Any) -> bool:
    """Whether no node of a placement group was lost."""
    return placement_group_table(group)["state"] == "CREATED"


def _spawn(actor_class: Any, group: Any, rank: int, resources: dict[str, float]) -> Any:
    strategy = PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=rank)
    return (
        ray.remote(actor_class)
        .options(
            num_cpus=resources.get("CPU", 0),
            num_gpus=resources.get("GPU", 0),
            max_restarts=0,
            scheduling_strategy=strategy,
        )
        .remote()
    )
