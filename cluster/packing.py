"""How many ranks and engines the nodes of a cluster can hold at once. Pure.

Totals do not tell: eight GPUs on four nodes hold no worker of four. A worker lies on one node; one that asks
for less than a GPU lies on one GPU, beside others as far as it goes. Others who use the nodes are not
counted: this is what can ever fit, not what is free. For `cluster.placement`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

WHOLE = 10_000
"""Ray counts resources in steps of this part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node and what it has in all. `name` is for people, `labels` what its pool is told by."""

    id: str = ""
    name: str = "this machine"
    cpus: float
    gpus: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)

    def is_in(self, pool: Mapping[str, str]) -> bool:
        """Whether it has all labels of a pool."""
        return all(self.labels.get(name) == value for name, value in pool.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """So many workers, each of which reserves so much on one node of a pool (no labels: of any)."""

    count: int
    cpus: float
    gpus: float
    pool: Mapping[str, str] = field(default_factory=dict)


def most_engines(nodes: Sequence[Node], ranks: Ask, engines: Ask) -> int | None:
    """The most engines (up to those asked for) that fit beside all ranks, over all ways to place the ranks;
    None where the ranks themselves do not fit.

    >>> nodes = [Node(cpus=8, gpus=2) for _ in range(4)]
    >>> most_engines(nodes, Ask(count=1, cpus=1, gpus=4), Ask(count=1, cpus=1, gpus=1)) is None
    True
    >>> most_engines(nodes, Ask(count=4, cpus=1, gpus=1), Ask(count=3, cpus=1, gpus=2))
    2
    """
    best = {0: 0}
    """By the number of ranks on the nodes so far: the most engines beside them there."""
    for node in nodes:
        beside = engines_beside(node, ranks, engines)
        after: dict[int, int] = {}
        for placed, found in best.items():
            for here, more in enumerate(beside[: ranks.count - placed + 1]):
                total = min(engines.count, found + more)
                after[placed + here] = max(total, after.get(placed + here, 0))
        best = after
    return best.get(ranks.count)


def most_ranks(nodes: Sequence[Node], ranks: Ask) -> int:
    """How many ranks (up to those asked for) fit, with nothing beside them."""
    nothing = Ask(count=0, cpus=0, gpus=0)
    return min(ranks.count, sum(len(engines_beside(node, ranks, nothing)) - 1 for node in nodes))


def engines_beside(node: Node, ranks: Ask, engines: Ask) -> list[int]:
    """Engines that fit on a node beside no rank, one rank, two ranks ... as many as it holds."""
    most = ranks.count if node.is_in(ranks.pool) else 0
    most_here = engines.count if node.is_in(engines.pool) else 0
    counts: list[int] = []
    cpus, gpus = round(node.cpus * WHOLE), [WHOLE] * math.floor(node.gpus)
    for num_ranks in range(most + 1):
        if num_ranks and not (_take(gpus, ranks.gpus) and (cpus := cpus - round(ranks.cpus * WHOLE)) >= 0):
            break
        counts.append(_fill(cpus, list(gpus), engines, most_here))
    return counts


def _fill(cpus: int, gpus: list[int], engines: Ask, most: int) -> int:
    each = round(engines.cpus * WHOLE)
    num = 0
    while num < most and (num + 1) * each <= cpus and _take(gpus, engines.gpus):
        num += 1
    return num


def _take(gpus: list[int], amount: float) -> bool:
    """Reserve GPUs as Ray does: whole ones, or a part of the fullest that still has room; whether it went.
    `gpus` holds what is free of each."""
    wanted = round(amount * WHOLE)
    if wanted >= WHOLE:
        free = [index for index, left in enumerate(gpus) if left == WHOLE][: wanted // WHOLE]
        for index in free:
            gpus[index] = 0
        return len(free) == wanted // WHOLE
    if wanted:
        fitting = [index for index, left in enumerate(gpus) if left >= wanted]
        if not fitting:
            return False
        gpus[min(fitting, key=gpus.__getitem__)] -= wanted
    return True
