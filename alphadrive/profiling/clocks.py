"""How far another machine's clock is from the driver's, by round trips.

    driver   sent ──────────────────────▶ received        offset = (sent + received) / 2 - remote
    worker            └─▶ remote ──┘                      error  <= (received - sent) / 2

Of several round trips the shortest is believed (NTP's clock filter, RFC 5905 section 10), the oldest are
forgotten, so that clocks that drift are followed. Processes that read the same clock need none of this.
"""

from collections import deque
from dataclasses import dataclass

NUM_KEPT = 8


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """`sent_ns` and `received_ns` by the driver's clock, `remote_ns` by the other in between."""

    sent_ns: int
    remote_ns: int
    received_ns: int

    @property
    def delay_ns(self) -> int:
        """How long it took."""
        return self.received_ns - self.sent_ns

    @property
    def offset_ns(self) -> int:
        """What is added to the other clock to get the driver's, at most `delay_ns / 2` wrong."""
        return (self.sent_ns + self.received_ns) // 2 - self.remote_ns


class ClockOffsets:
    """The offsets of all clocks that were met. `own_clock` is the driver's, see `spans.clock_id`."""

    def __init__(self, own_clock: str) -> None:
        self._own_clock = own_clock
        self._trips: dict[str, deque[RoundTrip]] = {}

    def add(self, clock: str, trip: RoundTrip) -> None:
        """A round trip to a process that reads `clock`."""
        self._trips.setdefault(clock, deque(maxlen=NUM_KEPT)).append(trip)

    def offset_ns(self, clock: str) -> int:
        """What is added to times of `clock` to get the driver's. Raises KeyError for one never met."""
        return 0 if clock == self._own_clock else self._best(clock).offset_ns

    def error_ns(self, clock: str) -> int:
        """The most that this may be wrong."""
        return 0 if clock == self._own_clock else self._best(clock).delay_ns // 2

    def _best(self, clock: str) -> RoundTrip:
        return min(self._trips[clock], key=lambda trip: trip.delay_ns)
