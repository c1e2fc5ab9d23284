"""Walking over some columns of a dataset, without its pixels: quick, and in bounded memory.

For what asks about all rows at once: statistics, scenes in splits, choosing rows to look at. Values
come as they are in the file; `alphadrive.data.validate` judges them.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from alphadrive.data.schema import UNREADABLE, checked_metadata, checked_shards
from alphadrive.errors import DataError

_BATCH_ROWS = 1024


@dataclass(frozen=True, slots=True)
class ScannedRow:
    """Some values of a row: its number in the dataset, its shard and its number there."""

    index: int
    shard: Path
    shard_row: int
    values: dict[str, Any]

    @property
    def where(self) -> str:
        """File and row, for messages."""
        return f"{self.shard}: row {self.shard_row}"


def scan(folder: Path, columns: Sequence[str], num_rows: int | None = None) -> Iterator[ScannedRow]:
    """These columns of the first `num_rows` rows (all when None), in order.

    Raises DataError for a folder without shards, and a shard that is damaged or of another schema.
    """
    index = 0
    for shard in checked_shards(folder):
        checked_metadata(shard)
        for shard_row, values in enumerate(_values(shard, columns)):
            if num_rows is not None and index >= num_rows:
                return
            yield ScannedRow(index, shard, shard_row, values)
            index += 1


def queries_sha256(folder: Path, num_rows: int | None = None) -> str:
    """What tells the first `num_rows` rows (all when None) from others: ids and plans, in order. Raises as
    `scan`."""
    digest = hashlib.sha256()
    for row in scan(folder, ("query_id", "plans"), num_rows):
        digest.update(json.dumps([row.values["query_id"], row.values["plans"]]).encode())
    return digest.hexdigest()


def _values(shard: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    try:
        with pq.ParquetFile(shard, page_checksum_verification=True) as parquet:
            for batch in parquet.iter_batches(_BATCH_ROWS, columns=list(columns), use_threads=False):
                yield from batch.to_pylist()
    except UNREADABLE as error:
        raise DataError(f"{shard}: cannot be read: {error}; damaged: write the dataset again") from error
