"""The rules of the Trace Event Format, as far as a timeline uses it."""

from collections import defaultdict


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
        assert (
            event["ph"] == "X" and event["ts"] >= 0 and event["dur"] >= 0 and isinstance(event["args"], dict)
        )
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
