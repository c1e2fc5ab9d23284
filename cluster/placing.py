"""Watching that the first engine of a run gets a place in time. Runs in the driver's event loop.

The learner's place is waited for by `cluster.gang.reserve`, before. One engine is enough for a run to start;
the others are `cluster.fleet`'s business, and may wait for ever.
"""

import asyncio

from alphadrive.errors import ResourceError
from alphadrive.pools import pool_text
from cluster.inventory import room_text
from cluster.placement import NO_ROOM_REMEDY, Placement, needs_text
from cluster.resource_demand import num_waiting
from cluster.watched import HasWorkers

POLL_S = 1.0


async def first_engine_placed(engines: HasWorkers, placement: Placement, limit_s: float) -> None:
    """Returns when an engine has a process. Raises ResourceError, with what is free and who holds the rest,
    when none has after `limit_s` for want of room."""
    needs = placement.engine_resources()
    waited_s = 0.0
    while not any(worker.pid for worker in engines.workers()):
        await asyncio.sleep(POLL_S)
        waited_s += POLL_S
        if waited_s >= limit_s and await asyncio.to_thread(num_waiting, needs):
            room = await asyncio.to_thread(room_text, placement.rollout_pool)
            raise ResourceError(
                f"no engine has a place after {waited_s:.0f} s: {needs_text(needs)} for one "
                f"(cluster.rollout_pool: {pool_text(placement.rollout_pool)}) are not free on any node:"
                f"{room}\n{NO_ROOM_REMEDY}"
            )
