"""From dataset rows to token rows, pixels included, prepared ahead in background threads.

    main thread     ── forward, backward of microbatch i ──▶
    reader thread   ── patches and tensors of microbatch i+1 ──▶   (at most `AHEAD` microbatches held)
    image workers   ── decode and fit, see `learner.images` ──▶

Pixels are read by every rank itself: they never travel with the groups.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from torch import Tensor

from alphadrive.data.parquet import DrivingDataset
from alphadrive.data.records import DrivingRecord
from alphadrive.dataset_check import front_image_tokens
from alphadrive.errors import DataError, LearnerError
from alphadrive.processing import PromptProcessor
from alphadrive.prompts import answer_text
from alphadrive.trajectory import waypoints_problem
from alphadrive.types import RolloutGroup
from learner.batch import Grid, TokenRow
from learner.images import FittedImages
from learner.vision import FrozenFeatures, ImageFeatures

AHEAD = 2

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")


@dataclass(frozen=True, slots=True, kw_only=True)
class SftTarget:
    """A supervised sample before its pixels are read: one image placeholder in `prompt_ids`."""

    row: int
    prompt_ids: list[int]
    completion_ids: list[int]
    num_image_tokens: int

    @property
    def num_tokens(self) -> int:
        """Prompt, image and completion tokens."""
        return len(self.prompt_ids) - 1 + self.num_image_tokens + len(self.completion_ids)


class RowReader:
    """Makes token rows from a dataset folder. Safe to use from one background thread. `close` it.

    An image whose features are in `frozen_features` comes without its pixels, and is not read at all.
    """

    def __init__(
        self,
        dataset_folder: Path,
        processor: PromptProcessor,
        num_rows: int | None = None,
        *,
        image_cache_bytes: int = 0,
        image_workers: int = 1,
    ) -> None:
        self.dataset = DrivingDataset(dataset_folder, num_rows)
        self.processor = processor
        self.images = FittedImages(self.dataset, processor, image_cache_bytes, image_workers)
        self.frozen_features: FrozenFeatures | None = None

    def expect(self, rows: Iterable[int]) -> None:
        """Read the images of rows that will be asked for soon, in the background."""
        self.images.expect(row for row in rows if self._features(row) is None)

    def begin_step(self, rows: Iterable[int]) -> None:
        """`expect`; other rows that were expected before need not be held any longer."""
        self.images.expect_only([row for row in rows if self._features(row) is None])

    def close(self) -> None:
        """End the background threads."""
        self.images.close()

    def rollout_row(self, group: RolloutGroup) -> TokenRow:
        """The row of a sampled group; its prompt tokens are the ones the engine saw.

        Raises LearnerError when they do not fit the image, or when a completion holds a vision token:
        the engine and the learner then disagree about the model.
        """
        image = self._image(group.query.row)
        processor, grid = self.processor, image.grid
        num_placeholders = group.prompt_token_ids.count(processor.image_token_id)
        num_vision_tokens = grid[0] * grid[1] * grid[2] // processor.merge_size**2
        if num_placeholders != num_vision_tokens:
            raise LearnerError(
                f"query {group.query.query_id}: the engine saw {num_placeholders} vision tokens, the "
                f"learner's image has {num_vision_tokens}; both must use the same dataset, model and "
                "model.max_pixels"
            )
        banned = set(processor.vision_token_ids)
        for completion in group.completions:
            if not banned.isdisjoint(completion.token_ids):
                raise LearnerError(
                    f"query {group.query.query_id}: engine {group.engine_id} sampled a vision token; "
                    "its sampler does not apply the vision-token mask"
                )
        return image.token_row(
            group.prompt_token_ids, [completion.token_ids for completion in group.completions]
        )

    def target(self, row: int, target: str) -> "SftTarget":
        """What SFT teaches for a row, without its pixels.

        `target` is `teacher` (the plan the teacher decided on, where there is one) or `recorded`.
        """
        record = self.dataset.record(row)
        return SftTarget(
            row=row,
            prompt_ids=self.processor.prompt_ids(self.dataset.query(row)),
            completion_ids=self.processor.completion_ids(
                target_text(record, target, self.processor.with_trajectory)
            ),
            num_image_tokens=front_image_tokens(self.processor, record),
        )

    def target_row(self, target: "SftTarget") -> TokenRow:
        """The token row of a supervised sample."""
        image = self._image(target.row)
        return image.token_row(
            self.processor.expanded_ids(target.prompt_ids, image.grid), [target.completion_ids]
        )

    def filler_row(self) -> TokenRow:
        """Any valid row, for a rank that has nothing of its own to compute."""
        image = self._image(0)
        prompt_ids = self.processor.prompt_ids(self.dataset.query(0))
        return image.token_row(
            self.processor.expanded_ids(prompt_ids, image.grid), [[self.processor.end_token_id]]
        )

    def _features(self, row: int) -> ImageFeatures | None:
        return self.frozen_features.known(row) if self.frozen_features else None

    def _image(self, row: int) -> "_RowImage":
        known = self._features(row)
        if known is not None:
            return _RowImage(row, known.grid, None, known.features_VD)
        patches, grid = self.processor.raw_patches(self.images.fitted(row))
        return _RowImage(row, grid, patches, None)


@dataclass(frozen=True, slots=True)
class _RowImage:
    """The image of a row of the dataset: its patches, or what the vision tower makes of it."""

    row: int
    grid: Grid
    patches: np.ndarray | None
    features_VD: Tensor | None

    def token_row(self, prompt_ids: Sequence[int], completions: Sequence[Sequence[int]]) -> TokenRow:
        """A prompt about this image, and its completions."""
        return TokenRow(
            prompt_ids=prompt_ids,
            completions=completions,
            pixel_values=self.patches,
            grid=self.grid,
            image_key=self.row,
            features_VD=self.features_VD,
        )


def target_text(record: DrivingRecord, target: str, with_trajectory: bool = False) -> str:
    """The answer SFT teaches for a record. Raises DataError for a record without reasoning, or without
    waypoints where a trajectory is asked for."""
    if not record.reasoning:
        raise DataError(f"query {record.query_id}: reasoning: missing; SFT needs it in every row")
    if with_trajectory and (problem := waypoints_problem(record.waypoints)):
        raise DataError(f"query {record.query_id}: {problem}")
    is_teacher = target == "teacher" and record.teacher_plan is not None
    plan = str(record.teacher_plan) if is_teacher else record.plans[0]
    return answer_text(record.reasoning, plan, record.waypoints if with_trajectory else None)


def check_reasoning(dataset: DrivingDataset) -> None:
    """Raises DataError naming the first row without reasoning (file, row, query). Reads no pixels."""
    for row in range(len(dataset)):
        query = dataset.query(row)
        if not query.reasoning:
            raise DataError(
                f"{dataset.where(row)}: reasoning: missing (query {query.query_id}); SFT needs it in every "
                "row: label the dataset or leave the row out"
            )


def prepared_ahead(items: Iterable[Item], prepare: Callable[[Item], Prepared]) -> Iterator[Prepared]:
    """`map(prepare, items)`, computed in order in one background thread, `AHEAD` items early."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="row-reader") as reader:
        waiting: deque[Future[Prepared]] = deque()
        try:
            for item in items:
                waiting.append(reader.submit(prepare, item))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def in_microbatches(sizes: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices of rows cut into microbatches of at most `max_tokens`, in order and as few as that allows.

    A row is never split. Raises LearnerError, naming its size, for one that is larger than a microbatch.

    >>> in_microbatches([5, 9, 4, 8], 14)
    [[0, 1], [2, 3]]
    """
    microbatches: list[list[int]] = []
    free = 0
    for index, size in enumerate(sizes):
        if size > max_tokens:
            raise LearnerError(
                f"a prompt with its completions has {size} tokens, more than "
                f"learner.max_tokens_per_microbatch={max_tokens}, and is never split; raise that, or lower "
                "grpo.group_size, grpo.max_new_tokens or model.max_pixels"
            )
        if size > free:
            microbatches.append([])
            free = max_tokens
        microbatches[-1].append(index)
        free -= size
    return microbatches
