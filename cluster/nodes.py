"""Nodes that are about to go away, drained or preempted, as Ray reports them.

Whoever takes a node away tells Ray beforehand (`ray drain-node`, an autoscaler, a cloud's preemption notice);
Ray then places nothing more there, and says until when the node stays. The only module that asks for it.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import Protocol

import ray

logger = logging.getLogger(__name__)

PERIOD_S = 5.0


class Drainable(Protocol):
    """Something with workers on nodes."""

    def drain_node(self, node_id: str, deadline_s: float | None) -> None:
        """Empty a node that goes away in `deadline_s` seconds (None: it does not say when)."""


def draining_nodes() -> dict[str, float | None]:
    """Nodes that go away, by their hex id, and the seconds they have left (None: not said)."""
    deadlines_ms = ray._private.state.state.get_draining_nodes()
    now_s = time.time()
    return {
        node: max(0.0, deadline_ms / 1000 - now_s) if deadline_ms else None
        for node, deadline_ms in deadlines_ms.items()
    }


def num_machines() -> int:
    """Nodes of the cluster that are alive and have CPUs."""
    return sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes())


async def watch_nodes(
    pools: Iterable[Drainable],
    leaving: Callable[[], dict[str, float | None]] = draining_nodes,
    period_s: float = PERIOD_S,
) -> None:
    """Have the pools empty every node that goes away; runs until it is cancelled."""
    known: set[str] = set()
    while True:
        try:
            nodes = await asyncio.to_thread(leaving)
        except Exception as error:  # Ray's client raises bare errors while its head node is away
            logger.warning("the nodes that go away cannot be asked for: %s", error)
            nodes = {}
        for node in nodes.keys() - known:
            known.add(node)
            for pool in pools:
                pool.drain_node(node, nodes[node])
        await asyncio.sleep(period_s)
