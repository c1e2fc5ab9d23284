"""Writing Parquet shards in a stream.

`write_records` (called through `alphadrive.data.parquet`) writes a dataset in one go; imports, which can
be interrupted and taken up again, drive `ShardWriter` themselves (`alphadrive.data.importing`).
"""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from alphadrive.atomic import fsync_path
from alphadrive.capacity import unwritable
from alphadrive.data.records import DrivingRecord
from alphadrive.data.schema import ALL_COLUMNS, SCHEMA, row_of, shard_name, shard_paths
from alphadrive.errors import DataError

ROWS_PER_SHARD = 1000
_GROUP_ROWS = 32
_GROUP_BYTES = 4 << 20


def write_records(
    records: Iterable[DrivingRecord], folder: Path, rows_per_shard: int = ROWS_PER_SHARD
) -> int:
    """Write records to `folder` in a stream and return how many there were.

    Holds one row group in memory. Shards enter the folder only once all are complete, so an
    interrupted write leaves no dataset that looks whole. Raises DataError when the folder cannot be made
    or already holds shards, or when there is no record at all.
    """
    folder = Path(folder)
    refuse_existing_shards(folder)
    work = folder / f".writing-{os.getpid()}"
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error}; choose another folder") from error
    writer = ShardWriter(work, rows_per_shard)
    try:
        num_rows = 0
        for record in records:
            writer.add(record)
            num_rows += 1
        writer.finish_shard()
        if not num_rows:
            raise DataError(f"{folder}: there was no record to write; a dataset needs at least one row")
        refuse_existing_shards(folder)  # another process may have been quicker
        move_shards(work, folder)
    finally:
        writer.discard()
        shutil.rmtree(work)
    return num_rows


def refuse_existing_shards(folder: Path) -> None:
    """Raise DataError when a folder already holds a dataset."""
    if existing := shard_paths(folder):
        raise DataError(
            f"{folder}: already holds {len(existing)} shards ({existing[0].name} ...); "
            "choose an empty folder or remove them first"
        )


def check_new_dataset(folder: Path) -> None:
    """Raise DataError where a dataset could not be written, and write nothing."""
    refuse_existing_shards(folder)
    check_writable(folder)


def check_writable(folder: Path) -> None:
    """Raise DataError where a folder could not be made or written, and write nothing."""
    if parent := unwritable(folder):
        raise DataError(
            f"{folder}: cannot be written: {parent} is not ours to write in; choose another --out"
        )


def move_shards(work: Path, folder: Path) -> None:
    """Move finished shards to where they are read, the first one last: a reader refuses a folder whose
    first shard is missing, so that a half moved dataset never passes for a whole one."""
    for path in reversed(shard_paths(work)):
        os.replace(path, folder / path.name)
    fsync_path(folder)


class ShardWriter:
    """Writes shards into a work folder, one at a time; a shard has its name only when it is complete.

    Goes on after the `num_shards` that are already there.
    """

    def __init__(self, work: Path, rows_per_shard: int = ROWS_PER_SHARD, num_shards: int = 0) -> None:
        if rows_per_shard < 1:
            raise ValueError(f"rows_per_shard={rows_per_shard}: expected 1 or more")
        self.num_shards = num_shards
        self._work = work
        self._rows_per_shard = rows_per_shard
        self._parquet: pq.ParquetWriter | None = None
        self._group: list[dict[str, Any]] = []
        self._group_bytes = 0
        self._shard_rows = 0

    def _temporary(self) -> Path:
        return self._work / f".{shard_name(self.num_shards)}.tmp"

    def add(self, record: DrivingRecord) -> bool:
        """Add a row; says whether it completed a shard."""
        self._group.append(row_of(record))
        self._group_bytes += sum(len(image.data) for image in record.images)
        self._shard_rows += 1
        if len(self._group) >= _GROUP_ROWS or self._group_bytes >= _GROUP_BYTES:
            self._flush_group()
        if self._shard_rows < self._rows_per_shard:
            return False
        self.finish_shard()
        return True

    def _flush_group(self) -> None:
        if not self._group:
            return
        if self._parquet is None:
            text_columns = [name for name in ALL_COLUMNS if name != "images"]
            self._parquet = pq.ParquetWriter(
                self._temporary(),
                SCHEMA,
                compression={name: "zstd" for name in text_columns},
                use_dictionary=["split", "source", "label_rule"],
                write_statistics=False,
                write_page_checksum=True,
            )
        self._parquet.write_table(pa.Table.from_pylist(self._group, schema=SCHEMA))
        self._group, self._group_bytes = [], 0

    def finish_shard(self) -> None:
        """Complete the shard being written, if there is one, and force it to disk."""
        self._flush_group()
        if self._parquet is None:
            return
        self._parquet.close()
        self._parquet = None
        temporary = self._temporary()
        fsync_path(temporary)
        os.replace(temporary, self._work / shard_name(self.num_shards))
        fsync_path(self._work)
        self.num_shards += 1
        self._shard_rows = 0

    def discard(self) -> None:
        """Give up the shard being written; complete ones stay."""
        if self._parquet is not None:
            self._parquet.close()
            self._parquet = None
        self._temporary().unlink(missing_ok=True)
