"""Rows on their way into a dataset, and the gate that lets only valid ones in.

Importers and the world yield `Candidate`s; the gate applies the checks of `alphadrive.data.checks`,
looks for repeated ids and writes every problem as a line of `rejected.jsonl`.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TextIO

from alphadrive.data.checks import record_problems
from alphadrive.data.records import DrivingRecord

REJECTED_FILE = "rejected.jsonl"
_FIELD = re.compile(r"([A-Za-z_][\w./]*(?:\[\d+\])?(?:\.\w+)?(?:, \w+)*): (.*)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A row on its way into a dataset: the record, or why there is none.

    `where` is the file, or what stands for one; `row` the place in it. `problems` are `field: what is
    wrong`; `left_out` says why a sound piece of the source makes no row (not an error, only counted).
    `share_done` is how much of its source unit is read with it, for the progress display.
    """

    where: str
    row: int | str | None = None
    record: DrivingRecord | None = None
    problems: Sequence[str] = ()
    left_out: str | None = None
    share_done: float = 0.0

    @property
    def place(self) -> str:
        """File and row, for messages: `rows.json: row 3`."""
        return self.where if self.row is None else f"{self.where}: row {self.row}"


class CandidateGate:
    """Lets valid records through, writes the problems of the others, and counts what was left out.

    Memory: eight bytes and a little for every row, for finding repeated ids.
    """

    def __init__(self, rejected: TextIO, *, needs_image: bool = True) -> None:
        self.num_rejected = 0
        self.left_out: Counter[str] = Counter()
        self._rejected = rejected
        self._needs_image = needs_image
        self._seen: set[bytes] = set()

    def remember(self, query_ids: Iterable[str]) -> None:
        """Take ids as seen: those of rows that are already written."""
        self._seen.update(_digest(query_id) for query_id in query_ids)

    def admit(self, candidate: Candidate) -> DrivingRecord | None:
        """The record when it is valid; otherwise None, after noting why."""
        if candidate.left_out is not None:
            self.left_out[candidate.left_out] += 1
            return None
        record, problems = candidate.record, list(candidate.problems)
        if record is not None:
            problems += record_problems(record, needs_image=self._needs_image)
            digest = _digest(record.query_id)
            if digest in self._seen:
                problems.append(f"query_id: {record.query_id!r} is also in an earlier row")
            self._seen.add(digest)
        if not problems:
            return record
        self.num_rejected += 1
        for problem in problems:
            print(_rejected_line(candidate, problem), file=self._rejected)
        return None


def _digest(query_id: str) -> bytes:
    return hashlib.blake2b(query_id.encode(errors="surrogatepass"), digest_size=8).digest()


def _rejected_line(candidate: Candidate, problem: str) -> str:
    named = _FIELD.fullmatch(problem)
    field, reason = named.groups() if named else (None, problem)
    line = json.dumps(
        {"file": candidate.where, "row": candidate.row, "field": field, "reason": reason}, ensure_ascii=False
    )
    # A file's name need not be UTF-8; the replacement is JSON's own escape.
    return line.encode(errors="backslashreplace").decode()


def rejected_text(line: str) -> str:
    """A line of `rejected.jsonl` as a message: `file: row N: field: reason`."""
    entry = json.loads(line)
    parts = [entry["file"], f"row {entry['row']}" if entry["row"] is not None else None, entry["field"]]
    return ": ".join([*(part for part in parts if part), entry["reason"]])
