"""Reading rows: what SFT teaches, what is refused, and the order things come in."""

import dataclasses
import math
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from alphadrive.data.parquet import DrivingDataset, write_records
from alphadrive.errors import DataError, LearnerError
from alphadrive.processing import PromptProcessor, resolve_model
from alphadrive.types import Completion, RolloutGroup, VersionSpan, WeightVersion
from learner.admission import completion_problem, version_problem
from learner.rows import AHEAD, RowReader, check_reasoning, in_microbatches, prepared_ahead, target_text
from learner.vision import FrozenFeatures, ImageFeatures

WriteDataset = Callable[..., Path]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory, write_tiny_dataset: WriteDataset) -> RowReader:
    folder = write_tiny_dataset(tmp_path_factory.mktemp("data") / "train")
    return RowReader(folder, PromptProcessor(resolve_model("tiny"), 28 * 28 * 8))


def rollout_group(
    reader: RowReader, tokens: tuple[int, ...] = (5, 6), version: str = "0.3", row: int = 0
) -> RolloutGroup:
    query = reader.dataset.query(row)
    _, grid = reader.processor.pixels(reader.processor.fit(reader.dataset.image(row)))
    spans = (VersionSpan(version=WeightVersion.parse(version), start=0, end=len(tokens)),)
    completion = Completion(
        text="",
        token_ids=tokens,
        rollout_logprobs=(-1.0,) * len(tokens),
        finish_reason="stop",
        weight_versions=spans,
    )
    return RolloutGroup(
        ticket=7,
        query=query,
        prompt_token_ids=tuple(reader.processor.expanded_ids(reader.processor.prompt_ids(query), grid)),
        completions=(completion, completion),
        engine_id="engine-0",
    )


def test_sft_teaches_the_teachers_plan_or_the_recorded_one(reader: RowReader) -> None:
    taught = reader.dataset.record(1)
    assert target_text(taught, "teacher").endswith("<answer> STOP, STRAIGHT </answer>")
    assert target_text(taught, "recorded").endswith("<answer> KEEP, STRAIGHT </answer>")
    assert target_text(reader.dataset.record(0), "teacher").endswith("<answer> KEEP, STRAIGHT </answer>")


def test_a_target_row_holds_prompt_image_and_answer(reader: RowReader) -> None:
    target = reader.target(1, "teacher")
    row = reader.target_row(target)
    assert target.num_tokens == row.num_tokens
    assert row.prompt_ids.count(reader.processor.image_token_id) * 4 == len(row.pixel_values)
    assert row.completions[0][-1] == reader.processor.end_token_id
    assert reader.processor.tokenizer.decode(row.completions[0][:-1]) == target_text(
        reader.dataset.record(1), "teacher"
    )


def test_a_row_without_reasoning_is_named_before_training(
    tmp_path: Path, write_tiny_dataset: WriteDataset
) -> None:
    folder = write_tiny_dataset(tmp_path / "train", without_reasoning=4)
    with pytest.raises(DataError, match=r"part-00000\.parquet: row 4: reasoning: missing \(query query-4\)"):
        check_reasoning(DrivingDataset(folder))


def test_a_prompt_of_another_image_size_is_refused(reader: RowReader) -> None:
    group = rollout_group(reader)
    assert len(reader.rollout_row(group).completions) == 2
    shorter = dataclasses.replace(group, prompt_token_ids=group.prompt_token_ids[:2])
    with pytest.raises(LearnerError, match="vision tokens"):
        reader.rollout_row(shorter)


def test_a_sampled_vision_token_is_refused(reader: RowReader) -> None:
    group = rollout_group(reader, tokens=(5, reader.processor.image_token_id))
    with pytest.raises(LearnerError, match="sampled a vision token"):
        reader.rollout_row(group)


@pytest.mark.parametrize(
    ("now", "max_lag", "words"),
    [
        ("0.3", 0, None),
        ("0.4", 1, None),
        ("0.4", 0, "max_policy_lag"),
        ("0.2", 1, "not exist"),
        ("1.3", 1, "restarted"),
    ],
)
def test_versions_outside_the_window_are_refused(
    reader: RowReader, now: str, max_lag: int, words: str | None
) -> None:
    problem = version_problem([rollout_group(reader)], WeightVersion.parse(now), max_lag)
    assert problem is None if words is None else words in str(problem) and "ticket 7" in str(problem)


def damaged(group: RolloutGroup, **changes: object) -> str | None:
    """What is said of the group when its second completion is changed."""
    first, second = group.completions
    completions = (first, dataclasses.replace(second, **changes))
    return completion_problem([group, dataclasses.replace(group, completions=completions)])


