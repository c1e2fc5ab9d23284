"""Stand-ins for engines, reward workers and the learner's rank in `benchmarks/driver_scaling.py`: actors
that wait, and groups of full size that nobody opens.
"""

import asyncio
import os
import pickle
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray

from alphadrive.config import Config
from alphadrive.types import (
    Completion,
    DrivingQuery,
    GroupHeader,
    RolloutGroup,
    StepResult,
    VersionSpan,
    WeightVersion,
)
from cluster.actors import CONTROL, LearnerActor, RolloutActor, Scores, where
from cluster.batches import Pick, unpacked
from cluster.headers import GroupReceipt
from rollout.settings import EngineSettings, Sampling

GROUP_SIZE = 8
COMPLETION_TOKENS, PROMPT_TOKENS = 200, 700
SEATS = 32
"""Groups that an engine draws at once: 256 sequences."""


def query_of(row: int) -> DrivingQuery:
    """A query as the datasets have them."""
    return DrivingQuery(
        query_id=f"scene-{row:05d}",
        row=row,
        speed_mps=5.0,
        navigation="turn left",
        plans=("KEEP, LEFT_TURN",),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A group of full size that stays closed."""

    ticket: int
    query: DrivingQuery
    version: WeightVersion
    content: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class DatedSampling(Sampling):
    """Tells the engine which weights it has: there is no weight sync here."""

    version: WeightVersion


def full_group(ticket: int, query: DrivingQuery) -> RolloutGroup:
    """A group as large as they come."""
    numbers = random.Random(ticket)
    span = VersionSpan(version=WeightVersion(0, 0), start=0, end=COMPLETION_TOKENS)
    completions = tuple(
        Completion(
            text="".join(numbers.choices("abcdefghij klmno", k=4 * COMPLETION_TOKENS)),
            token_ids=tuple(numbers.randrange(1000, 150_000) for _ in range(COMPLETION_TOKENS)),
            rollout_logprobs=tuple(-numbers.random() for _ in range(COMPLETION_TOKENS)),
            finish_reason="stop",
            weight_versions=(span,),
        )
        for _ in range(GROUP_SIZE)
    )
    prompt = tuple(numbers.randrange(1000, 150_000) for _ in range(PROMPT_TOKENS))
    return RolloutGroup(
        ticket=ticket, query=query, prompt_token_ids=prompt, completions=completions, engine_id=""
    )


class WaitingEngine(RolloutActor):
    """An engine that waits: `rate` groups a second while it has `SEATS` of them or more."""

    def __init__(self, rate: float) -> None:
        self._draw_s = SEATS / rate

    async def start(self, settings: EngineSettings, engine_id: str) -> int:
        """Make what it will return."""
        self._loop = asyncio.get_running_loop()
        self._engine_id = engine_id
        self._seats = asyncio.Semaphore(SEATS)
        self._numbers = random.Random(engine_id)
        self._num_drawn = 0
        self._content = pickle.dumps(full_group(0, query_of(0)))
        return os.getpid()

    async def generate(
        self, ticket: int, query: DrivingQuery, sampling: "DatedSampling"
    ) -> tuple[GroupReceipt, Packed]:
        """Wait; groups take from half to one and a half of the mean time."""
        async with self._seats:
            await asyncio.sleep(self._draw_s * self._numbers.uniform(0.5, 1.5))
        self._num_drawn += 1
        receipt = GroupReceipt(
            ticket=ticket,
            query_id=query.query_id,
            engine_id=self._engine_id,
            num_completions=sampling.num_samples,
            oldest_version=sampling.version,
            newest_version=sampling.version,
            problem=None,
        )
        return receipt, Packed(ticket=ticket, query=query, version=sampling.version, content=self._content)

    @ray.method(concurrency_group=CONTROL)
    async def health(self) -> int:
        """Groups drawn."""
        return self._num_drawn

    @ray.method(concurrency_group=CONTROL)
    async def close(self) -> None:
        """Nothing to close."""


class QuickRewards:
    """A reward worker that knows the result."""

    def where(self) -> tuple[int, str]:
        """As `RewardActor`."""
        return where()

    def score(self, picks: Sequence[Pick], *batches: Sequence[Packed]) -> tuple[Scores, tuple[Packed, ...]]:
        """Rewards that differ."""
        started_s = time.monotonic()
        groups = unpacked(picks, batches)
        headers = [header_of(group) for group in groups]
        return Scores(headers, time.monotonic() - started_s), tuple(groups)

    def flush(self) -> None:
        """Nothing is written."""

    def close(self) -> None:
        """Nothing is held."""


def header_of(group: Packed) -> GroupHeader:
    """The header of a group with the terms of the `strict` rewards."""
    terms = {"plan": 0.5, "diversity": 0.1, "format": 0.25}
    return GroupHeader(
        ticket=group.ticket,
        query_id=group.query.query_id,
        row=group.query.row,
        weight_version=group.version,
        reward_mean=0.5,
        reward_std=0.3,
        reward_min=0.0,
        reward_max=1.0,
        term_means=terms,
        term_stds=terms,
        num_tokens=GROUP_SIZE * COMPLETION_TOKENS,
        scored=None,
    )


class QuickRank(LearnerActor):
    """A rank that trains on nothing, at once."""

    def start(self, stage: str, config: Config, placing: dict[str, Any], environment: dict[str, str]) -> None:
        """Nothing to load."""
        self._step = 0

    def expect(self, rows: list[int]) -> None:
        """There are no images."""

    def step(self, picks: Sequence[Pick], *batches: Any) -> StepResult:
        """A step."""
        self._step += 1
        return StepResult(step=self._step, weight_version=WeightVersion(0, self._step), metrics={"loss": 0.5})
