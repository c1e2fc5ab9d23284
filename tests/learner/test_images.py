"""Images decoded once, ahead, within a budget; and the cache underneath."""

import io
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alphadrive.data.parquet import DrivingDataset, write_records
from alphadrive.errors import DataError
from alphadrive.processing import PromptProcessor, resolve_model
from learner.byte_cache import ByteCache
from learner.images import FittedImages

WriteDataset = Callable[..., Path]
NUM_ROWS = 6
MAX_PIXELS = 112 * 56
IMAGE_BYTES = 3 * MAX_PIXELS
ROWS = list(range(NUM_ROWS))


class CountingDataset(DrivingDataset):
    """Counts how often each row's image is decoded; decoding `slow_rows` waits while `gate` is closed."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.decodes: Counter[int] = Counter()
        self.gate = threading.Event()
        self.gate.set()
        self.slow_rows = ROWS

    def image(self, row: int) -> Image.Image:
        assert row not in self.slow_rows or self.gate.wait(10)
        self.decodes[row] += 1
        return super().image(row)


@pytest.fixture(scope="module")
def processor() -> PromptProcessor:
    return PromptProcessor(resolve_model("tiny"), MAX_PIXELS)


@pytest.fixture
def dataset(tmp_path: Path, write_tiny_dataset: WriteDataset) -> CountingDataset:
    return CountingDataset(write_tiny_dataset(tmp_path / "train", NUM_ROWS))


@pytest.fixture
def make_images(
    dataset: CountingDataset, processor: PromptProcessor
) -> Iterator[Callable[..., FittedImages]]:
    made = []

    def make(budget_images: float) -> FittedImages:
        made.append(FittedImages(dataset, processor, int(budget_images * IMAGE_BYTES), 2))
        return made[-1]

    yield make
    dataset.gate.set()
    for images in made:
        images.close()


def test_two_epochs_within_the_budget_decode_every_image_once(make_images, dataset) -> None:
    images = make_images(NUM_ROWS)
    for _ in range(2):
        images.expect_only(ROWS)
        for row in ROWS:
            images.fitted(row)
    assert dataset.decodes == dict.fromkeys(ROWS, 1)
    assert (images.num_reads, images.num_decoded) == (2 * NUM_ROWS, NUM_ROWS)


@pytest.mark.parametrize("budget", [0, 0.5, 1, 2, NUM_ROWS])
def test_images_are_the_same_to_the_bit_whatever_the_budget(make_images, dataset, processor, budget) -> None:
    images = make_images(budget)
    for _ in range(2):
        images.expect_only(ROWS)
        for row in ROWS:
            fitted = processor.fit(DrivingDataset.image(dataset, row))
            assert np.array_equal(images.fitted(row), np.asarray(fitted))
            assert images._kept.num_bytes <= budget * IMAGE_BYTES


def test_a_budget_smaller_than_the_images_decodes_each_once_an_epoch(make_images, dataset) -> None:
    images = make_images(2)
    for _ in range(2):
        for start in range(0, NUM_ROWS, 2):
            images.expect_only(ROWS[start : start + 2])
            for row in ROWS[start : start + 2]:
                images.fitted(row)
    assert dataset.decodes == dict.fromkeys(ROWS, 2)


def test_the_image_used_longest_ago_makes_room(make_images, dataset) -> None:
    images = make_images(2)
    for row in (0, 1, 0, 2, 0, 1):
        images.fitted(row)
    assert dataset.decodes == {0: 1, 1: 2, 2: 1}


def test_no_more_is_decoded_ahead_than_fits_and_what_waits_is_not_evicted(make_images, dataset) -> None:
    images = make_images(3)
    images.expect(ROWS)
    assert sorted(images._waiting) == [0, 1, 2]
    for row in (5, 4, 0, 1, 2):
        images.fitted(row)
    assert dataset.decodes == dict.fromkeys((0, 1, 2, 4, 5), 1)


def test_what_was_expected_and_is_not_needed_makes_room_at_the_next_step(make_images, dataset) -> None:
    images = make_images(2)
    images.expect([0, 1])
    images.fitted(5)
    for future in images._waiting.values():
        future.result()
    images.expect_only([2, 3])
    assert sorted(images._waiting) == [2, 3]
    images.fitted(2), images.fitted(3)
    assert dataset.decodes == dict.fromkeys((0, 1, 2, 3, 5), 1)


def test_images_on_their_way_count_against_the_kept_ones(make_images, dataset) -> None:
    images = make_images(3)
    for row in (3, 4, 5):
        images.fitted(row)
    images.expect([0, 1])
    assert [row in images._kept for row in (3, 4, 5)] == [False, False, True]
    for row in (0, 1, 5):
        images.fitted(row)
    assert dataset.decodes == dict.fromkeys((0, 1, 3, 4, 5), 1)


def test_an_urgent_image_does_not_wait_for_the_queue(make_images, dataset) -> None:
    images = make_images(NUM_ROWS)
    dataset.gate.clear()
    dataset.slow_rows = [0, 1]
    images.expect([0, 1, 2])
    images.fitted(2)
    dataset.gate.set()
    images.fitted(0), images.fitted(1)
    assert dataset.decodes == dict.fromkeys((0, 1, 2), 1)


def test_closing_decodes_nothing_more_and_leaves_no_thread(make_images, dataset) -> None:
    before = threading.active_count()
    images = make_images(NUM_ROWS)
    dataset.gate.clear()
    images.expect(ROWS)
    threading.Timer(0.05, dataset.gate.set).start()
    images.close()
    assert threading.active_count() <= before + 1
    assert sum(dataset.decodes.values()) == 2


def damaged(record, data: bytes):
    return replace(record, images=(replace(record.images[0], data=data),))


@pytest.mark.parametrize("expected_first", [True, False])
def test_an_image_that_cannot_be_read_names_file_row_and_query_where_it_is_used(
    tmp_path: Path, dataset, processor, expected_first: bool
) -> None:
    records = list(dataset.records())
    truncated = io.BytesIO()
    Image.new("RGB", (112, 56)).save(truncated, "PNG")
    records[0] = damaged(records[0], truncated.getvalue()[:60])
    records[1] = damaged(records[1], b"")
    records[2] = replace(records[2], images=())
    write_records(records, tmp_path / "damaged")
    images = FittedImages(DrivingDataset(tmp_path / "damaged"), processor, 1 << 20, 1)
    if expected_first:
        images.expect(ROWS)
    images.fitted(3)
    for row, words in enumerate(["truncated or damaged", "got 0 bytes", "no camera 'front'"]):
        for _ in range(2):
            with pytest.raises(
                DataError, match=rf"query query-{row}: .*parquet: row {row}: images: .*{words}"
            ):
                images.fitted(row)
    images.close()


def test_a_byte_cache_keeps_what_was_used_last() -> None:
    cache: ByteCache[np.ndarray] = ByteCache(10)
    for row in (1, 2):
        cache.put(row, np.zeros(5, dtype=np.uint8))
    assert cache.get(1) is not None
    cache.put(3, np.zeros(4, dtype=np.uint8))
    assert [row in cache for row in (1, 2, 3)] == [True, False, True]
    assert cache.num_bytes == 9 and len(cache) == 2


def test_a_byte_cache_refuses_what_is_larger_than_itself_and_replaces_by_row() -> None:
    cache: ByteCache[np.ndarray] = ByteCache(10)
    cache.put(1, np.zeros(8, dtype=np.uint8))
    cache.put(2, np.zeros(11, dtype=np.uint8))
    assert 1 in cache and 2 not in cache
    cache.put(1, np.zeros(3, dtype=np.uint8))
    assert cache.num_bytes == 3
    cache.put(1, np.zeros(11, dtype=np.uint8))
    assert cache.num_bytes == 0 and cache.get(1) is None
    cache.put(1, np.zeros(6, dtype=np.uint8))
    cache.set_budget(5)
    assert cache.num_bytes == 0
    cache.clear()
