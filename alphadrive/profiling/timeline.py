"""`timeline.json`: a recording in the Trace Event Format, which Perfetto and chrome://tracing open.

A process a worker, the driver first. Its first lane, `state`, is what it did or waited for (see `states`),
the others are the spans as they were recorded. Groups that are under way at once are put into lanes
`groups 1`, `groups 2`, ..., as few as that takes. In no lane do two events overlap unless one is inside the
other.
"""

import heapq
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from alphadrive.atomic import write_text
from alphadrive.profiling.recording import GROUPS, KINDS, LOOP, Recording, Track
from alphadrive.profiling.spans import Span
from alphadrive.profiling.states import BUSY, LoopStates, worker_states
from alphadrive.profiling.steps import all_steps

TIMELINE_FILE = "timeline.json"
MAIN_LANES = {"": "spans", LOOP: "train loop"}
PID_STEP = 10_000
"""Ids of lanes are apart in all processes; the first one has its process's, which Perfetto shows on top."""

Event = dict[str, Any]


def write_timeline(folder: Path, recording: Recording) -> Path:
    """Write the timeline into a run's folder, whole or not at all."""
    path = folder / TIMELINE_FILE
    start_unix_ns = recording.unix_ns + start_ns(recording) - recording.started_ns
    trace = {
        "displayTimeUnit": "ms",
        "otherData": {"start_unix_s": start_unix_ns / 1e9, **recording.facts},
        "traceEvents": trace_events(recording),
    }
    write_text(path, json.dumps(trace, separators=(",", ":")))
    return path


def trace_events(recording: Recording) -> list[Event]:
    """All events: names of processes and lanes, then a complete event (`ph: X`) for each span. Times are in
    microseconds since `start_ns`."""
    states, zero_ns = _states(recording), start_ns(recording)
    events: list[Event] = []
    tracks = [track for kind in KINDS for track in recording.of_kind(kind)]
    for number, track in enumerate(tracks, start=1):
        pid = PID_STEP * number
        events += _metadata(pid, 0, "process", track.source, pid)
        lanes = list(_lanes(track, states.get(track.source, [])))
        for tid, (name, spans) in enumerate(lanes, start=pid):
            events += _metadata(pid, tid, "thread", name, tid)
            events += (_complete(span, pid, tid, zero_ns) for span in spans)
    return events


def start_ns(recording: Recording) -> int:
    """The start of the session, or of the first span where that was before: Perfetto drops negative
    times."""
    firsts = [track.spans[0].start_ns for track in recording.tracks.values() if track.spans]
    return min(recording.started_ns, *firsts) if firsts else recording.started_ns


def _states(recording: Recording) -> dict[str, list[Span]]:
    """Every worker's states as spans that are apart."""
    steps = all_steps(recording)
    if not steps:
        return {}
    loop = LoopStates(recording, steps, [(steps[0].window[0], steps[-1].window[1])])
    return {
        track.source: sorted(
            Span("state", _state_name(name, track.kind), start_ns, end_ns, {})
            for name, part in worker_states(track, loop).items()
            for start_ns, end_ns in part
        )
        for kind in BUSY
        for track in recording.of_kind(kind)
    }


def _state_name(name: str, kind: str) -> str:
    return name if name == BUSY[kind] else f"wait: {name}"


def _lanes(track: Track, states: Sequence[Span]) -> Iterator[tuple[str, list[Span]]]:
    if states:
        yield "state", sorted(states, key=lambda span: span.start_ns)
    for lane in sorted({span.lane for span in track.spans}, key=lambda lane: (lane == GROUPS, lane)):
        spans = [span for span in track.spans if span.lane == lane]
        if lane == GROUPS:
            yield from ((f"groups {row}", own) for row, own in enumerate(in_rows(spans), start=1))
        else:
            yield MAIN_LANES.get(lane, lane), spans


def in_rows(spans: Iterable[Span]) -> list[list[Span]]:
    """Spans in rows in which none overlap, as few as that takes; each goes to the row that is free longest.

    >>> [[span.name for span in row] for row in in_rows(
    ...     [Span("", "a", 0, 5, {}), Span("", "b", 3, 9, {}), Span("", "c", 5, 6, {})])]
    [['a', 'c'], ['b']]
    """
    rows: list[list[Span]] = []
    free: list[tuple[int, int]] = []
    for span in sorted(spans, key=lambda span: (span.start_ns, span.end_ns)):
        if free and free[0][0] <= span.start_ns:
            _, row = heapq.heappop(free)
            rows[row].append(span)
        else:
            row = len(rows)
            rows.append([span])
        heapq.heappush(free, (span.end_ns, row))
    return rows


def _metadata(pid: int, tid: int, what: str, name: str, order: int) -> list[Event]:
    where = {"ph": "M", "pid": pid, "tid": tid}
    return [
        {**where, "name": f"{what}_name", "args": {"name": name}},
        {**where, "name": f"{what}_sort_index", "args": {"sort_index": order}},
    ]


def _complete(span: Span, pid: int, tid: int, zero_ns: int) -> Event:
    return {
        "ph": "X",
        "name": span.name,
        "cat": span.lane or "main",
        "pid": pid,
        "tid": tid,
        "ts": (span.start_ns - zero_ns) / 1e3,
        "dur": (span.end_ns - span.start_ns) / 1e3,
        "args": span.args,
    }
