"""Imports that can be interrupted: a source's candidates into a dataset folder, shard by shard.

    DIR/.import/    while it is not complete: finished shards, rejected.jsonl, state.json, lock
    DIR/            at the end: part-00000.parquet …, rejected.jsonl

`state.json` is written after each finished shard and says how far the source was read. A source is a
list of units (a file, a segment, a scene) whose candidates come in the same order every time: going
on skips whole units and drops the candidates of the unit in progress up to where it was. Sources are
made by `metaad`, `comma2k19`, `nuscenes` and `csv_table`; `alphadrive.data.import_command` calls
`import_dataset`.
"""

import dataclasses
import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import pyarrow.parquet as pq

from alphadrive.atomic import fsync_path, write_json
from alphadrive.data.candidates import REJECTED_FILE, Candidate, CandidateGate, rejected_text
from alphadrive.data.schema import IMPORT_FOLDER, SCHEMA_VERSION, STATE_FILE, shard_paths
from alphadrive.data.validate import raise_problems
from alphadrive.data.writing import ROWS_PER_SHARD, ShardWriter, move_shards, refuse_existing_shards
from alphadrive.errors import DataError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceUnit:
    """A piece of a source that is read as a whole; `candidates()` starts at its beginning."""

    name: str
    candidates: Callable[[], Iterator[Candidate]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportSource:
    """What is imported: its units, the files they are read from, and every option that shapes the rows."""

    layout: str
    path: Path
    units: Sequence[SourceUnit]
    files: Sequence[Path]
    options: Mapping[str, str]
    needs_image: bool = True

    def fingerprint(self) -> dict[str, str]:
        """What must be the same for an interrupted import to go on."""
        found = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in self.files]
        return {
            "layout": self.layout,
            "source": str(self.path.resolve()),
            "schema": SCHEMA_VERSION,
            "files": hashlib.sha256(json.dumps(found).encode()).hexdigest(),
            **self.options,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportState:
    """How far an import is: units read whole, candidates of the next one, and what came of them."""

    fingerprint: dict[str, str]
    num_units: int = 0
    num_candidates: int = 0
    num_rows: int = 0
    num_shards: int = 0
    num_rejected: int = 0
    rejected_bytes: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    is_complete: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportResult:
    """What an import came to. `num_kept` rows were there from an import that was interrupted."""

    num_rows: int
    num_rejected: int
    left_out: Mapping[str, int]
    num_kept: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportProgress:
    """Where an import stands: units read (the one in progress by share), of how many, and rows."""

    units_done: float
    num_units: int
    unit: str
    num_rows: int
    num_rejected: int


def import_dataset(
    source: ImportSource,
    out: Path,
    *,
    max_bad_rows: int = 0,
    rows_per_shard: int = ROWS_PER_SHARD,
    report: Callable[[ImportProgress], None] = lambda progress: None,
) -> ImportResult:
    """Import a source into a new dataset folder, going on with an interrupted import of it.

    Raises DataError with every problem when more than `max_bad_rows` rows are bad: the folder then holds
    no dataset, only `rejected.jsonl`; so too when there is no row at all, when the folder already
    holds a dataset, an unfinished import of something else, or is in use by another process.
    """
    fingerprint = source.fingerprint() | {"rows_per_shard": str(rows_per_shard)}
    work = out / IMPORT_FOLDER
    with _locked(work):
        state = _found_state(work, fingerprint, max_bad_rows)
        if not (state.is_complete and state.num_shards):
            refuse_existing_shards(out)
        num_kept = 0 if state.is_complete else state.num_rows
        if not state.is_complete:
            state = _read_on(source, work, state, rows_per_shard, report)
        _finish(work, out, state, max_bad_rows)
    return ImportResult(
        num_rows=state.num_rows,
        num_rejected=state.num_rejected,
        left_out=state.left_out,
        num_kept=num_kept,
    )


@contextmanager
def _locked(work: Path) -> Iterator[None]:
    """The work folder, for this process alone; given up by the system when the process dies."""
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = (work / "lock").open("w")
    except OSError as error:
        raise DataError(f"{work.parent}: cannot write there: {error}; choose another folder") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"{work.parent}: another import is writing there; wait for it or choose another folder"
            ) from None
        except OSError as error:
            logger.warning("%s: this file system has no locks (%s); import only once at a time", work, error)
        try:
            yield
        finally:
            if not (work / STATE_FILE).exists():
                shutil.rmtree(work, ignore_errors=True)


