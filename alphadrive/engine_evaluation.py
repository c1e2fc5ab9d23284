"""Evaluating a model folder on one vLLM engine, without Ray.

`EvalOptions` → `evaluate_model`, or `open_engine` → `evaluate_with` for each image mode. Judging is
in `alphadrive.evaluation` and `alphadrive.metrics`; the command in `alphadrive.eval_command`.
"""

import json
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from alphadrive.actions import Plan
from alphadrive.atomic import write_json, write_text
from alphadrive.config import GrpoConfig, ModelConfig, RolloutConfig
from alphadrive.data.parquet import DrivingDataset
from alphadrive.errors import ConfigError
from alphadrive.evaluation import EvalResult, evaluate, evaluate_samples
from alphadrive.image_controls import IMAGE_MODES, derangement, write_blank_copy
from alphadrive.metrics import VarietyMetrics, majority_baseline
from alphadrive.model_source import model_folder_of
from alphadrive.pairs import pairs_as_dict
from alphadrive.types import DrivingQuery

if TYPE_CHECKING:
    from rollout.engine import RolloutEngine


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalOptions:
    """What to evaluate and how. `model` may be a model folder, hub id, `tiny`, a checkpoint or a run.

    `samples` K > 0 also draws K answers a row at temperature 1 (pass@K), for the first `sample_rows` rows
    (all when None). `images` are the modes of `alphadrive.image_controls`, evaluated one after another
    by one engine.
    """

    model: str
    data: Path
    revision: str | None = None
    num_rows: int | None = None
    samples: int = 0
    sample_rows: int | None = None
    images: tuple[str, ...] = ("real",)
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    max_pixels: int = ModelConfig.max_pixels
    max_new_tokens: int = GrpoConfig.max_new_tokens
    max_num_seqs: int = RolloutConfig.max_num_seqs
    max_model_len: int = RolloutConfig.max_model_len
    kv_cache_bytes: int = RolloutConfig.kv_cache_bytes

    def __post_init__(self) -> None:
        unknown = set(self.images) - set(IMAGE_MODES)
        if unknown or not self.images:
            raise ConfigError(f"image modes {self.images}: expected some of {', '.join(IMAGE_MODES)}")
        for name, count, least in (
            ("--num-rows", self.num_rows, 1),
            ("--samples", self.samples, 0),
            ("--sample-rows", self.sample_rows, 1),
        ):
            if count is not None and count < least:
                raise ConfigError(f"{name} {count}: expected {least} or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalReport:
    """The outcome for one image mode. `variety` is None unless samples were asked for."""

    image: str
    greedy: EvalResult
    variety: VarietyMetrics | None


@asynccontextmanager
async def open_engine(options: EvalOptions) -> "AsyncIterator[RolloutEngine]":
    """Start an engine that can see the data of every image mode asked for; closes it at the end.

    Raises InputError for a model or data that cannot be used, before the engine starts.
    """
    model_folder = model_folder_of(options.model, options.revision)
    dataset = DrivingDataset(options.data, options.num_rows)
    from rollout.engine import RolloutEngine
    from rollout.settings import EngineSettings

    with tempfile.TemporaryDirectory(prefix="alphadrive-eval-") as scratch:
        datasets = {"real": str(options.data)}
        if "blank" in options.images:
            datasets["blank"] = f"{scratch}/blank"
            write_blank_copy(dataset, Path(datasets["blank"]), len(dataset))
        settings = EngineSettings(
            model_folder=str(model_folder),
            datasets=datasets,
            device=options.device,
            dtype=options.dtype,
            max_pixels=options.max_pixels,
            max_num_seqs=options.max_num_seqs,
            max_model_len=options.max_model_len,
            kv_cache_bytes=options.kv_cache_bytes,
            seed=options.seed,
        )
        engine = await RolloutEngine.start(settings, "eval")
        try:
            yield engine
        finally:
            await engine.close()


async def evaluate_with(
    engine: "RolloutEngine",
    options: EvalOptions,
    image: str = "real",
    on_answer: Callable[[], None] | None = None,
) -> EvalReport:
    """Evaluate one image mode on an engine from `open_engine(options)`."""
    from rollout.settings import Sampling

    dataset = DrivingDataset(options.data, options.num_rows)
    images = derangement(len(dataset), options.seed) if image == "shuffle" else range(len(dataset))
    greedy = Sampling(num_samples=1, temperature=0.0, max_new_tokens=options.max_new_tokens)

    async def draw(query: DrivingQuery, sampling: Sampling) -> list[str]:
        asked = replace(query, row=images[query.row])
        group = await engine.generate(
            query.row, asked, sampling, dataset="blank" if image == "blank" else "real"
        )
        return [completion.text for completion in group.completions]

    async def answer(query: DrivingQuery) -> str:
        return (await draw(query, greedy))[0]

    async def sample(query: DrivingQuery) -> list[str]:
        seed = (options.seed << 32) + query.row * options.samples
        return await draw(
            query,
            Sampling(num_samples=options.samples, max_new_tokens=options.max_new_tokens, seed=seed),
        )

    in_flight = 2 * options.max_num_seqs
    result = await evaluate(answer, dataset, max_concurrency=in_flight, on_answer=on_answer)
    variety = None
    if options.samples:
        variety = await evaluate_samples(
            sample, dataset, options.sample_rows, max_concurrency=in_flight, on_answer=on_answer
        )
    return EvalReport(image=image, greedy=result, variety=variety)


async def evaluate_model(
    options: EvalOptions, on_answer: Callable[[], None] | None = None
) -> list[EvalReport]:
    """Start one engine, evaluate every image mode asked for, close it."""
    async with open_engine(options) as engine:
        return [await evaluate_with(engine, options, image, on_answer) for image in options.images]


def write_eval(folder: Path, options: EvalOptions, reports: list[EvalReport]) -> None:
    """Write `eval.json` (every metric) and `predictions.jsonl` (every greedy answer) into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    plan, accuracy = majority_of(options)
    content: dict[str, object] = {
        "model": options.model,
        "data": str(options.data),
        "decoding": "greedy, strict parse",
        "majority": {"plan": str(plan), "planning_accuracy": accuracy},
    }
    for report in reports:
        content[report.image] = {
            "seconds": report.greedy.seconds,
            "greedy": report.greedy.metrics.as_dict(),
            "variety": None if report.variety is None else asdict(report.variety),
            "pairs": pairs_as_dict(report.greedy.predictions),
        }
    write_json(folder / "eval.json", content)
    lines = [
        json.dumps({"image": report.image, **asdict(prediction)})
        for report in reports
        for prediction in report.greedy.predictions
    ]
    write_text(folder / "predictions.jsonl", "\n".join(lines) + "\n")


def majority_of(options: EvalOptions) -> tuple[Plan, float]:
    """The best constant plan on the rows evaluated, and its planning accuracy."""
    dataset = DrivingDataset(options.data, options.num_rows)
    return majority_baseline([dataset.query(row) for row in range(len(dataset))])
