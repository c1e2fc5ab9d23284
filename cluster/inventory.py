"""The nodes of the cluster as Ray knows them: what each has, what is free, and who holds the rest.

The table of actors is read with calls of Ray that are not public, so Ray's version is pinned; nothing public
tells it without the dashboard, which a cluster need not have.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

import ray
from ray._private.state import available_resources_per_node, state
from ray.core.generated.gcs_pb2 import ActorTableData

from alphadrive.pools import pool_text
from cluster.control import RunControl
from cluster.nodes import draining_nodes
from cluster.packing import Node

logger = logging.getLogger(__name__)

_MOST_NODES = 8


def live_nodes() -> list[Node]:
    """All nodes that are alive and stay."""
    leaving = draining_nodes()
    return [
        Node(
            id=entry["NodeID"],
            name=entry["NodeManagerHostname"] or entry["NodeManagerAddress"],
            cpus=entry["Resources"].get("CPU", 0.0),
            gpus=entry["Resources"].get("GPU", 0.0),
            labels=entry["Labels"],
        )
        for entry in ray.nodes()
        if entry["Alive"] and entry["NodeID"] not in leaving
    ]


def node_text(node: Node) -> str:
    """A node for people."""
    return f"{node.name} (node {node.id[:8]})"


def room_text(pool: Mapping[str, str]) -> str:
    """What is free on the nodes of a pool and which actors hold the rest, in lines; each begins a new one."""
    try:
        nodes = [node for node in live_nodes() if node.is_in(pool)]
        free, holders = available_resources_per_node(), _holders()
    except Exception as error:  # Ray's client raises bare errors while its head node is away
        logger.debug("the nodes cannot be asked for: %s", error)
        return ""
    if not nodes:
        return f"\n  no node has the labels {pool_text(pool)}"
    lines = [_room_line(node, free.get(node.id, {}), holders[node.id]) for node in nodes[:_MOST_NODES]]
    if len(nodes) > _MOST_NODES:
        lines.append(f"and {len(nodes) - _MOST_NODES} other nodes")
    return "".join(f"\n  {line}" for line in lines)


def _room_line(node: Node, free: Mapping[str, float], holders: Mapping[str, int]) -> str:
    gpus = f"{free.get('GPU', 0.0):g} of {node.gpus:g} GPUs, " if node.gpus else ""
    held = ", ".join(f"{number} {name}" for name, number in holders.items())
    return f"{node_text(node)}: {gpus}{free.get('CPU', 0.0):g} of {node.cpus:g} CPUs are free" + (
        f"; held by {held}" if held else ""
    )


def _holders() -> defaultdict[str, Counter[str]]:
    """By node: the kinds of actors that reserve something there, and how many of each."""
    actors = list(_live_actors())
    runs = {actor.job_id: actor.name for actor in actors if actor.class_name == RunControl.__name__}
    ours = bytes.fromhex(ray.get_runtime_context().get_job_id())
    holders: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for actor in actors:
        if not any(actor.required_resources.values()):
            continue
        name = actor.class_name.rpartition(".")[2]
        if actor.job_id != ours:
            name += f" of {runs.get(actor.job_id) or 'job ' + actor.job_id.hex()}"
        holders[actor.address.node_id.hex()][name] += 1
    return holders


def _live_actors() -> Iterator[ActorTableData]:
    for content in state._connect_and_get_accessor().get_actor_table(None, "ALIVE"):
        yield ActorTableData.FromString(content)
