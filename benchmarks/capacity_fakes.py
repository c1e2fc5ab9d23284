"""Engines and a learner that sleep, for `benchmarks/capacity_validation.py`: real actors of known speed.

An engine goes on token by token, as continuous batching does: up to `SEATS` sequences at once, and the more
of them, the longer a token takes. All else about it (weights, digest, canaries, versions) is `rollout.fake`.
"""

import asyncio
import hashlib
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alphadrive import metric_names as names
from alphadrive.config import Config
from alphadrive.types import DrivingQuery, RolloutGroup, ScoredGroup, StepResult, WeightsFile, WeightVersion
from cluster.actors import LearnerActor, RolloutActor
from rollout.fake import FakeEngine, write_fake_weights
from rollout.settings import CANARY_TICKET, EngineSettings, Sampling, UpdateReceipt

SEATS = 16
TOKEN_S, SEQUENCE_TOKEN_S = 0.012, 0.0005
PROMPT_STEPS = 6
SHORTEST, LONGEST = 20, 70
PAUSE_S = 0.06
STEP_S, LEARNER_TOKEN_S = 0.12, 1e-4
CANARY_S = 0.01
PROMPT_TOKENS = 48


def answer(query: DrivingQuery, index: int, version: WeightVersion) -> str:
    """A text that is as long as its query and place say."""
    noise = hashlib.sha256(f"{query.query_id} {query.seed} {index}".encode()).digest()
    return "x" * (SHORTEST + int.from_bytes(noise[:4], "big") % (LONGEST - SHORTEST))


class SleepingEngine(FakeEngine):
    """Draws as fast as it is told to."""

    def __init__(self, settings: EngineSettings, engine_id: str) -> None:
        super().__init__(settings, engine_id, answer=answer)
        self._running_sequences: list[list[Any]] = []
        self._queue: list[tuple[int, asyncio.Future[None]]] = []
        self._wake = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._go_on())

    async def generate(
        self, ticket: int, query: DrivingQuery, sampling: Sampling, dataset: str = "train"
    ) -> RolloutGroup:
        """Draw one group, all completions at once as far as there are seats."""
        started = self.version
        completions = tuple(
            self._completion(query, index, sampling, started) for index in range(sampling.num_samples)
        )
        await self._unless_failed(self._drawn([len(each.token_ids) for each in completions]))
        completions = tuple(
            self._completion(query, index, sampling, started) for index in range(sampling.num_samples)
        )
        self.groups_drawn += 1
        return RolloutGroup(
            ticket=ticket,
            query=query,
            prompt_token_ids=(1,) * PROMPT_TOKENS,
            completions=completions,
            engine_id=self.engine_id,
        )

    async def update_and_draw(
        self, weights: WeightsFile, queries: Sequence[DrivingQuery], sampling: Sampling
    ) -> tuple[UpdateReceipt, list[RolloutGroup]]:
        """Stand still for a while, then go on with new weights."""
        started_s = time.monotonic()
        self._running.clear()
        await asyncio.sleep(PAUSE_S)
        received = await self.update_weights(weights)
        paused_s = time.monotonic() - started_s
        groups = [await FakeEngine.generate(self, CANARY_TICKET, query, sampling) for query in queries]
        return UpdateReceipt(sha256=received, paused_s=paused_s), groups

    async def _drawn(self, lengths: Sequence[int]) -> None:
        ends = [asyncio.get_running_loop().create_future() for _ in lengths]
        self._queue += [(length + PROMPT_STEPS, end) for length, end in zip(lengths, ends, strict=True)]
        self._wake.set()
        await asyncio.gather(*ends)

    async def _go_on(self) -> None:
        while True:
            while self._queue and len(self._running_sequences) < SEATS:
                self._running_sequences.append(list(self._queue.pop(0)))
            if not self._running_sequences:
                self._wake.clear()
                await self._wake.wait()
                continue
            await self._running.wait()
            await asyncio.sleep(TOKEN_S + len(self._running_sequences) * SEQUENCE_TOKEN_S)
            self.tokens_generated += len(self._running_sequences)
            for sequence in self._running_sequences:
                sequence[0] -= 1
                if sequence[0] <= 0 and not sequence[1].done():
                    sequence[1].set_result(None)
            self._running_sequences = [each for each in self._running_sequences if each[0] > 0]


class SleepingRolloutActor(RolloutActor):
    """The shipped actor around such an engine."""

    async def start(self, settings: EngineSettings, engine_id: str) -> int:
        """As `RolloutActor`."""
        self._loop = asyncio.get_running_loop()
        self._engine = SleepingEngine(settings, engine_id)  # type: ignore[assignment]
        return os.getpid()


class SleepingRank:
    """A learner rank that takes its time, and computes what the engines compute."""

    def __init__(self, config: Config, *, rank: int, attempt: int = 0, **placing: Any) -> None:
        self.version = WeightVersion(attempt, 0)
        self._truth = FakeEngine(EngineSettings(model_folder="none"), "truth", answer=answer)
        self._random = random.Random(rank)

    def expect(self, rows: list[int]) -> None:
        """There are no images."""

    def step(self, groups: Sequence[ScoredGroup]) -> StepResult:
        """Sleep for a time that grows with the tokens, from nine to eleven tenths of it."""
        started_s = time.perf_counter()
        lengths = [len(each.token_ids) for scored in groups for each in scored.group.completions]
        tokens = sum(lengths) + PROMPT_TOKENS * len(groups)
        time.sleep((STEP_S + LEARNER_TOKEN_S * tokens) * self._random.uniform(0.9, 1.1))
        self.version = WeightVersion(self.version.attempt, self.version.step + 1)
        metrics = {
            names.UPDATE_S: time.perf_counter() - started_s,
            names.NUM_TOKENS: float(tokens),
            names.PROMPT_LENGTH_MEAN: float(PROMPT_TOKENS),
        }
        return StepResult(step=self.version.step, weight_version=self.version, metrics=metrics)

    def score(self, groups: Sequence[RolloutGroup]) -> list[list[list[float]]]:
        """The log-probabilities of canaries."""
        time.sleep(CANARY_S * len(groups))
        self._truth.version = self.version
        return [[list(each.rollout_logprobs) for each in self._again(group).completions] for group in groups]

    def export_weights(self, path: Path) -> WeightsFile:
        """A small file that differs by version."""
        return write_fake_weights(Path(path), self.version)

    def save_checkpoint(self, folder: Path) -> None:
        """Hardly anything."""
        (folder / "rank_0").write_text(str(self.version.step))

    def save_model(self, folder: Path) -> None:
        """A file of the name that is looked for."""
        folder.mkdir()
        (folder / "model.safetensors").write_text("weights")

    def _again(self, group: RolloutGroup) -> RolloutGroup:
        longest = max(len(each.token_ids) for each in group.completions)
        sampling = Sampling(num_samples=len(group.completions), max_new_tokens=longest)
        return asyncio.run(self._truth.generate(0, group.query, sampling))


class SleepingLearnerActor(LearnerActor):
    """The shipped actor around such a rank."""

    def start(self, stage: str, config: Config, placing: dict[str, Any], environment: dict[str, str]) -> None:
        """As `LearnerActor`."""
        self._rank = SleepingRank(config, **placing)
