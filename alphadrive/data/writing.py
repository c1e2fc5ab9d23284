"""Writing Parquet shards in a stream. Called through `alphadrive.data.parquet.write_records`."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from alphadrive.atomic import fsync_path
from alphadrive.data.records import DrivingRecord
from alphadrive.data.schema import ALL_COLUMNS, SCHEMA, row_of, shard_paths
from alphadrive.errors import DataError

_GROUP_ROWS = 32
_GROUP_BYTES = 4 << 20


def write_records(records: Iterable[DrivingRecord], folder: Path, rows_per_shard: int = 1000) -> int:
    """Write records to `folder` in a stream and return how many there were.

    Holds one row group in memory. Shards get their names only once all are complete, so an
    interrupted write leaves no dataset that looks whole. Raises DataError when the folder already
    holds shards or when there is no record at all.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if existing := shard_paths(folder):
        raise DataError(
            f"{folder}: already holds {len(existing)} shards ({existing[0].name} ...); "
            "choose an empty folder or remove them first"
        )
    writer = _ShardWriter(folder, rows_per_shard)
    try:
        for record in records:
            writer.add(record)
        writer.finish_shard()
        if not writer.num_rows:
            raise DataError(f"{folder}: there was no record to write; a dataset needs at least one row")
        writer.commit()
    finally:
        writer.discard()
    return writer.num_rows


class _ShardWriter:
    """The shard being written and those written but not yet named."""

    def __init__(self, folder: Path, rows_per_shard: int) -> None:
        if rows_per_shard < 1:
            raise ValueError(f"rows_per_shard={rows_per_shard}: expected 1 or more")
        self.num_rows = 0
        self._folder = folder
        self._rows_per_shard = rows_per_shard
        self._finished: list[Path] = []
        self._parquet: pq.ParquetWriter | None = None
        self._group: list[dict[str, Any]] = []
        self._group_bytes = 0
        self._shard_rows = 0

    def _temporary(self, shard: int) -> Path:
        return self._folder / f".part-{shard:05d}.parquet.{os.getpid()}.tmp"

    def add(self, record: DrivingRecord) -> None:
        self._group.append(row_of(record))
        self._group_bytes += sum(len(image.data) for image in record.images)
        self._shard_rows += 1
        self.num_rows += 1
        if len(self._group) >= _GROUP_ROWS or self._group_bytes >= _GROUP_BYTES:
            self._flush_group()
        if self._shard_rows >= self._rows_per_shard:
            self.finish_shard()

    def _flush_group(self) -> None:
        if not self._group:
            return
        if self._parquet is None:
            text_columns = [name for name in ALL_COLUMNS if name != "images"]
            self._parquet = pq.ParquetWriter(
                self._temporary(len(self._finished)),
                SCHEMA,
                compression={name: "zstd" for name in text_columns},
                use_dictionary=["split", "source", "label_rule"],
                write_statistics=False,
                write_page_checksum=True,
            )
        self._parquet.write_table(pa.Table.from_pylist(self._group, schema=SCHEMA))
        self._group, self._group_bytes = [], 0

    def finish_shard(self) -> None:
        self._flush_group()
        if self._parquet is None:
            return
        self._parquet.close()
        self._parquet = None
        temporary = self._temporary(len(self._finished))
        fsync_path(temporary)
        self._finished.append(temporary)
        self._shard_rows = 0

    def commit(self) -> None:
        for shard, temporary in enumerate(self._finished):
            os.replace(temporary, self._folder / f"part-{shard:05d}.parquet")
        fsync_path(self._folder)

    def discard(self) -> None:
        """Remove what was not committed."""
        if self._parquet is not None:
            self._parquet.close()
        for shard in range(len(self._finished) + 1):
            self._temporary(shard).unlink(missing_ok=True)