def test_a_completion_that_is_not_whole_is_named(reader: RowReader) -> None:
    group = rollout_group(reader)
    where = "ticket 7 (query query-0, engine engine-0): completion 1 has "
    assert completion_problem([group]) is None
    assert str(damaged(group, rollout_logprobs=(-1.0,))).startswith(where + "2 tokens, 1 log-probabilities")
    assert str(damaged(group, rollout_logprobs=(-1.0, math.nan))).startswith(
        where + "log-probabilities (-1.0, nan)"
    )
    assert "0 spans of weight versions" in str(damaged(group, weight_versions=()))


@pytest.mark.parametrize("tokens", [(), (5,)])
def test_completions_of_no_token_or_one_are_whole(reader: RowReader, tokens: tuple[int, ...]) -> None:
    group = rollout_group(reader, tokens=tokens)
    assert completion_problem([group]) is None
    assert [len(completion) for completion in reader.rollout_row(group).completions] == [len(tokens)] * 2


def test_microbatches_keep_the_order_and_the_budget() -> None:
    assert in_microbatches([5, 9, 4, 8, 7], 14) == [[0, 1], [2, 3], [4]]
    assert in_microbatches([14, 1, 13, 1], 14) == [[0], [1, 2], [3]]
    assert in_microbatches([], 2) == []


def test_a_group_larger_than_a_microbatch_is_refused_with_both_numbers() -> None:
    with pytest.raises(LearnerError, match=r"has 15 tokens, more than learner.max_tokens_per_microbatch=14"):
        in_microbatches([5, 15], 14)


def test_rows_are_prepared_in_order_and_only_a_little_ahead() -> None:
    prepared: list[int] = []
    for item in prepared_ahead(range(20), lambda number: prepared.append(number) or number):
        assert len(prepared) <= item + 2 + AHEAD
    assert prepared == list(range(20))


def test_an_error_while_preparing_reaches_the_caller_and_leaves_no_thread() -> None:
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        list(prepared_ahead([1, 0], lambda number: 1 // number))
    assert threading.active_count() == before


def test_an_interrupt_leaves_what_is_not_begun() -> None:
    before = threading.active_count()
    prepared: list[int] = []
    has_begun, may_end = threading.Event(), threading.Event()

    def prepare(number: int) -> int:
        if number == 1:
            has_begun.set()
            assert may_end.wait(10)
        prepared.append(number)
        return number

    batches = prepared_ahead(range(20), prepare)
    assert next(batches) == 0 and has_begun.wait(10)
    threading.Timer(0.05, may_end.set).start()
    with pytest.raises(KeyboardInterrupt):
        batches.throw(KeyboardInterrupt)
    assert prepared == [0, 1]
    assert "row-reader_0" not in {thread.name for thread in threading.enumerate()[before:]}


def test_a_damaged_image_ends_the_training_loop_with_its_query(tmp_path: Path, reader: RowReader) -> None:
    groups = [rollout_group(reader, row=row) for row in range(4)]
    records = list(reader.dataset.records())
    (image,) = records[2].images
    records[2] = dataclasses.replace(records[2], images=(dataclasses.replace(image, data=image.data[:80]),))
    write_records(records, tmp_path / "damaged")
    damaged = RowReader(tmp_path / "damaged", reader.processor, image_cache_bytes=1 << 20, image_workers=2)
    damaged.begin_step(range(4))
    batches = prepared_ahead(groups, damaged.rollout_row)
    assert [next(batches).image_key for _ in range(2)] == [0, 1]
    with pytest.raises(DataError, match=r"query query-2: .*row 2: images: .*truncated or damaged"):
        next(batches)
    damaged.close()


def test_an_image_whose_features_are_known_is_not_read(
    tmp_path: Path, write_tiny_dataset: WriteDataset, reader: RowReader
) -> None:
    folder = write_tiny_dataset(tmp_path / "train")
    fresh = RowReader(folder, reader.processor, image_cache_bytes=1 << 20)
    fresh.frozen_features = FrozenFeatures(1 << 20)
    group = rollout_group(reader)
    first = fresh.rollout_row(group)
    assert fresh.images.num_reads == 1
    fresh.frozen_features._kept.put(0, ImageFeatures(torch.ones(8, 32), first.grid))
    fresh.begin_step([0])
    second = fresh.rollout_row(group)
    assert fresh.images.num_reads == 1 and not fresh.images._waiting
    assert second.pixel_values is None and second.features_VD is not None and second.grid == first.grid
    fresh.close()
