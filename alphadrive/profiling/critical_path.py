"""The critical path of a step: what its time was spent on, one thing at a time.

From the end of the step back to its start: the weight sync, the training (by the slowest rank's spans), and
where the loop waited, the group that came last: its reward, the engine that drew it, and what passed before
an engine had it. Only what lies inside the step counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from alphadrive.profiling.intervals import Interval, Intervals, common, divided, length_ns, union, without
from alphadrive.profiling.recording import GROUPS, Recording, Track
from alphadrive.profiling.spans import Span
from alphadrive.profiling.steps import Step

LEARNER_PARTS = ("data_wait", "forward", "backward", "step")
"""Spans of a rank inside `train`, see `learner`."""


@dataclass(frozen=True, slots=True)
class Segment:
    """So many seconds of the path were spent on `what`; `phase` is what the train loop did then."""

    phase: str
    what: str
    seconds: float


def median_step(steps: Sequence[Step]) -> Step:
    """The step of median duration (the shorter of the middle two); there must be one."""
    return sorted(steps, key=lambda step: step.duration_ns)[(len(steps) - 1) // 2]


def critical_path(recording: Recording, step: Step) -> list[Segment]:
    """The segments in the order of the loop; together they are the step's duration."""
    seconds: dict[tuple[str, str], float] = {}
    left: Intervals = [step.window]
    for span in step.spans:
        window = (span.start_ns, span.end_ns)
        left = without(left, [window])
        layers, rest = _layers(recording, step, span)
        parts = divided([window], layers, rest)
        names = [*dict.fromkeys(name for name, _ in layers), rest]
        for what in reversed(names) if span.name == "wait" else names:
            if what in parts:
                at = (span.name, what)
                seconds[at] = seconds.get(at, 0.0) + length_ns(parts[what]) / 1e9
    if left:
        seconds["other", "between"] = length_ns(left) / 1e9
    return [Segment(phase, what, duration) for (phase, what), duration in seconds.items()]


def _layers(recording: Recording, step: Step, span: Span) -> tuple[list[tuple[str, Intervals]], str]:
    window = (span.start_ns, span.end_ns)
    if span.name == "wait":
        return _of_waiting(recording, step.last_group)
    if span.name == "train":
        return _of_training(recording, window), "other"
    if span.name == "sync":
        return _of_sync(recording, window), "telling workers"
    return [], span.name


def _of_waiting(recording: Recording, ticket: int | None) -> tuple[list[tuple[str, Intervals]], str]:
    """The life of the group that came last, as its engine and the driver saw it."""
    if ticket is None:
        return [], "groups"
    drawn: Intervals = []
    paused: Intervals = []
    for track in recording.of_kind("rollout"):
        own = union(
            (span.start_ns, span.end_ns)
            for span in track.named("generate", lane=GROUPS)
            if span.args.get("ticket") == ticket
        )
        drawn = union([*drawn, *own])
        paused = union([*paused, *common(own, track.moments("paused"))])
    told = _of_ticket(recording.driver, "generate", ticket)
    return [
        ("reward", _of_ticket(recording.driver, "reward", ticket)),
        ("engine paused for weights", paused),
        ("generate", drawn),
        ("order, answer and proof", told),
    ], "other groups"


def _of_ticket(driver: Track, name: str, ticket: int) -> Intervals:
    return union(
        (span.start_ns, span.end_ns)
        for span in driver.named(name, lane=GROUPS)
        if span.args.get("ticket") == ticket
    )


def _of_training(recording: Recording, window: Interval) -> list[tuple[str, Intervals]]:
    """The spans of the rank whose part of this step took longest; where all is one process, of that."""

    def its_step(track: Track) -> list[Span]:
        trained = track.named("train", lane="")
        return [span for span in trained if window[0] <= span.start_ns and span.end_ns <= window[1]]

    ranks = [
        (spans[0].end_ns, track.source)
        for track in recording.of_kind("learner") or [recording.driver]
        if (spans := its_step(track))
    ]
    if not ranks:
        return []
    slowest = recording.tracks[max(ranks)[1]]
    return [(name, slowest.moments(name, lane="")) for name in LEARNER_PARTS]


def _of_sync(recording: Recording, window: Interval) -> list[tuple[str, Intervals]]:
    ranks, engines = recording.of_kind("learner"), recording.of_kind("rollout")

    def moments(tracks: Sequence[Track], name: str) -> Intervals:
        return common([window], union(piece for track in tracks for piece in track.moments(name)))

    return [
        ("export", moments(ranks, "export")),
        ("canary, learner", moments(ranks, "canary")),
        ("engines paused", moments(engines, "paused")),
        ("engines update and draw canaries", moments(engines, "sync")),
    ]
