"""`spans.jsonl` in a run's folder: what was recorded, written as the run goes on.

    {"session": 1763, "mono_ns": …, "unix_ns": …, "facts": {…}}       a driver (or a new learner) has begun
    {"source": "rank-0", "kind": "learner", "spans": [[lane, name, start_ns, end_ns, {…}], …], …}

One line a batch, times by the driver's clock. A kill costs the line that is being written. Of a long run the
newest part is kept: a file that is full becomes `spans.1.jsonl`, and the one before goes.
"""

import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from alphadrive.profiling.recording import Recording, Track
from alphadrive.profiling.spans import Span, SpanBatch

logger = logging.getLogger(__name__)

SPAN_FILE, OLDER_FILE = "spans.jsonl", "spans.1.jsonl"
MAX_BYTES = 48 << 20
"""Of each of the two."""


class SpanFile:
    """Writes a session's spans. `facts` are what the analysis must know of the run. A full disk costs the
    spans, not the run."""

    def __init__(self, folder: Path, facts: Mapping[str, float | str], max_bytes: int = MAX_BYTES) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._header = {
            "session": time.time_ns(),
            "mono_ns": time.monotonic_ns(),
            "unix_ns": time.time_ns(),
            "facts": dict(facts),
        }
        self._has_failed = False
        self._append([self._header])

    def write(self, batches: Iterable[tuple[SpanBatch, int, int]]) -> None:
        """Append batches, each with what is to be added to its times and the most that this is wrong (ns)."""
        lines = [_line(batch, offset_ns, error_ns) for batch, offset_ns, error_ns in batches]
        if lines:
            self._append(lines)

    def _append(self, lines: list[dict[str, Any]]) -> None:
        path = self._folder / SPAN_FILE
        try:
            if path.is_file() and path.stat().st_size > self._max_bytes:
                path.replace(self._folder / OLDER_FILE)
                lines = [self._header, *lines]
            with path.open("a", encoding="utf-8") as file:
                # A line of its own, whatever a kill has left of the one before.
                start = "\n" if file.tell() and lines[0] is self._header else ""
                file.write(start + "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))
        except OSError as error:
            if not self._has_failed:
                logger.error("%s: spans cannot be written: %s", path, error)
            self._has_failed = True


def _line(batch: SpanBatch, offset_ns: int, error_ns: int) -> dict[str, Any]:
    return {
        "source": batch.source,
        "kind": batch.kind,
        "taken_ns": batch.taken_ns + offset_ns,
        "offset_ns": offset_ns,
        "error_ns": error_ns,
        "dropped": batch.num_dropped,
        "facts": batch.facts,
        "spans": [
            [lane, name, start_ns + offset_ns, end_ns + offset_ns, args]
            for lane, name, start_ns, end_ns, args in batch.spans
        ],
    }


def has_spans(folder: Path) -> bool:
    """Whether a run was profiled."""
    return (folder / SPAN_FILE).is_file()


def read_spans(folder: Path) -> Recording:
    """The newest session of a run, live, ended or killed. A line that was cut off is left out. Raises
    FileNotFoundError when the run was not profiled, ValueError when nothing can be read."""
    header: dict[str, Any] | None = None
    lines: list[dict[str, Any]] = []
    for line in _lines(folder):
        if "session" not in line:
            lines.append(line)
        elif header is None or line["session"] != header["session"]:
            header, lines = line, []
    if header is None:
        raise ValueError(f"{folder / SPAN_FILE}: no session in it")
    tracks: dict[str, Track] = {}
    for line in lines:
        track = tracks.setdefault(line["source"], Track(kind=line["kind"], source=line["source"]))
        track.spans.extend(Span(*span) for span in line["spans"])
        track.facts.update(line["facts"])
        track.num_dropped += line["dropped"]
        track.error_ns = max(track.error_ns, line["error_ns"])
        track.seen_ns.append(line["taken_ns"])
    for track in tracks.values():
        track.spans.sort(key=lambda span: (span.start_ns, -span.end_ns))
    return Recording(
        facts=header["facts"],
        tracks=tracks,
        started_ns=header["mono_ns"],
        unix_ns=header["unix_ns"],
    )


def _lines(folder: Path) -> Iterator[dict[str, Any]]:
    for name in (OLDER_FILE, SPAN_FILE):
        path = folder / name
        if name == OLDER_FILE and not path.is_file():
            continue
        with path.open(encoding="utf-8", errors="replace") as file:
            for text in file:
                try:
                    line = json.loads(text)
                except ValueError:
                    continue
                if isinstance(line, dict):
                    yield line
