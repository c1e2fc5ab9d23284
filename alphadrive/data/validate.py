"""Validation of whole datasets, and writing only what is valid.

Walks the shards in bounded memory and reports every problem at once, each as
`file: row N: field: what, got, expected`. One row's checks are in `alphadrive.data.checks`. Called
by `alphadrive data` and, before any worker starts, by `alphadrive.preflight`.
"""

import hashlib
import itertools
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from alphadrive.atomic import write_text
from alphadrive.data.candidates import REJECTED_FILE, Candidate, CandidateGate, rejected_text
from alphadrive.data.checks import RecordCheck, record_problems
from alphadrive.data.records import DrivingRecord
from alphadrive.data.schema import ALL_COLUMNS, UNREADABLE, checked_metadata, checked_shards, record_of
from alphadrive.data.writing import write_records
from alphadrive.errors import DataError

_BATCH_ROWS = 32
_SHOWN = 100


def problems_in(
    folder: Path | str,
    special_tokens: Sequence[str] = (),
    num_rows: int | None = None,
    extra_check: RecordCheck | None = None,
) -> list[str]:
    """Every problem of a dataset; empty when it is valid. See `iter_problems`."""
    return list(iter_problems(folder, special_tokens, num_rows, extra_check))


def iter_problems(
    folder: Path | str,
    special_tokens: Sequence[str] = (),
    num_rows: int | None = None,
    extra_check: RecordCheck | None = None,
) -> Iterator[str]:
    """The problems of a dataset one by one, as the shards are read.

    `special_tokens` are those of the tokenizer that will read the text. Only the first `num_rows` rows
    are looked at when given. `extra_check` adds problems of valid records (for example of length).
    Memory: one row group, and eight bytes and a little a row for finding duplicates.
    """
    try:
        shards = checked_shards(Path(folder))
    except DataError as error:
        yield str(error)
        return
    seen: dict[bytes, tuple[int, int]] = {}
    rows_left = num_rows
    for number, path in enumerate(shards):
        if rows_left is not None and rows_left <= 0:
            return
        try:
            metadata = checked_metadata(path)
        except DataError as error:
            yield str(error)
            continue
        for row, found in _rows_of(path, metadata, rows_left):
            if isinstance(found, DataError):
                yield str(found)
                continue
            where = f"{path}: row {row}"
            problems: Sequence[str] = record_problems(found, special_tokens)
            if not problems and extra_check is not None:
                problems = extra_check(where, found)
            for problem in problems:
                yield f"{where}: {problem}"
            key = hashlib.blake2b(str(found.query_id).encode(), digest_size=8).digest()
            if key in seen:
                first, first_row = seen[key]
                yield (
                    f"{path}: row {row}: query_id: {found.query_id!r} is also in {shards[first].name} "
                    f"row {first_row}; expected a different one in every row"
                )
            seen.setdefault(key, (number, row))
        if rows_left is not None:
            rows_left -= metadata.num_rows


def _rows_of(
    path: Path, metadata: pq.FileMetaData, limit: int | None
) -> Iterator[tuple[int, DrivingRecord | DataError]]:
    """The rows of a shard with their numbers; a row group that cannot be read becomes one error."""
    first = 0
    with pq.ParquetFile(path, page_checksum_verification=True) as parquet:
        for group in range(metadata.num_row_groups):
            row = first
            first += metadata.row_group(group).num_rows
            try:
                batches = parquet.iter_batches(
                    _BATCH_ROWS, row_groups=[group], columns=list(ALL_COLUMNS), use_threads=False
                )
                for values in itertools.chain.from_iterable(batch.to_pylist() for batch in batches):
                    if limit is not None and row >= limit:
                        return
                    yield row, record_of(values)
                    row += 1
            except UNREADABLE as error:
                yield (
                    row,
                    DataError(f"{path}: rows {row} to {first - 1} cannot be read: {error}; write it again"),
                )


def count_of_problems(number: int) -> str:
    """`1 problem`, `2 problems`."""
    return f"{number} problem" if number == 1 else f"{number} problems"


def raise_problems(problems: Iterable[str], what: str) -> None:
    """Raise one DataError that shows the first hundred problems and counts the rest, if there is any."""
    remaining = iter(problems)
    shown = list(itertools.islice(remaining, _SHOWN))
    if not shown:
        return
    num_more = sum(1 for _ in remaining)
    more = [f"... and {num_more} more"] if num_more else []
    raise DataError("\n".join([f"{what}: {count_of_problems(len(shown) + num_more)}", *shown, *more]))


def write_valid_records(
    candidates: Iterable[Candidate], folder: Path, max_bad_rows: int = 0
) -> tuple[int, int]:
    """Write the valid candidates to a new dataset; returns how many were written and how many rejected.

    Problems go to `rejected.jsonl` beside the shards. More than `max_bad_rows` rejected rows raise
    DataError with every problem, and nothing is written.
    """
    folder = Path(folder)
    with tempfile.TemporaryFile("w+", encoding="utf-8") as rejected:
        gate = CandidateGate(rejected)

        def valid() -> Iterator[DrivingRecord]:
            yield from (record for one in candidates if (record := gate.admit(one)) is not None)
            if gate.num_rejected > max_bad_rows:
                rejected.seek(0)
                raise_problems(
                    map(rejected_text, rejected),
                    f"{gate.num_rejected} bad rows (allowed: {max_bad_rows}), nothing written",
                )

        num_written = write_records(valid(), folder)
        if gate.num_rejected:
            rejected.seek(0)
            write_text(folder / REJECTED_FILE, rejected.read())
    return num_written, gate.num_rejected
