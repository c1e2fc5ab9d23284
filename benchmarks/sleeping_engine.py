"""An engine that sleeps instead of computing, for a learner that is real: its groups have the prompts, images
and rewards of real ones, its tokens are those of well-formed answers.

It draws `SEATS` groups at once, each in `draw_s` on average, and takes weights as the fake engine does: the
file is read and its digest proved. What it cannot do is compute log-probabilities: the canary's limit is set
aside by whoever uses it.
"""

import asyncio
import itertools
import random
from pathlib import Path
from typing import Any, Self

from alphadrive.data.parquet import DrivingDataset
from alphadrive.dataset_check import front_image_tokens
from alphadrive.processing import PromptProcessor
from alphadrive.types import Completion, DrivingQuery, RolloutGroup, VersionSpan
from cluster.actors import RolloutActor
from rollout.fake import FakeEngine, hashed_answer
from rollout.settings import EngineSettings, Sampling

SEATS = 16


class SleepingEngine(FakeEngine):
    """See the module. `draw_s` is set by the actor before anything is drawn."""

    draw_s = 0.0

    def __init__(self, settings: EngineSettings, engine_id: str, **options: Any) -> None:
        super().__init__(settings, engine_id, **options)
        self._processor = PromptProcessor(Path(settings.model_folder), settings.max_pixels)
        self._dataset = DrivingDataset(Path(settings.datasets["train"]))
        self._seats = asyncio.Semaphore(SEATS)
        # In every round of seats from half to one and a half of the mean time, each once, in some order.
        shares = [0.5 + (seat + 0.5) / SEATS for seat in range(SEATS)]
        random.Random(engine_id).shuffle(shares)
        self._shares = itertools.cycle(shares)
        self._prompts: dict[int, tuple[int, ...]] = {}

    @classmethod
    async def start(cls, settings: EngineSettings, engine_id: str) -> Self:
        """As `RolloutEngine.start`."""
        return cls(settings, engine_id)

    async def generate(
        self, ticket: int, query: DrivingQuery, sampling: Sampling, dataset: str = "train"
    ) -> RolloutGroup:
        """Sleep, then make up a group."""
        version = self.version
        if ticket >= 0:
            async with self._seats:
                await asyncio.sleep(self.draw_s * next(self._shares))
        return RolloutGroup(
            ticket=ticket,
            query=query,
            prompt_token_ids=self._prompt_ids(query),
            completions=tuple(
                self._made_up(query, index, sampling, version) for index in range(sampling.num_samples)
            ),
            engine_id=self.engine_id,
        )

    def _prompt_ids(self, query: DrivingQuery) -> tuple[int, ...]:
        if query.row not in self._prompts:
            num_tokens = front_image_tokens(self._processor, self._dataset.record(query.row))
            grid = (1, 1, num_tokens * self._processor.merge_size**2)
            ids = self._processor.expanded_ids(self._processor.prompt_ids(query), grid)
            self._prompts[query.row] = tuple(ids)
        return self._prompts[query.row]

    def _made_up(self, query: DrivingQuery, index: int, sampling: Sampling, version: Any) -> Completion:
        text = hashed_answer(query, index, version)
        ids = self._processor.completion_ids(text)[: sampling.max_new_tokens]
        return Completion(
            text=text,
            token_ids=tuple(ids),
            rollout_logprobs=(-1.0,) * len(ids),
            finish_reason="stop",
            weight_versions=(VersionSpan(version=version, start=0, end=len(ids)),),
        )


def sleeping_actor(draw_s: float) -> type[RolloutActor]:
    """The actor's class for engines that need so long for a group."""

    class SleepingActor(RolloutActor):
        """A `RolloutActor` around a sleeping engine."""

        async def start(self, settings: EngineSettings, engine_id: str) -> int:
            """As `RolloutActor.start`."""
            import os

            self._loop = asyncio.get_running_loop()
            self._engine = await SleepingEngine.start(settings, engine_id)  # type: ignore[assignment]
            self._engine.draw_s = draw_s  # type: ignore[attr-defined]
            return os.getpid()

    return SleepingActor
