"""The trace by the rules of its format."""

import json
from itertools import pairwise

from timelines import learner_bound, span
from trace_rules import assert_nested, lanes_of

from alphadrive.profiling.recording import Recording
from alphadrive.profiling.timeline import in_rows, write_timeline


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


def test_the_lane_that_matters_most_is_a_processs_main_one(tmp_path):
    events = json.loads(write_timeline(tmp_path, learner_bound()).read_text())["traceEvents"]
    lanes = [each for each in events if each["name"] == "thread_name"]
    assert len({each["tid"] for each in lanes}) == len(lanes)
    mains = [each["args"]["name"] for each in lanes if each["tid"] == each["pid"]]
    assert mains == ["train loop", "state", "state", "state"]


def test_times_are_from_the_start_of_the_session(tmp_path):
    whole = learner_bound()
    later = Recording(facts=whole.facts, tracks=whole.tracks, started_ns=-2 * 10**9, unix_ns=whole.unix_ns)
    trace = json.loads(write_timeline(tmp_path, later).read_text())
    assert ("wait", 2e6, 3e6) in lanes_of(trace)["driver", "train loop"]
    assert trace["otherData"]["start_unix_s"] == 1.7e9


def test_what_was_recorded_before_the_session_began_is_not_lost(tmp_path):
    whole = learner_bound()
    whole.tracks["rank-0"].spans.insert(0, span("", "canary", -3, -2.5))
    trace = json.loads(write_timeline(tmp_path, whole).read_text())
    lanes = lanes_of(trace)
    assert lanes["rank-0", "spans"][0] == ("canary", 0.0, 0.5e6)
    assert ("wait", 3e6, 4e6) in lanes["driver", "train loop"]
    assert trace["otherData"]["start_unix_s"] == 1.7e9 - 3


def test_groups_are_in_as_few_rows_as_it_takes():
    spans = [span("", "g", start, start + 3) for start in (0, 1, 2, 3, 4, 10)]
    rows = in_rows(spans)
    assert [[each.start_ns // 10**9 for each in row] for row in rows] == [[0, 3], [1, 4], [2, 10]]
    for row in rows:
        assert all(a.end_ns <= b.start_ns for a, b in pairwise(row))
