"""Asking a model folder about a dataset on one vLLM engine, without Ray.

    EvalOptions ─▶ open_engine ─▶ greedy answers ─▶ samples ─▶ greedy answers under each ablation ─▶ Answers

Called by `alphadrive eval` and `alphadrive predict`. What the answers are worth is computed in
`alphadrive.eval_figures`.
"""

import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from alphadrive.ablations import Ablation
from alphadrive.data.parquet import DrivingDataset
from alphadrive.engine_arguments import EngineOptions
from alphadrive.errors import ConfigError
from alphadrive.evaluation import Answered, ask
from alphadrive.image_controls import derangement, write_blank_copy
from alphadrive.model_source import model_folder_of
from alphadrive.types import DrivingQuery

if TYPE_CHECKING:
    from rollout.engine import RolloutEngine
    from rollout.settings import Sampling

_BLANK = Ablation("image", "blank")
_SHUFFLE = Ablation("image", "shuffle")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalOptions:
    """What to ask and how.

    The first `num_rows` rows (all when None) are answered greedily, and again under each of `ablations`.
    `samples` K > 0 also draws K answers a row at temperature 1, for the first `sample_rows` rows.
    """

    engine: EngineOptions
    data: Path
    num_rows: int | None = None
    samples: int = 0
    sample_rows: int | None = None
    ablations: tuple[Ablation, ...] = ()

    def __post_init__(self) -> None:
        for name, count, least in (
            ("--num-rows", self.num_rows, 1),
            ("--samples", self.samples, 0),
            ("--sample-rows", self.sample_rows, 1),
        ):
            if count is not None and count < least:
                raise ConfigError(f"{name} {count}: expected {least} or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelAnswers:
    """What a model said: to the real input, and greedily under each ablation, rows in order. `seconds` is
    the time of the greedy answers to the real input alone."""

    answers: tuple[Answered, ...]
    ablated: dict[Ablation, tuple[Answered, ...]]
    seconds: float


@asynccontextmanager
async def open_engine(options: EvalOptions) -> "AsyncIterator[RolloutEngine]":
    """Start an engine that can see the data of every ablation asked for; closes it at the end.

    Raises InputError for a model or data that cannot be used, before the engine starts.
    """
    asked = options.engine
    model_folder = model_folder_of(asked.model, asked.revision)
    dataset = DrivingDataset(options.data, options.num_rows)
    check_ablated_lengths(options, model_folder, dataset)
    from rollout.engine import RolloutEngine
    from rollout.environment import stay_on_loopback
    from rollout.settings import EngineSettings

    with tempfile.TemporaryDirectory(prefix="alphadrive-eval-") as scratch:
        datasets = {"real": str(options.data)}
        if _BLANK in options.ablations:
            datasets["blank"] = f"{scratch}/blank"
            write_blank_copy(dataset, Path(datasets["blank"]), len(dataset))
        settings = EngineSettings(
            model_folder=str(model_folder),
            datasets=datasets,
            device=asked.device,
            dtype=asked.dtype,
            max_pixels=asked.max_pixels,
            max_num_seqs=asked.max_num_seqs,
            max_model_len=asked.max_model_len,
            kv_cache_bytes=asked.kv_cache_bytes,
            seed=asked.seed,
            with_trajectory=asked.trajectory,
        )
        stay_on_loopback()
        engine = await RolloutEngine.start(settings, "eval")
        try:
            yield engine
        finally:
            await engine.close()


class Asker:
    """Asks one engine from `open_engine(options)`, keeping twice as many requests waiting as it draws at
    once, so that it never runs dry while an image is decoded."""

    def __init__(
        self, engine: "RolloutEngine", options: EvalOptions, on_answer: Callable[[], None] | None = None
    ) -> None:
        self._engine = engine
        self._options = options
        self._on_answer = on_answer
        self._dataset = DrivingDataset(options.data, options.num_rows)
        self._image_rows = _image_rows(options, len(self._dataset))

    async def greedy(self, ablation: Ablation | None = None) -> tuple[Answered, ...]:
        """The greedy answer to every row, with one input changed where an ablation is given."""
        from rollout.settings import Sampling

        sampling = Sampling(
            num_samples=1, temperature=0.0, max_new_tokens=self._options.engine.max_new_tokens
        )

        async def answer(query: DrivingQuery) -> Sequence[str]:
            return await self._draw(query, sampling, ablation)

        asked = await self._ask(answer, None)
        return tuple(Answered(query=query, text=texts[0]) for query, texts in asked)

    async def sampled(self) -> list[tuple[str, ...]]:
        """K answers at temperature 1 to each of the first `sample_rows` rows."""
        from rollout.settings import Sampling

        options = self._options

        async def answer(query: DrivingQuery) -> Sequence[str]:
            seed = (options.engine.seed << 32) + query.row * options.samples
            tokens = options.engine.max_new_tokens
            return await self._draw(
                query, Sampling(num_samples=options.samples, max_new_tokens=tokens, seed=seed), None
            )

        return [tuple(texts) for _, texts in await self._ask(answer, options.sample_rows)]

    async def _ask(
        self, answer: Callable[[DrivingQuery], Awaitable[Sequence[str]]], num_rows: int | None
    ) -> list[tuple[DrivingQuery, Sequence[str]]]:
        in_flight = 2 * self._options.engine.max_num_seqs
        return await ask(
            answer, self._dataset, num_rows, max_concurrency=in_flight, on_answer=self._on_answer
        )

    async def _draw(self, query: DrivingQuery, sampling: "Sampling", ablation: Ablation | None) -> list[str]:
        asked = query if ablation is None else ablation.of(query)
        if ablation == _SHUFFLE:
            asked = replace(asked, row=self._image_rows[query.row])
        dataset = "blank" if ablation == _BLANK else "real"
        group = await self._engine.generate(query.row, asked, sampling, dataset=dataset)
        return [completion.text for completion in group.completions]


async def ask_model(options: EvalOptions, on_answer: Callable[[], None] | None = None) -> ModelAnswers:
    """Start one engine, ask everything that is asked for, close it. `on_answer` is called after each answer
    (and each K samples)."""
    async with open_engine(options) as engine:
        asker = Asker(engine, options, on_answer)
        started_s = time.monotonic()
        answers = await asker.greedy()
        seconds = time.monotonic() - started_s
        if options.samples:
            samples = await asker.sampled()
            sampled = [replace(one, samples=texts) for one, texts in zip(answers, samples, strict=False)]
            answers = (*sampled, *answers[len(sampled) :])
        ablated = {ablation: await asker.greedy(ablation) for ablation in options.ablations}
        return ModelAnswers(answers=answers, ablated=ablated, seconds=seconds)


def check_ablated_lengths(options: EvalOptions, model_folder: Path, dataset: DrivingDataset) -> None:
    """Refuse ablations that make a prompt too long: another row's image may be larger, and 'no
    navigation' longer than what it stands for. Raises ConfigError naming the row."""
    texts = [ablation for ablation in options.ablations if ablation != _BLANK]
    if not texts:
        return
    from alphadrive.dataset_check import front_image_tokens
    from alphadrive.processing import PromptProcessor

    asked = options.engine
    processor = PromptProcessor(model_folder, asked.max_pixels, asked.trajectory)
    image_tokens = [front_image_tokens(processor, record) for record in dataset.records()]
    image_rows = _image_rows(options, len(dataset))
    lengths: dict[tuple[object, ...], int] = {}
    for ablation in texts:
        for row in range(len(dataset)):
            query = ablation.of(dataset.query(row))
            key = (query.withheld, f"{query.speed_mps:.1f}", query.navigation)
            if key not in lengths:
                lengths[key] = len(processor.prompt_ids(query)) - 1
            image = image_tokens[image_rows[row] if ablation == _SHUFFLE else row]
            total = lengths[key] + image + asked.max_new_tokens
            if total > asked.max_model_len:
                raise ConfigError(
                    f"--ablate {ablation}: {dataset.where(row)}: the prompt has {lengths[key]} text + "
                    f"{image} image tokens, + --max-new-tokens {asked.max_new_tokens} = {total}, more than "
                    f"--max-model-len {asked.max_model_len}; raise it or lower --max-pixels"
                )


def _image_rows(options: EvalOptions, num_rows: int) -> Sequence[int]:
    return derangement(num_rows, options.engine.seed) if _SHUFFLE in options.ablations else range(num_rows)
