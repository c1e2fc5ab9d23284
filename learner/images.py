"""A dataset's images at their final size: decoded and resized once, ahead of their use, kept within a budget.

    main thread      expect(rows) ──▶ queue ──▶ image workers: decode, fit ──▶ waiting ─┐
    reader thread    fitted(row)  ◀───────────────────────────────── kept (LRU) ◀───────┘

Kept as 8-bit RGB: the float patches made of them are eight times larger. Images waiting for their use are not
evicted and count as large as an image can be, so that waiting and kept ones together stay within the budget;
no more are decoded ahead than fit into it.
"""

import threading
from collections.abc import Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alphadrive.data.parquet import DrivingDataset
from alphadrive.errors import DataError
from alphadrive.processing import PromptProcessor
from learner.byte_cache import ByteCache

BYTES_PER_PIXEL = 3


@dataclass(slots=True)
class _Fitted:
    """An image (height, width, 3) and whether it has been used since it was decoded."""

    pixels: NDArray[np.uint8]
    was_used: bool = False

    @property
    def nbytes(self) -> int:
        return self.pixels.nbytes


class FittedImages:
    """The images of a dataset by row. `num_reads` counts uses, `num_decoded` those of them for which the
    image had to be decoded. `close` ends the threads."""

    def __init__(
        self, dataset: DrivingDataset, processor: PromptProcessor, budget_bytes: int, num_workers: int
    ) -> None:
        self.num_reads = self.num_decoded = 0
        self._dataset, self._processor = dataset, processor
        self._budget_bytes = budget_bytes
        self._largest_bytes = BYTES_PER_PIXEL * processor.max_pixels
        self._waiting: dict[int, Future[_Fitted]] = {}
        self._kept: ByteCache[_Fitted] = ByteCache(budget_bytes)
        self._lock = threading.Lock()
        self._workers = ThreadPoolExecutor(num_workers, thread_name_prefix="image-worker")

    def expect(self, rows: Iterable[int]) -> None:
        """Decode these rows' images in the background, in order, as far as the budget reaches; returns at
        once. An image that cannot be read raises where it is used, not here."""
        with self._lock:
            for row in rows:
                if row in self._kept or row in self._waiting:
                    continue
                if (len(self._waiting) + 1) * self._largest_bytes > self._budget_bytes:
                    break
                self._waiting[row] = self._workers.submit(self._read, row)
            self._make_room()

    def expect_only(self, rows: Collection[int]) -> None:
        """`expect`, and other rows that were expected may be evicted from now on."""
        with self._lock:
            for row in [row for row, future in self._waiting.items() if future.done() and row not in rows]:
                future = self._waiting.pop(row)
                if not future.exception():
                    self._kept.put(row, future.result())
        self.expect(rows)

    def fitted(self, row: int) -> NDArray[np.uint8]:
        """The image of a row at its final size, (height, width, 3). Raises DataError naming file, row and
        query."""
        with self._lock:
            image, future = self._kept.get(row), self._waiting.pop(row, None)
            self._make_room()
        if image is None:
            # One that no worker has begun with is read here and now, whatever stands before it in the queue.
            is_underway = future is not None and not future.cancel()
            image = future.result() if future is not None and is_underway else self._read(row)
        with self._lock:
            self.num_reads += 1
            self.num_decoded += not image.was_used
            image.was_used = True
            self._kept.put(row, image)
        return image.pixels

    def close(self) -> None:
        """End the threads; what is not begun is not decoded any more."""
        self._workers.shutdown(wait=True, cancel_futures=True)

    def _make_room(self) -> None:
        self._kept.set_budget(self._budget_bytes - len(self._waiting) * self._largest_bytes)

    def _read(self, row: int) -> _Fitted:
        try:
            return _Fitted(np.asarray(self._processor.fit(self._dataset.image(row))))
        except DataError as error:
            query_id = self._dataset.query(row).query_id
            raise DataError(f"query {query_id}: {error}") from error
