"""The trace by the rules of its format."""

import json
from collections import defaultdict
from itertools import pairwise

from timelines import learner_bound, span

from alphadrive.profiling.recording import Recording
from alphadrive.profiling.timeline import in_rows, write_timeline


def lanes_of(trace):
    """Spans (name, start, end) in microseconds by process and lane name; asserts the format's rules."""
    names = {}
    lanes = defaultdict(list)
    for event in trace["traceEvents"]:
        where = event["pid"], event["tid"]
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "process_sort_index", "thread_name", "thread_sort_index")
            if event["name"].endswith("_name"):
                names[event["name"], where] = event["args"]["name"]
            continue
        assert event["ph"] == "X" and event["dur"] >= 0 and isinstance(event["args"], dict)
        process = names["process_name", (event["pid"], 0)]
        lanes[process, names["thread_name", where]].append(
            (event["name"], event["ts"], event["ts"] + event["dur"])
        )
    return lanes


def assert_nested(spans):
    """No two overlap unless one is inside the other (to a nanosecond: times are in floating microseconds)."""
    open_ends = []
    for name, start, end in sorted(spans, key=lambda each: (each[1], -each[2])):
        while open_ends and open_ends[-1] <= start + 0.001:
            open_ends.pop()
        assert not open_ends or end <= open_ends[-1] + 0.001, (name, start, end)
        open_ends.append(end)


def test_a_trace_has_every_lane_and_no_overlap_in_any(tmp_path):
    trace = json.loads(write_timeline(tmp_path, learner_bound()).read_text())
    lanes = lanes_of(trace)
    for spans in lanes.values():
        assert_nested(spans)
    assert {name for name, *_ in lanes["driver", "train loop"]} == {"wait", "train", "sync", "checkpoint"}
    assert {name for name, *_ in lanes["rank-0", "spans"]} >= {"forward", "backward", "step", "checkpoint"}
    assert [name for name, *_ in lanes["rank-0", "reader"]] == ["pack"] * 4
    states = {name for name, *_ in lanes["engine-0", "state"]}
    assert states == {"generate", "wait: tickets", "wait: weights", "wait: groups", "wait: checkpoint"}
    assert ("engine-0", "groups 1") in lanes and ("engine-0", "groups 2") in lanes
    assert ("engine-0", "groups 3") not in lanes
    assert ("score", 3.6e6, 4.0e6) in lanes["w0", "state"]


def test_times_are_from_the_start_of_the_session(tmp_path):
    whole = learner_bound()
    later = Recording(facts=whole.facts, tracks=whole.tracks, started_ns=-2 * 10**9, unix_ns=whole.unix_ns)
    trace = json.loads(write_timeline(tmp_path, later).read_text())
    assert ("wait", 2e6, 3e6) in lanes_of(trace)["driver", "train loop"]
    assert trace["otherData"]["started_unix_s"] == 1.7e9


def test_groups_are_in_as_few_rows_as_it_takes():
    spans = [span("", "g", start, start + 3) for start in (0, 1, 2, 3, 4, 10)]
    rows = in_rows(spans)
    assert [[each.start_ns // 10**9 for each in row] for row in rows] == [[0, 3], [1, 4], [2, 10]]
    for row in rows:
        assert all(a.end_ns <= b.start_ns for a, b in pairwise(row))
