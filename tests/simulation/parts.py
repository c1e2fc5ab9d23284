"""Engines and reward workers that know the truth: with which weights they really compute.

Weights are names: "base", then a hash of the weights before and of what was trained (`simulation.ranks`). A
completion's text says who drew it and with which weights, which no shipped code reads; the oracle does.
Rewards follow from the text, so that everybody can compute them again.
"""

import asyncio
import json
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulation.actors import ActorProcess

from alphadrive.errors import EngineDiedError, RewardError, RolloutError, WeightSyncError
from alphadrive.types import (
    Completion,
    DrivingQuery,
    GroupHeader,
    RewardBreakdown,
    RolloutGroup,
    ScoredGroup,
    VersionSpan,
    WeightsFile,
    WeightVersion,
)
from cluster.headers import GroupReceipt, header_of, receipt_of
from rollout.settings import CANARY_TICKET, UpdateReceipt

if TYPE_CHECKING:
    from simulation.world import World

BASE = "base"
NUM_TOKENS = 4
SMALL_DIFFERENCE, LARGE_DIFFERENCE = 5e-6, 0.3
SLOWNESS = 40.0
IN_CANARY = ("engine dies in its canary", "engine hangs in its canary")


class SimulatedEngine:
    """Stands for `RolloutActor`."""

    def __init__(self, world: "World", process: ActorProcess) -> None:
        self._world, self._process = world, process
        self._held = self._computes = BASE
        self._version = WeightVersion(-1, -1)
        self._engine_id = ""
        self._slowness = 1.0
        self._is_core_dead = False
        self._tokens = 0
        self._running = asyncio.Event()
        self._running.set()
        self._sleep, self._uniform = process.sleep, process.chance.uniform

    @property
    def weights(self) -> str:
        """What the engine computes with."""
        return self._computes

    async def where(self, fault: str | None) -> tuple[int, str]:
        if fault == "no room for a worker":
            await self._sleep(self._uniform(5.0, 100.0))
        return 1, self._process.node

    async def start(self, fault: str | None, settings: Any, engine_id: str) -> int:
        await self._sleep(self._uniform(0.5, 8.0))
        if fault == "engine dies starting":
            await self._process.crash(fault)
        if fault == "engine hangs starting":
            await self._hang()
        model = Path(settings.model_folder) / "weights.json"
        self._held = self._computes = json.loads(model.read_text())["weights"] if model.is_file() else BASE
        self._version, self._engine_id = settings.initial_version, engine_id
        return 1

    async def generate(
        self, fault: str | None, ticket: int, query: DrivingQuery, sampling: Any
    ) -> tuple[GroupReceipt, RolloutGroup]:
        self._raise_if_dead()
        seconds = self._uniform(0.02, 0.8) if ticket < 0 else self._uniform(0.2, 4.0)
        drawn = [(self._version, self._computes)]
        await self._draw(seconds / 2)
        await self._misbehave(fault, query)
        drawn.append((self._version, self._computes))
        await self._draw(seconds / 2)
        group = self._group(ticket, query, sampling.num_samples, drawn)
        self._raise_if_dead()
        group = self._spoilt(fault, group)
        return receipt_of(group), group

    async def answer(self, fault: str | None, query: DrivingQuery, sampling: Any) -> str:
        await self._draw(self._uniform(0.1, 1.0))
        await self._misbehave(fault, query)
        return "<think>looked</think><answer>KEEP, STRAIGHT</answer>"

    async def update_weights(
        self, fault: str | None, weights: WeightsFile, queries: Sequence[DrivingQuery], sampling: Any
    ) -> tuple[Any, ...]:
        self._raise_if_dead()
        self._running.clear()
        await self._sleep(self._uniform(0.01, 0.1))
        if fault == "engine dies updating":
            await self._process.crash(fault)
        if fault == "engine hangs updating":
            await self._hang()
        if fault == "engine updates slowly":
            await self._sleep(self._world.config.rollout.sync_timeout_s * self._uniform(0.5, 4.0))
        try:
            self._take(fault, weights)
        finally:
            self._running.set()
        in_canary = fault if fault in IN_CANARY else None
        drawn = [await self.generate(in_canary, CANARY_TICKET, query, sampling) for query in queries]
        return UpdateReceipt(sha256=self._held, paused_s=0.05), *(group for _, group in drawn)

    async def health(self, fault: str | None) -> int:
        self._raise_if_dead()
        return self._tokens

    async def close(self, fault: str | None) -> None:
        await self._sleep(self._uniform(0.0, 0.5))

    def _raise_if_dead(self) -> None:
        if self._is_core_dead:
            raise EngineDiedError("EngineCore is gone")

    def _spoilt(self, fault: str | None, group: RolloutGroup) -> RolloutGroup:
        if fault == "engine answers with another ticket":
            return replace(group, ticket=group.ticket + 1000)
        if fault == "engine answers another query":
            return replace(group, query=self._world.query((group.query.row + 1) % self._world.num_rows))
        if fault == "engine answers with a short group":
            return replace(group, completions=group.completions[:1])
        if fault == "engine answers of another version":
            first = group.completions[0]
            version = WeightVersion(self._version.attempt, self._version.step + 7)
            span = VersionSpan(version=version, start=0, end=NUM_TOKENS)
            return replace(
                group, completions=(replace(first, weight_versions=(span,)),) * len(group.completions)
            )
        return group

    def _take(self, fault: str | None, weights: WeightsFile) -> None:
        if fault == "engine core dies":
            self._is_core_dead = True
            self._raise_if_dead()
        if fault == "engine refuses an update":
            raise WeightSyncError("update refused")
        path = Path(weights.path)
        if not path.is_file():
            raise WeightSyncError(f"{path}: no weights there")
        arrived = json.loads(path.read_text())["weights"]
        if fault == "weights do not arrive":
            return
        if fault == "weights arrive damaged":
            arrived = f"{arrived}~"
        self._held = arrived
        if fault != "weights arrive and are not used":
            self._computes = arrived
        self._version = weights.version

    async def _draw(self, seconds: float) -> None:
        await self._sleep(seconds * self._slowness)
        await self._running.wait()
        self._tokens += NUM_TOKENS

    async def _misbehave(self, fault: str | None, query: DrivingQuery) -> None:
        world = self._world
        if fault == "engine core dies":
            self._is_core_dead = True
            self._raise_if_dead()
        if fault in ("engine dies drawing", "engine dies in its canary", "engine dies in an evaluation"):
            await self._process.crash(fault)
        if fault in ("engine hangs drawing", "engine hangs in its canary"):
            await self._hang()
        if fault == "engine stalls drawing":
            self._process.freeze()
            asyncio.get_running_loop().call_later(self._uniform(1.0, 120.0), self._process.thaw)
            await self._sleep(0.0)
        if fault == "engine is slow":
            self._slowness = SLOWNESS
        if fault == "engine fails a query":
            raise RolloutError("this query failed")
        if fault == "engine raises something odd":
            raise ValueError("something odd")
        if query.row in world.poison_rows:
            world.faults.strike("poison query")
            await self._process.crash("poison query")
        if query.row in world.failing_rows:
            world.faults.strike("query that always fails")
            raise RolloutError("this query always fails")

    async def _hang(self) -> None:
        self._process.freeze()
        await self._sleep(0.0)

    def _group(
        self, ticket: int, query: DrivingQuery, num: int, drawn: list[tuple[WeightVersion, str]]
    ) -> RolloutGroup:
        (first, weights), (second, later_weights) = drawn
        middle = NUM_TOKENS if first == second else NUM_TOKENS // 2
        spans = [VersionSpan(version=first, start=0, end=middle)]
        if middle < NUM_TOKENS:
            spans.append(VersionSpan(version=second, start=middle, end=NUM_TOKENS))
        completion = Completion(
            text=f"{self._process.name}|{weights}|{later_weights}",
            token_ids=(1,) * NUM_TOKENS,
            rollout_logprobs=(-0.5,) * NUM_TOKENS,
            finish_reason="stop",
            weight_versions=tuple(spans),
        )
        return RolloutGroup(
            ticket=ticket,
            query=query,
            prompt_token_ids=(1,),
            completions=(completion,) * num,
            engine_id=self._engine_id,
        )