def _found_state(work: Path, fingerprint: dict[str, str], max_bad_rows: int) -> ImportState:
    """The state to go on from. One that ended with too many bad rows is begun anew, for the source may
    have been mended, unless its bad rows are now allowed."""
    path = work / STATE_FILE
    if not path.exists():
        return ImportState(fingerprint=fingerprint)
    try:
        state = ImportState(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); remove {work} and import again") from error
    was_refused = state.is_complete and state.num_rejected > max_bad_rows
    if was_refused or (state.is_complete and not state.num_rows):
        _forget(work)
        return ImportState(fingerprint=fingerprint)
    for key in fingerprint.keys() | state.fingerprint.keys():
        got, had = fingerprint.get(key), state.fingerprint.get(key)
        if got != had:
            what = "the source's files have changed" if key == "files" else f"{key}: got {got!r}, had {had!r}"
            raise DataError(
                f"{work.parent}: holds an unfinished import of something else ({what}); give the same "
                f"source and options to finish it, remove {work}, or choose another folder"
            )
    return state


def _forget(work: Path) -> None:
    (work / STATE_FILE).unlink()
    for path in [*shard_paths(work), work / REJECTED_FILE]:
        path.unlink(missing_ok=True)


def _read_on(
    source: ImportSource,
    work: Path,
    state: ImportState,
    rows_per_shard: int,
    report: Callable[[ImportProgress], None],
) -> ImportState:
    """Read the rest of a source into the work folder; returns the final state, which is also saved."""
    for path in shard_paths(work)[state.num_shards :]:
        path.unlink()
    writer = ShardWriter(work, rows_per_shard, state.num_shards)
    with _rejected_file(work, state.rejected_bytes) as rejected:
        gate = CandidateGate(rejected, needs_image=source.needs_image)
        gate.num_rejected, gate.left_out = state.num_rejected, Counter(state.left_out)
        for path in shard_paths(work):
            gate.remember(pq.read_table(path, columns=["query_id"])["query_id"].to_pylist())
        num_rows = state.num_rows

        def save(num_units: int, num_candidates: int, *, is_complete: bool = False) -> ImportState:
            rejected.flush()
            os.fsync(rejected.fileno())
            saved = ImportState(
                fingerprint=state.fingerprint,
                num_units=num_units,
                num_candidates=num_candidates,
                num_rows=num_rows,
                num_shards=writer.num_shards,
                num_rejected=gate.num_rejected,
                rejected_bytes=rejected.tell(),
                left_out=dict(gate.left_out),
                is_complete=is_complete,
            )
            write_json(work / STATE_FILE, dataclasses.asdict(saved))
            return saved

        try:
            for number, index, unit, candidate in _remaining(source, state):
                record = gate.admit(candidate)
                num_rows += record is not None
                if record is not None and writer.add(record):
                    save(number, index + 1)
                report(
                    ImportProgress(
                        units_done=number + candidate.share_done,
                        num_units=len(source.units),
                        unit=unit.name,
                        num_rows=num_rows,
                        num_rejected=gate.num_rejected,
                    )
                )
            writer.finish_shard()
            return save(len(source.units), 0, is_complete=True)
        finally:
            writer.discard()


def _remaining(source: ImportSource, state: ImportState) -> Iterator[tuple[int, int, SourceUnit, Candidate]]:
    """The candidates not yet dealt with: number of the unit, index within it, the unit, the candidate."""
    for number, unit in enumerate(source.units):
        if number < state.num_units:
            continue
        first = state.num_candidates if number == state.num_units else 0
        for index, candidate in enumerate(unit.candidates()):
            if index >= first:
                yield number, index, unit, candidate


@contextmanager
def _rejected_file(work: Path, num_bytes: int) -> Iterator[TextIO]:
    """The file of rejected rows, cut back to what the state knows of, open at its end."""
    path = work / REJECTED_FILE
    path.touch()
    os.truncate(path, num_bytes)
    with path.open("a", encoding="utf-8") as file:
        yield file


def _finish(work: Path, out: Path, state: ImportState, max_bad_rows: int) -> None:
    """Move a complete import to where it is read, or refuse it."""
    rejected = work / REJECTED_FILE
    if state.num_rejected:
        with rejected.open(encoding="utf-8") as lines:
            if state.num_rejected > max_bad_rows:
                shutil.copyfile(rejected, out / REJECTED_FILE)
                raise_problems(
                    map(rejected_text, lines),
                    f"{out}: no dataset, for {state.num_rejected} bad rows where {max_bad_rows} are allowed; "
                    f"mend them, or leave them out with --max-bad-rows {state.num_rejected} (all are in "
                    f"{out / REJECTED_FILE})",
                )
    if not state.num_rows:
        _forget(work)
        reasons = "; ".join(f"{count} {reason}" for reason, count in state.left_out.items())
        raise DataError(f"{out}: the source gave no row ({reasons or 'it holds none'}), nothing written")
    if state.num_rejected:
        shutil.copyfile(rejected, out / REJECTED_FILE)
    else:
        (out / REJECTED_FILE).unlink(missing_ok=True)
    move_shards(work, out)
    (work / STATE_FILE).unlink()
    fsync_path(out)
