"""Reading Parquet shards of driving records row by row, in bounded memory.

    DIR/part-00000.parquet, part-00001.parquet, ...      at most `rows_per_shard` rows each

A shard is made of small row groups, the unit that is read and cached, so that memory is bounded by
the cache and not by the dataset. Learner ranks and engines open the folder themselves; a
`DrivingDataset` pickles as its folder. Content is checked by `alphadrive.data.validate`, structure
by `alphadrive.data.schema`; `write_records` lives in `alphadrive.data.writing`.
"""

import bisect
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from alphadrive.data.checks import FRONT_CAMERA
from alphadrive.data.images import decode_image
from alphadrive.data.records import DrivingRecord
from alphadrive.data.schema import (
    ALL_COLUMNS,
    UNREADABLE,
    checked_metadata,
    checked_shards,
    record_of,
    waypoints_of,
)
from alphadrive.data.writing import write_records
from alphadrive.errors import DataError
from alphadrive.types import DrivingQuery

__all__ = ["DrivingDataset", "write_records"]

_QUERY_COLUMNS = ("query_id", "speed_mps", "navigation", "plans", "reasoning", "waypoints")
_IMAGE_COLUMNS = ("images.list.element.camera", "images.list.element.dt_s", "images.list.element.bytes")
_CACHE_BYTES = 32 << 20
_MAX_OPEN_SHARDS = 16

_Rows = list[dict[str, Any]]
_GroupKey = tuple[tuple[str, ...], int]


@dataclass(frozen=True, slots=True)
class _RowGroup:
    shard: int
    index: int
    first_row: int
    shard_row: int
    """Row within the shard at which the group starts."""


class DrivingDataset:
    """Random access to a folder of shards in bounded memory.

    Safe to use from several threads; decoding an image happens outside the lock. Pickles as its
    folder and reads the footers again where it is unpickled. `num_rows` keeps only the first rows.

    Raises DataError for a folder without shards, a shard that is no complete Parquet file, a missing
    or different schema version, and missing or differently typed columns.
    """

    def __init__(self, folder: Path | str, num_rows: int | None = None) -> None:
        self.folder = Path(folder)
        self._limit = num_rows
        self._shards = checked_shards(self.folder)
        self._groups: list[_RowGroup] = []
        self._total = 0
        for shard, path in enumerate(self._shards):
            self._add_groups(shard, checked_metadata(path))
        self._first_rows = [group.first_row for group in self._groups]
        self._num_rows = self._total if num_rows is None else min(num_rows, self._total)
        self._lock = threading.Lock()
        self._open: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        self._cache: OrderedDict[_GroupKey, tuple[_Rows, int]] = OrderedDict()
        self._cache_bytes = 0

    def _add_groups(self, shard: int, metadata: pq.FileMetaData) -> None:
        shard_row = 0
        for index in range(metadata.num_row_groups):
            self._groups.append(_RowGroup(shard, index, self._total, shard_row))
            self._total += metadata.row_group(index).num_rows
            shard_row += metadata.row_group(index).num_rows

    def __reduce__(self) -> tuple[type["DrivingDataset"], tuple[Path, int | None]]:
        return DrivingDataset, (self.folder, self._limit)

    def __len__(self) -> int:
        return self._num_rows

    def query(self, row: int) -> DrivingQuery:
        """The situation of a row without its pixels; reads no image bytes."""
        values = self._row(row, _QUERY_COLUMNS)
        return DrivingQuery(
            query_id=values["query_id"],
            row=row,
            speed_mps=values["speed_mps"],
            navigation=values["navigation"],
            plans=tuple(values["plans"] or ()),
            reasoning=values["reasoning"],
            waypoints=waypoints_of(values),
        )

    def record(self, row: int) -> DrivingRecord:
        """The whole row, images still encoded."""
        return record_of(self._row(row, ALL_COLUMNS))

    def records(self) -> Iterator[DrivingRecord]:
        """All rows in order, in bounded memory."""
        return (self.record(row) for row in range(len(self)))

    def image(self, row: int) -> Image.Image:
        """The latest front image of a row, fully decoded, RGB. Raises DataError when it is missing,
        damaged or over 64 megapixels."""
        images = self._row(row, _IMAGE_COLUMNS)["images"] or []
        front = [image for image in images if image["camera"] == FRONT_CAMERA]
        if not front:
            cameras = ", ".join(image["camera"] for image in images) or "none"
            raise DataError(f"{self.where(row)}: images: no camera {FRONT_CAMERA!r}; the row has: {cameras}")
        try:
            return decode_image(max(front, key=lambda image: float(image["dt_s"]))["bytes"] or b"")
        except DataError as error:
            raise DataError(f"{self.where(row)}: images: {error}") from error

    def where(self, row: int) -> str:
        """File and row within it, for messages: `DIR/part-00001.parquet: row 17`."""
        group = self._group_of(row)
        return f"{self._shards[group.shard]}: row {group.shard_row + row - group.first_row}"

    def _group_of(self, row: int) -> _RowGroup:
        if not 0 <= row < self._num_rows:
            raise IndexError(f"row {row} of {self.folder}: expected 0 to {self._num_rows - 1}")
        return self._groups[bisect.bisect_right(self._first_rows, row) - 1]

    def _row(self, row: int, columns: tuple[str, ...]) -> dict[str, Any]:
        group = self._group_of(row)
        key = (columns, group.first_row)
        with self._lock:
            cached = self._cache.get(key)
            if cached is None:
                cached = self._read(group, columns)
                self._remember(key, cached)
            self._cache.move_to_end(key)
        return cached[0][row - group.first_row]

    def _read(self, group: _RowGroup, columns: tuple[str, ...]) -> tuple[_Rows, int]:
        path = self._shards[group.shard]
        try:
            parquet = self._opened(group.shard)
            table = parquet.read_row_group(group.index, columns=list(columns), use_threads=False)
            return table.to_pylist(), table.nbytes
        except UNREADABLE as error:
            raise DataError(
                f"{path}: row group {group.index} (rows from {group.shard_row}) cannot be read: {error}; "
                "the file is damaged or changed while in use: write the dataset again"
            ) from error

    def _opened(self, shard: int) -> pq.ParquetFile:
        if shard not in self._open:
            if len(self._open) >= _MAX_OPEN_SHARDS:
                self._open.popitem(last=False)[1].close()
            self._open[shard] = pq.ParquetFile(self._shards[shard], page_checksum_verification=True)
        self._open.move_to_end(shard)
        return self._open[shard]

    def _remember(self, key: _GroupKey, entry: tuple[_Rows, int]) -> None:
        self._cache[key] = entry
        self._cache_bytes += entry[1]
        while self._cache_bytes > _CACHE_BYTES and len(self._cache) > 1:
            self._cache_bytes -= self._cache.popitem(last=False)[1][1]
