"""Where the oracle looks on: shipped methods that tell it what they were asked and what they did.

The shipped code runs as it is (or as a mutant made it); every wrapper calls it and reports.
"""

import functools
import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from simulation.oracle import Oracle
from simulation.replacing import replaced

from alphadrive.checkpoints import CheckpointStore
from cluster.buffer import SlotBuffer
from cluster.queries import QueryLedger
from cluster.recorder import GrpoRecorder
from cluster.reward_pool import RewardPool
from cluster.rollout_pool import RolloutPool
from cluster.weight_sync import WeightSync

WATCHED = (
    (SlotBuffer, "__init__", "_buffer_made"),
    (QueryLedger, "__init__", "_ledger_made"),
    (QueryLedger, "take", "_taken"),
    (QueryLedger, "settle", "_settled"),
    (QueryLedger, "give_back", "_given_back"),
    (QueryLedger, "state", "_state"),
    (GrpoRecorder, "scored", "_scored"),
    (CheckpointStore, "commit", "_committed"),
    (CheckpointStore, "latest", "_chosen"),
    (WeightSync, "publish", "_published"),
    (RolloutPool, "__init__", "_pool_made"),
    (RewardPool, "__init__", "_pool_made"),
    (RolloutPool, "drain_node", "_node_drained"),
)


def watched(oracle: Oracle) -> AbstractContextManager[None]:
    """Report to the oracle, while in the block."""
    changes = []
    for owner, method, wrapper in WATCHED:
        shipped = getattr(owner, method)
        changes.append((owner, method, functools.wraps(shipped)(globals()[wrapper](oracle, shipped))))
    return replaced(changes)


def _buffer_made(oracle: Oracle, shipped: Any) -> Any:
    def __init__(self: SlotBuffer, *args: Any, **kwargs: Any) -> None:
        shipped(self, *args, **kwargs)
        oracle.buffer = self

    return __init__


def _ledger_made(oracle: Oracle, shipped: Any) -> Any:
    def __init__(self: QueryLedger, *args: Any, **kwargs: Any) -> None:
        oracle.restored(kwargs.get("state"))
        oracle.ledger = self
        shipped(self, *args, **kwargs)

    return __init__


def _taken(oracle: Oracle, shipped: Any) -> Any:
    def take(self: QueryLedger, ticket: int) -> Any:
        query = shipped(self, ticket)
        oracle.issued(ticket, query)
        return query

    return take


def _settled(oracle: Oracle, shipped: Any) -> Any:
    def settle(self: QueryLedger, ticket: int, outcome: Any, **details: Any) -> None:
        try:
            shipped(self, ticket, outcome, **details)
        finally:
            oracle.settled(ticket, outcome)

    return settle


def _given_back(oracle: Oracle, shipped: Any) -> Any:
    def give_back(self: QueryLedger, ticket: int, error: Exception) -> None:
        try:
            shipped(self, ticket, error)
        finally:
            oracle.gave_back(ticket)

    return give_back


def _state(oracle: Oracle, shipped: Any) -> Any:
    def state(self: QueryLedger) -> dict[str, Any]:
        told = shipped(self)
        oracle.noted(told)
        return told

    return state


def _scored(oracle: Oracle, shipped: Any) -> Any:
    def scored(self: GrpoRecorder, header: Any) -> None:
        oracle.scored(header)
        shipped(self, header)

    return scored


def _committed(oracle: Oracle, shipped: Any) -> Any:
    def commit(self: CheckpointStore, *args: Any, **kwargs: Any) -> Any:
        oracle.committing()
        checkpoint = shipped(self, *args, **kwargs)
        oracle.committed()
        return checkpoint

    return commit


def _chosen(oracle: Oracle, shipped: Any) -> Any:
    def latest(self: CheckpointStore) -> Any:
        checkpoint = None
        try:
            checkpoint = shipped(self)
        finally:
            oracle.resuming(name_of(checkpoint.path) if checkpoint is not None else None)
        return checkpoint

    return latest


def name_of(checkpoint: Path) -> str:
    """The name that the learner gave a checkpoint when it saved it."""
    return str(json.loads((checkpoint / "rank_0.json").read_text())["nonce"])


def _published(oracle: Oracle, shipped: Any) -> Any:
    async def publish(self: WeightSync, version: Any) -> None:
        await shipped(self, version)
        oracle.publish_ended(version)

    return publish


def _pool_made(oracle: Oracle, shipped: Any) -> Any:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        shipped(self, *args, **kwargs)
        oracle.pools[type(self).__name__] = self

    return __init__


def _node_drained(oracle: Oracle, shipped: Any) -> Any:
    def drain_node(self: RolloutPool, node_id: str, deadline_s: float | None) -> None:
        shipped(self, node_id, deadline_s)  # what its engines had been given goes out to them
        oracle.node_leaves(node_id)

    return drain_node
