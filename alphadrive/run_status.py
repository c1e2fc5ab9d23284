"""A run's status as text for people. Pure: the status is what `status.json` holds and live runs tell.

For machines there is `alphadrive status --json`; what the keys mean is in docs/operating.md.
"""

from collections.abc import Iterable, Sequence
from typing import Any

Status = dict[str, Any]

_COLUMNS = ("kind", "id", "pid", "node", "state", "weights", "groups", "last progress")
_NODE_DIGITS = 8


def status_text(label: str, status: Status, now_s: float) -> str:
    """All that is known of a run; `now_s` is the Unix time it is shown at.

    Ages of workers are as of the status, so that clocks of other machines do not matter.
    """
    lines = [_headline(label, status, now_s)]
    lines += [f"  {name:<12} {words}" for name, words in _facts(status) if words]
    lines += [f"  {'pending' if first else '':<12} {line}" for first, line in _first(pending_lines(status))]
    workers = status.get("workers") or []
    if workers:
        lines += ["", *_table([_COLUMNS, *(_row(worker, status["updated_s"]) for worker in workers)])]
    return "\n".join(lines)


def pending_lines(status: Status) -> list[str]:
    """What is still to happen until as many workers serve as are wanted, one line each."""
    lines = []
    for entry in status.get("pending") or []:
        line = f"{workers_text(entry['count'], entry['kind'])} {entry['what']}"
        if needs := entry.get("needs"):
            each = " and ".join(f"{amount:g} {name}" for name, amount in needs.items())
            where = f" on a node with {entry['pool']}" if "pool" in entry else ""
            line += f" for room in the cluster: {each} each{where}; Ray has been asked for it"
        lines.append(line)
    return lines


def _headline(label: str, status: Status, now_s: float) -> str:
    reason = f" ({status['reason']})" if status.get("reason") else ""
    head = f"{label}: {status['status']}{reason}"
    if status["live"]:
        return head
    age = age_text(now_s - status["updated_s"])
    return f"{head}\n  not live, this is from status.json, written {age} ago\n  {status['note']}"


def _facts(status: Status) -> Iterable[tuple[str, str]]:
    up = age_text(status["updated_s"] - status["started_s"])
    host = f" on {status['host']}" if "host" in status else ""
    yield "stage", f"{status['stage']}, attempt {status['attempt']}, process {status['pid']}{host}, {up} long"
    saved = status.get("checkpoint_step")
    checkpoint = f", newest checkpoint of step {saved}" if saved is not None else ", no checkpoint yet"
    yield "step", f"{status['step']} of {status['steps']}{checkpoint}"
    yield "weights", status.get("weight_version") or ""
    yield "throughput", _throughput(status.get("throughput") or {})
    if buffer := status.get("buffer"):
        yield "buffer", f"{buffer['slots']} slots, {buffer['held']} held, {buffer['ready']} ready"
    if validation := status.get("validation"):
        accuracy = validation["val/planning_accuracy"]
        yield "validation", f"planning accuracy {accuracy:.1%} at step {validation['step']}"
    if "dead_letters" in status:
        yield "dead letters", str(status["dead_letters"])
    if autoscale := status.get("autoscale"):
        yield "autoscale", _autoscale(autoscale)


def _throughput(throughput: Status) -> str:
    words = (
        ("samples_per_s", "{:.1f} samples/s"),
        ("tokens_per_s", "{:.0f} tokens/s"),
        ("learner_idle_share", "learner idle {:.0%}"),
    )
    return ", ".join(text.format(throughput[name]) for name, text in words if name in throughput)


def _autoscale(autoscale: Status) -> str:
    text = f"{autoscale['min']} to {autoscale['max']} workers"
    text += f", {autoscale['num_ups']} up, {autoscale['num_downs']} down"
    if not autoscale["is_on"]:
        return f"{text}; {autoscale['note']}"
    if last := autoscale["last"]:
        text += f"; last {last['from']} -> {last['to']} at step {last['step']}: {last['reason']}"
    return text


def _row(worker: Status, as_of_s: float) -> tuple[str, ...]:
    progress_s = worker["last_progress_s"]
    return (
        worker["kind"],
        worker["id"],
        _or_dash(worker["pid"]),
        _or_dash(worker["node"])[:_NODE_DIGITS],
        worker["state"],
        _or_dash(worker["weight_version"]),
        str(worker["groups_done"]),
        "-" if progress_s is None else f"{age_text(max(0.0, as_of_s - progress_s))} ago",
    )


def _or_dash(value: object) -> str:
    return "-" if value is None else str(value)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
    return [f"  {'  '.join(row)}".rstrip() for row in padded]


def _first(lines: Iterable[str]) -> Iterable[tuple[bool, str]]:
    return ((number == 0, line) for number, line in enumerate(lines))


def workers_text(count: int, kind: str) -> str:
    """`1 rollout worker`, `2 rollout workers`."""
    return f"{count} {kind} worker{'s' if count != 1 else ''}"


def age_text(seconds: float) -> str:
    """A length of time for people.

    >>> age_text(0.42), age_text(75), age_text(7500)
    ('0.4 s', '1 min 15 s', '2 h 5 min')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
