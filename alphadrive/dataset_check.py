"""Checking a dataset against a model: every row valid, and how long prompts and answers get.

A dataset found valid is not walked again until it, the model's text side or `model.max_pixels`
changes. Called by `alphadrive.preflight`, which judges the lengths.
"""

import hashlib
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alphadrive.data.checks import FRONT_CAMERA
from alphadrive.data.parquet import DrivingDataset
from alphadrive.data.records import DrivingRecord
from alphadrive.data.validate import iter_problems, raise_problems
from alphadrive.data.verdicts import recall_verdict, remember_verdict, verdict_key
from alphadrive.errors import DataError
from alphadrive.prompts import answer_text
from alphadrive.trajectory import waypoints_problem
from alphadrive.types import DrivingQuery

if TYPE_CHECKING:
    from alphadrive.processing import PromptProcessor

logger = logging.getLogger(__name__)

_TEXT_SIDE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
)
_MAX_REMEMBERED_PROMPTS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetLengths:
    """What a walk over a valid dataset found. `*_where` say at which row (file and row).

    `longest_prompt` counts text and image tokens, `longest_sample` the recorded answer beside them;
    `without_reasoning_where` is the first row that has none.
    """

    num_rows: int
    longest_prompt: int = 0
    longest_prompt_image: int = 0
    longest_prompt_where: str = ""
    longest_sample: int = 0
    longest_sample_where: str = ""
    without_reasoning_where: str | None = None


def check_dataset(
    folder: Path,
    model_folder: Path,
    *,
    max_pixels: int,
    num_rows: int | None = None,
    with_trajectory: bool = False,
    remember: bool = True,
) -> DatasetLengths:
    """Validate every row that is used, with the model's tokenizer; quick when nothing has changed since.

    `with_trajectory` asks for waypoints in every row. A dataset that is soon gone need not be remembered
    (`remember`). Raises DataError with all problems.
    """
    DrivingDataset(folder, num_rows)
    against = [f"max_pixels={max_pixels}", f"num_rows={num_rows}", _text_side_hash(model_folder)]
    against += ["with_trajectory"] if with_trajectory else []
    verdict = verdict_key(folder, against)
    remembered = recall_verdict(verdict)
    if remembered is not None:
        try:
            return DatasetLengths(**remembered)
        except TypeError:
            logger.info("%s: a verdict of another version was found; checking again", folder)
    from alphadrive.processing import PromptProcessor

    logger.info("%s: checking every row", folder)
    processor = PromptProcessor(model_folder, max_pixels, with_trajectory)
    lengths = _Lengths(processor)
    problems = iter_problems(folder, processor.special_tokens, num_rows, lengths.check)
    raise_problems(problems, str(folder))
    found = lengths.found()
    if remember:
        remember_verdict(verdict, asdict(found))
    return found


def _text_side_hash(model_folder: Path) -> str:
    digest = hashlib.sha256()
    for name in _TEXT_SIDE:
        if (model_folder / name).is_file():
            digest.update(name.encode() + (model_folder / name).read_bytes())
    return digest.hexdigest()


def front_image_tokens(processor: "PromptProcessor", record: DrivingRecord) -> int:
    """Vision tokens of the latest front image of a valid record."""
    front = max(
        (image for image in record.images if image.camera == FRONT_CAMERA), key=lambda image: image.dt_s
    )
    return processor.num_image_tokens(front.width, front.height)


class _Lengths:
    """Measures the rows of a dataset as validation walks over them."""

    def __init__(self, processor: "PromptProcessor") -> None:
        self._processor = processor
        self._text_tokens: dict[tuple[str, str], int] = {}
        self._values: dict[str, Any] = {"num_rows": 0}

    def check(self, where: str, record: DrivingRecord) -> list[str]:
        """Take one valid record into account; returns what makes it unusable with this model."""
        values = self._values
        values["num_rows"] += 1
        waypoints = record.waypoints if self._processor.with_trajectory else None
        if self._processor.with_trajectory and (problem := waypoints_problem(record.waypoints)):
            return [problem]
        try:
            image_tokens = front_image_tokens(self._processor, record)
            prompt = self._num_text_tokens(record) + image_tokens
        except DataError as error:
            return [f"prompt: {error}"]
        if prompt > values.get("longest_prompt", 0):
            values.update(
                longest_prompt=prompt, longest_prompt_image=image_tokens, longest_prompt_where=where
            )
        if record.reasoning is None:
            values.setdefault("without_reasoning_where", where)
            return []
        plan = max((*record.plans, record.teacher_plan or ""), key=len)
        sample = prompt + len(self._processor.completion_ids(answer_text(record.reasoning, plan, waypoints)))
        if sample > values.get("longest_sample", 0):
            values.update(longest_sample=sample, longest_sample_where=where)
        return []

    def found(self) -> DatasetLengths:
        return DatasetLengths(**self._values)

    def _num_text_tokens(self, record: DrivingRecord) -> int:
        key = (f"{record.speed_mps:.1f}", record.navigation)
        if key not in self._text_tokens:
            query = DrivingQuery(
                query_id=record.query_id,
                row=0,
                speed_mps=record.speed_mps,
                navigation=record.navigation,
                plans=record.plans,
            )
            if len(self._text_tokens) >= _MAX_REMEMBERED_PROMPTS:
                self._text_tokens.clear()
            self._text_tokens[key] = len(self._processor.prompt_ids(query)) - 1
        return self._text_tokens[key]
