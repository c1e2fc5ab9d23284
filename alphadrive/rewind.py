"""Taking a run's records back to a checkpoint: what was written after it belongs to work that is done again.

    metrics.jsonl        lines of later steps go
    nonfinite/*.json     of later steps go
    rollouts/*.parquet   a group stays when its ticket had ended by the checkpoint: its query was trained,
                         skipped or given back. The query of any other ticket is asked again

Every file is replaced in one step, so that a crash on the way leaves what the next attempt takes back again.
"""

import json
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from alphadrive.atomic import write_text

_STEP_FILE = re.compile(r"step_(\d+)\.json")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EndedTickets:
    """The tickets that had ended at a checkpoint: those below `next_ticket`, the open ones excepted."""

    next_ticket: int
    open_tickets: frozenset[int]

    def __contains__(self, ticket: int) -> bool:
        return ticket < self.next_ticket and ticket not in self.open_tickets


NO_TICKETS = EndedTickets(0, frozenset())


def drop_metrics(path: Path, step: int) -> None:
    """Keep the lines of a `metrics.jsonl` up to `step`; one that a crash cut off goes, too."""
    if not path.is_file():
        return
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    kept = [line for line in lines if _is_up_to(line, step)]
    if len(kept) < len(lines):
        write_text(path, "".join(kept))
        log.info("%s: %d lines after step %d removed", path, len(lines) - len(kept), step)


def _is_up_to(line: str, step: int) -> bool:
    try:
        return bool(json.loads(line)["step"] <= step) and line.endswith("\n")
    except (ValueError, KeyError, TypeError):
        return False


def drop_step_files(folder: Path, step: int) -> None:
    """Remove the `step_….json` of later steps."""
    for path in folder.glob("step_*.json"):
        match = _STEP_FILE.fullmatch(path.name)
        if match and int(match[1]) > step:
            path.unlink()


def drop_unfinished(folder: Path) -> None:
    """Remove what killed writers left half written. Only where no writer is alive."""
    for path in folder.glob(".*.tmp"):
        path.unlink()


def drop_rollouts(folder: Path, ended: EndedTickets) -> None:
    """Keep the groups whose tickets had ended. A file that cannot be read is put aside under another name."""
    num_dropped = 0
    for path in sorted(folder.glob("*.parquet")):
        try:
            tickets = pq.read_table(path, columns=["ticket"])["ticket"].to_pylist()
            stays = [ticket in ended for ticket in tickets]
            if all(stays):
                continue
            num_dropped += stays.count(False)
            if any(stays):
                _rewrite(path, stays)
            else:
                path.unlink()
        except (pa.ArrowException, OSError, KeyError) as error:
            # Neither Parquet's readers, who pass over hidden files, nor ours, by the suffix, take it for one.
            aside = path.with_name(f".{path.name}.damaged")
            log.error("%s: cannot be read, put aside as %s: %s", path, aside.name, error)
            path.rename(aside)
    if num_dropped:
        log.info("%s: %d groups whose queries are asked again removed", folder, num_dropped)


def _rewrite(path: Path, stays: list[bool]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        pq.write_table(pq.read_table(path).filter(pa.array(stays)), temporary, compression="zstd")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