def drawn_by(group: RolloutGroup) -> tuple[str, list[str]]:
    """The truth about a group: its engine's process, and the weights its tokens were drawn with."""
    process, *weights = group.completions[0].text.split("|")
    return process, weights


def rewards_of(group: RolloutGroup, flat_share: float) -> list[float]:
    """The true rewards of a group: all the same in `flat_share` of the groups."""
    noise = zlib.crc32(f"{group.query.row} {group.completions[0].text}".encode())
    is_flat = noise % 1000 < 1000 * flat_share
    return [0.25 if is_flat else float((noise >> 10) + index) % 7 for index in range(len(group.completions))]


class SimulatedReward:
    """Stands for `RewardActor`."""

    def __init__(self, world: "World", process: ActorProcess) -> None:
        self._world, self._process = world, process
        self._is_up = False
        self._sleep, self._uniform = process.sleep, process.chance.uniform

    async def where(self, fault: str | None) -> tuple[int, str]:
        if fault == "no room for a worker":
            await self._sleep(self._uniform(5.0, 100.0))
        await self._sleep(0.0 if self._is_up else self._uniform(0.1, 2.0))
        self._is_up = True
        if fault == "reward worker dies starting":
            await self._process.crash(fault)
        return 1, self._process.node

    async def score(self, fault: str | None, group: RolloutGroup) -> tuple[GroupHeader, ScoredGroup]:
        world, row = self._world, group.query.row
        await self._sleep(self._uniform(0.01, 0.3))
        if fault == "reward worker dies":
            await self._process.crash(fault)
        if fault == "reward hangs" or row in world.hanging_rows:
            world.faults.strike("reward that always hangs") if row in world.hanging_rows else None
            self._process.freeze()
            await self._sleep(0.0)
        if fault == "reward is slow":
            await self._sleep(world.config.rewards.timeout_s * self._uniform(0.5, 3.0))
        if fault == "reward raises":
            raise RewardError("no finite number")
        if row in world.raising_rows:
            world.faults.strike("reward that always raises")
            raise RewardError("no finite number, ever")
        rewards = rewards_of(group, world.flat_share)
        scored = ScoredGroup(
            group=group,
            rewards=tuple(RewardBreakdown(terms={"plan": value}, total=value) for value in rewards),
            advantages=tuple(rewards),
        )
        return header_of(scored, None), scored

    async def flush(self, fault: str | None) -> None:
        await self._sleep(self._uniform(0.0, 0.2))
        if fault == "reward worker hangs writing":
            self._process.freeze()
            await self._sleep(0.0)

    async def close(self, fault: str | None) -> None:
        await self._sleep(self._uniform(0.0, 0.5))
