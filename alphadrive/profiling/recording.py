"""What was recorded of one session of a run: every process's spans by the driver's clock."""

from dataclasses import dataclass, field

from alphadrive.profiling.intervals import Interval, Intervals, union
from alphadrive.profiling.spans import Args, Span

KINDS = ("driver", "learner", "rollout", "reward")
GROUPS = "groups"
"""The lane in which spans may overlap: groups that are under way at once."""
LOOP = "loop"
"""The driver's lane of the train loop: `wait`, `train`, `sync`, `evaluate`, `checkpoint`."""


@dataclass(slots=True, kw_only=True)
class Track:
    """One process. `spans` are in order of their start; `seen_ns` are the moments at which it was asked for
    them, `error_ns` the most that its times may be wrong."""

    kind: str
    source: str
    spans: list[Span] = field(default_factory=list)
    facts: Args = field(default_factory=dict)
    num_dropped: int = 0
    error_ns: int = 0
    seen_ns: list[int] = field(default_factory=list)

    def named(self, *names: str, lane: str | None = None) -> list[Span]:
        """Its spans of these names, of one lane if given."""
        return [span for span in self.spans if span.name in names and lane in (None, span.lane)]

    def moments(self, *names: str, lane: str | None = None) -> Intervals:
        """When any of them was under way."""
        return union((span.start_ns, span.end_ns) for span in self.named(*names, lane=lane))

    @property
    def presence(self) -> Interval:
        """From the first to the last thing known of it."""
        known = [
            *self.seen_ns,
            *(span.start_ns for span in self.spans),
            *(span.end_ns for span in self.spans),
        ]
        return (min(known), max(known)) if known else (0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A session. `facts` are of the run (see `cluster.profiler`), `started_ns` and `unix_ns` the same moment
    by the driver's clock and in Unix time."""

    facts: Args
    tracks: dict[str, Track]
    started_ns: int
    unix_ns: int

    def of_kind(self, kind: str) -> list[Track]:
        """The processes of a kind, by name."""
        return sorted((track for track in self.tracks.values() if track.kind == kind), key=_natural)

    @property
    def driver(self) -> Track:
        """The driver's own spans; an empty track where there are none."""
        drivers = self.of_kind("driver")
        return drivers[0] if drivers else Track(kind="driver", source="driver")

    def fact(self, name: str, default: float = 0.0) -> float:
        """A number of the run."""
        return float(self.facts.get(name, default))


def _natural(track: Track) -> tuple[int, str]:
    return len(track.source), track.source
