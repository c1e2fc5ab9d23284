"""What a run asks of the cluster, compared with what its nodes have, before anything is placed.

    learner    a gang: all ranks at once, in `cluster.learner_pool`; what cannot hold them is refused
    engines    one by one, in `cluster.rollout_pool`; one must fit, the others join when there is room

Pure arithmetic on nodes the caller looked up (`cluster.inventory`). Without GPUs workers may share cores: a
worker too many costs time there, not correctness, and memory is the limit (`alphadrive.capacity`).
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from alphadrive.config import Config
from alphadrive.errors import ResourceError
from alphadrive.pools import parse_pool, pool_text
from cluster.packing import Ask, Node, most_engines, most_ranks

PLACING_S = 50.0
"""How long the learner, and after it the first engine, may wait for room that others hold; with what Ray
itself needs, a run that cannot be placed ends within a minute."""
NO_ROOM_REMEDY = (
    "End or shrink what holds the rest, ask for less, or wait longer with cluster.wait_for_nodes_s"
)
SHRINK = 0.95
LEAST_SHARE = 0.001
_MOST_SHAPES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """What each actor reserves and where, and what the user should know about it."""

    cpus_per_engine: float
    gpus_per_engine: float
    cpus_per_rank: float
    gpus_per_rank: float
    threads_per_rank: int
    learner_pool: dict[str, str] = field(default_factory=dict)
    rollout_pool: dict[str, str] = field(default_factory=dict)
    placing_s: float = PLACING_S
    """How long the learner and the first engine may wait for a place at the start."""
    table: str | None = None
    """What is asked for and what there is; None where it is one machine without GPUs."""
    note: str | None = None

    def rank_resources(self) -> dict[str, float]:
        """One learner rank's bundle."""
        return _resources(max(self.cpus_per_rank, 0.01), self.gpus_per_rank)

    def engine_resources(self) -> dict[str, float]:
        """What one engine reserves."""
        return _resources(self.cpus_per_engine, self.gpus_per_engine)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A kind of worker, with the keys that ask for it."""

    count_key: str
    gpus_key: str
    cpus_key: str
    pool_key: str
    ask: Ask

    def row(self, nodes: Sequence[Node]) -> tuple[str, ...]:
        ask = self.ask
        there = [node for node in nodes if node.is_in(ask.pool)]
        return (
            f"{self.count_key}={ask.count} x ({self.gpus_key}={ask.gpus:g}, {self.cpus_key}={ask.cpus:g})",
            f"{ask.count * ask.gpus:g} GPUs, {ask.count * ask.cpus:g} CPUs",
            f"{sum(node.gpus for node in there):g} GPUs, {sum(node.cpus for node in there):g} CPUs on "
            f"{len(there)} of {len(nodes)} nodes",
            pool_text(ask.pool),
        )


def num_engines(config: Config, stage: str) -> int:
    """Engines a stage needs: SFT needs none."""
    return config.rollout.num_workers if stage == "grpo" else 0


def needs_text(resources: dict[str, float]) -> str:
    """Resources for people: `1 GPU and 4 CPUs`."""
    names = [name for name in ("GPU", "CPU") if resources.get(name)]
    words = [f"{resources[name]:g} {name}{'s' if resources[name] != 1 else ''}" for name in names]
    return " and ".join(words) or "nothing"


def plan_placement(config: Config, stage: str, nodes: Sequence[Node]) -> Placement:
    """Reservations for `stage` (`grpo` or `sft`) on these nodes. Without GPUs as many engines as
    `rollout.autoscale` may start share the cores; with GPUs one must fit, and more start when they do.

    Raises ResourceError with all that is asked for and all that there is when the ranks, or the first engine
    beside them, can never fit; with `cluster.wait_for_nodes_s` nodes may yet join, and nothing is refused.
    """
    learner, rollout = _asked(config, stage)
    ranks, engines = learner.ask, rollout.ask
    fitting = most_engines(nodes, ranks, engines)
    note = shared = None
    if (fitting is None or fitting < engines.count) and not (ranks.gpus or engines.gpus):
        shared = _sharing_cores(nodes, learner, rollout)
    if shared is not None:
        ranks, engines, note = shared
        fitting = engines.count
    table = _table([learner, rollout] if engines.count else [learner], nodes)
    problem = _problem(nodes, learner, rollout, fitting)
    if stage == "grpo" and not any(node.is_in(_pool(config, "reward")) for node in nodes):
        problem = problem or _no_node("cluster.reward_pool", _pool(config, "reward"))
    if problem and not config.cluster.wait_for_nodes_s:
        raise ResourceError(
            f"{problem}\n{table}\nLower what is asked for, or add nodes; where nodes join by themselves, say "
            "with cluster.wait_for_nodes_s how long to wait for them"
        )
    if problem:
        note = f"{problem}; nodes that join within {config.cluster.wait_for_nodes_s:g} s are waited for"
    elif fitting is not None and fitting < engines.count:
        note = (
            f"{rollout.count_key}={engines.count}, and the nodes have room for {fitting} beside the learner: "
            f"the run starts with {fitting} or fewer, the others join when there is room"
        )
    return Placement(
        cpus_per_engine=engines.cpus,
        gpus_per_engine=engines.gpus,
        cpus_per_rank=ranks.cpus,
        gpus_per_rank=ranks.gpus,
        threads_per_rank=max(1, int(config.learner.cpus_per_rank)),
        learner_pool=dict(ranks.pool),
        rollout_pool=_pool(config, "rollout"),
        placing_s=max(PLACING_S, config.cluster.wait_for_nodes_s),
        table=table if len(nodes) > 1 or ranks.gpus or engines.gpus else None,
        note=note,
    )


def _asked(config: Config, stage: str) -> tuple[_Asked, _Asked]:
    rollout, learner = config.rollout, config.learner
    engines, key = num_engines(config, stage), "rollout.num_workers"
    if engines and not (rollout.gpus_per_worker or learner.gpus_per_rank) and rollout.autoscale.max:
        engines, key = rollout.autoscale.max, "rollout.autoscale.max"
    return (
        _Asked(
            count_key="learner.num_ranks",
            gpus_key="gpus_per_rank",
            cpus_key="cpus_per_rank",
            pool_key="cluster.learner_pool",
            ask=Ask(
                count=learner.num_ranks,
                cpus=learner.cpus_per_rank,
                gpus=learner.gpus_per_rank,
                pool=_pool(config, "learner"),
            ),
        ),
        _Asked(
            count_key=key,
            gpus_key="gpus_per_worker",
            cpus_key="cpus_per_worker",
            pool_key="cluster.rollout_pool",
            ask=Ask(
                count=engines,
                cpus=rollout.cpus_per_worker,
                gpus=rollout.gpus_per_worker,
                pool=_pool(config, "rollout") if engines else {},
            ),
        ),
    )


def _pool(config: Config, kind: str) -> dict[str, str]:
    return parse_pool(f"cluster.{kind}_pool", getattr(config.cluster, f"{kind}_pool"))


def _sharing_cores(nodes: Sequence[Node], learner: _Asked, rollout: _Asked) -> tuple[Ask, Ask, str] | None:
    """Ranks and engines that reserve less, so that all fit, and the words that say so; None where they do not
    fit however little they reserve."""
    ranks, engines = learner.ask, rollout.ask
    usable = [node for node in nodes if node.is_in(ranks.pool) or node.is_in(engines.pool)]
    num_cpus = sum(node.cpus for node in usable)
    asked = ranks.count * ranks.cpus + engines.count * engines.cpus
    share = min(1.0, num_cpus / asked) if asked else 0.0
    while share > LEAST_SHARE:
        ranks = replace(learner.ask, cpus=_share(learner.ask.cpus, share))
        engines = replace(rollout.ask, cpus=_share(rollout.ask.cpus, share))
        if most_engines(nodes, ranks, engines) == engines.count:
            break
        share *= SHRINK
    else:
        return None
    arithmetic = f"{learner.count_key}={ranks.count} x {learner.ask.cpus:g}"
    if engines.count:
        arithmetic = f"{rollout.count_key}={engines.count} x {rollout.ask.cpus:g} + {arithmetic}"
    note = (
        f"{ranks.count + engines.count} workers share {num_cpus:g} CPUs ({arithmetic} = {asked:g} asked "
        "for): correct, but each is slower than alone"
    )
    return ranks, engines, note


def _problem(nodes: Sequence[Node], learner: _Asked, rollout: _Asked, fitting: int | None) -> str | None:
    """Why nothing can be placed, if so."""
    for asked in (learner, rollout) if rollout.ask.count else (learner,):
        ask, each = asked.ask, needs_text(_resources(asked.ask.cpus, asked.ask.gpus))
        there = [node for node in nodes if node.is_in(ask.pool)]
        if not there:
            return _no_node(asked.pool_key, ask.pool)
        if not most_ranks(there, replace(ask, count=1)):
            where = f"{asked.pool_key}={pool_text(ask.pool)}" if ask.pool else "any node"
            return f"{each} for one of {asked.count_key}={ask.count} are on no single node ({where})"
    if fitting is None:
        ranks = learner.ask
        return (
            f"{learner.count_key}={ranks.count}: only {most_ranks(nodes, ranks)} ranks of "
            f"{needs_text(_resources(ranks.cpus, ranks.gpus))} fit on the nodes"
        )
    if rollout.ask.count and not fitting:
        return (
            f"{rollout.count_key}={rollout.ask.count}: beside the learner's ranks there is room for no engine"
        )
    return None


def _no_node(key: str, pool: Mapping[str, str]) -> str:
    labels = pool_text(pool)
    return (
        f"{key}={labels}: no node has these labels (nodes get theirs from `ray start --labels {labels}`; "
        "leave the key empty for any node)"
    )


def _table(asked: Sequence[_Asked], nodes: Sequence[Node]) -> str:
    rows = [("asked for", "in all", "there are", "nodes with"), *(each.row(nodes) for each in asked)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    shapes = Counter((node.gpus, node.cpus, _own_labels(node)) for node in nodes)
    lines += [
        f"  {number} x node with {gpus:g} GPUs, {cpus:g} CPUs{f', {labels}' if labels else ''}"
        for (gpus, cpus, labels), number in shapes.most_common(_MOST_SHAPES)
    ]
    if len(shapes) > _MOST_SHAPES:
        lines.append(f"  and {len(shapes) - _MOST_SHAPES} other kinds of nodes")
    return "\n".join(lines)


def _own_labels(node: Node) -> str:
    labels = {name: value for name, value in node.labels.items() if not name.startswith("ray.io/")}
    return pool_text(labels) if labels else ""


def _resources(cpus: float, gpus: float) -> dict[str, float]:
    return {name: amount for name, amount in (("CPU", cpus), ("GPU", gpus)) if amount}


def _share(amount: float, share: float) -> float:
    return amount if share >= 1 else math.floor(amount * share * 100) / 100
