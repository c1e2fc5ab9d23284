"""What a process records when a run is profiled.

    begin("learner", "rank-0")                 once a process; before it `span` does nothing
    with span("forward") as forward: ...       one span; `forward.note(tokens=80)` adds to its arguments
    take()                                     the spans since the last call, to be sent to the driver

Times are of the machine's monotonic clock, which all processes of a machine share. Memory is bounded: when
nobody takes them, the oldest spans are dropped, and counted.
"""

import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, TypeVar

Given = TypeVar("Given")
Gives = TypeVar("Gives")

CAPACITY = 50_000
"""Spans that a process keeps: about 15 MB."""

Args = dict[str, float | str]


class Span(NamedTuple):
    """Something that took from `start_ns` to `end_ns`. Spans of one `lane` of a process are apart or nested,
    but in lanes called `groups`."""

    lane: str
    name: str
    start_ns: int
    end_ns: int
    args: Args


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanBatch:
    """What a process has recorded since the last time. `clock` says whose monotonic clock the times are of,
    `taken_ns` is that clock when the batch was made."""

    kind: str
    source: str
    clock: str
    taken_ns: int
    num_dropped: int
    spans: list[Span]
    facts: Args = field(default_factory=dict)


class SpanLog:
    """The spans of one process; any thread may add."""

    def __init__(self, kind: str, source: str, capacity: int = CAPACITY) -> None:
        self.kind, self.source = kind, source
        self.facts: Args = {}
        self._spans: deque[Span] = deque(maxlen=capacity)
        self._num_dropped = 0

    def add(self, span: Span) -> None:
        """Keep a span; the oldest one goes where there is no room."""
        if len(self._spans) == self._spans.maxlen:
            self._num_dropped += 1
        self._spans.append(span)

    def take(self) -> SpanBatch:
        """The spans since the last call."""
        spans = [self._spans.popleft() for _ in range(len(self._spans))]
        dropped, self._num_dropped = self._num_dropped, 0
        return SpanBatch(
            kind=self.kind,
            source=self.source,
            clock=clock_id(),
            taken_ns=time.monotonic_ns(),
            num_dropped=dropped,
            spans=spans,
            facts=dict(self.facts),
        )


class OpenSpan:
    """A span under way; recorded when its block ends, however that is."""

    __slots__ = ("_args", "_lane", "_log", "_name", "_start_ns")

    def __init__(self, log: SpanLog, name: str, lane: str, args: Args) -> None:
        self._log, self._name, self._lane, self._args = log, name, lane, args
        self._start_ns = 0

    def __enter__(self) -> "OpenSpan":
        self._start_ns = time.monotonic_ns()
        return self

    def note(self, **args: float | str) -> None:
        """Add arguments."""
        self._args.update(args)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._log.add(Span(self._lane, self._name, self._start_ns, time.monotonic_ns(), self._args))


class NoSpan:
    """What `span` gives when nothing is recorded."""

    __slots__ = ()

    def __enter__(self) -> "NoSpan":
        return self

    def note(self, **args: float | str) -> None:
        """Nothing."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


_NO_SPAN = NoSpan()
_log: SpanLog | None = None


def begin(kind: str, source: str, **facts: float | str) -> None:
    """Record from now on. `kind` is `driver`, `learner`, `rollout` or `reward`, `source` the worker's id.
    What is recorded already stays."""
    global _log
    if _log is None:
        _log = SpanLog(kind, source)
    _log.facts.update(facts)


def end() -> None:
    """Record no more, and forget what was not taken."""
    global _log
    _log = None


def is_recording() -> bool:
    """Whether `begin` was called."""
    return _log is not None


def span(name: str, lane: str = "", **args: float | str) -> OpenSpan | NoSpan:
    """A span for the length of a `with` block."""
    return _NO_SPAN if _log is None else OpenSpan(_log, name, lane, args)


def add_span(name: str, start_s: float, lane: str = "", **args: float | str) -> None:
    """A span from `start_s` (as `time.monotonic` gives it) until now."""
    if _log is not None:
        _log.add(Span(lane, name, round(start_s * 1e9), time.monotonic_ns(), args))


def in_span(name: str, call: Callable[[Given], Gives], lane: str = "") -> Callable[[Given], Gives]:
    """A function that records each of its calls."""

    def called(given: Given) -> Gives:
        with span(name, lane):
            return call(given)

    return called


def note_facts(**facts: float | str) -> None:
    """Tell something of this process that the analysis must know."""
    if _log is not None:
        _log.facts.update(facts)


def take() -> SpanBatch | None:
    """What was recorded since the last call; None when nothing is recorded."""
    return None if _log is None else _log.take()


def clock_id() -> str:
    """Which monotonic clock this process reads: one boot of one machine, and one time namespace of it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        boot = f"host-{socket.gethostname()}"
    try:
        return f"{boot} {Path('/proc/self/ns/time').readlink()}"
    except OSError:
        return boot
