"""The offset of another clock from round trips whose true delays are known."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alphadrive.profiling.clocks import NUM_KEPT, ClockOffsets, RoundTrip


def trip(sent_ns, there_ns, back_ns, remote_is_ahead_ns):
    """A round trip to a clock that shows so much more than ours."""
    return RoundTrip(sent_ns, sent_ns + there_ns + remote_is_ahead_ns, sent_ns + there_ns + back_ns)


def test_the_own_clock_needs_no_round_trip():
    offsets = ClockOffsets("here")
    assert offsets.offset_ns("here") == offsets.error_ns("here") == 0
    with pytest.raises(KeyError):
        offsets.offset_ns("elsewhere")


def test_the_shortest_round_trip_is_believed():
    offsets = ClockOffsets("here")
    offsets.add("there", trip(0, 5_000, 90_000, 10**9))
    offsets.add("there", trip(10**6, 400, 600, 10**9))
    offsets.add("there", trip(2 * 10**6, 80_000, 2_000, 10**9))
    assert offsets.offset_ns("there") == -(10**9) + 100
    assert offsets.error_ns("there") == 500


@given(
    st.integers(-(10**15), 10**15),
    st.lists(st.tuples(st.integers(0, 10**7), st.integers(0, 10**7)), min_size=1),
)
def test_the_error_is_never_more_than_is_said(ahead_ns, delays):
    offsets = ClockOffsets("here")
    for number, (there_ns, back_ns) in enumerate(delays):
        offsets.add("there", trip(number * 10**9, there_ns, back_ns, ahead_ns))
    assert abs(offsets.offset_ns("there") + ahead_ns) <= offsets.error_ns("there") + 1


def test_a_clock_that_drifts_is_followed():
    offsets, chance = ClockOffsets("here"), random.Random(0)
    for second in range(3600):
        ahead_ns = 5_000_000 + second * 50_000  # 50 ppm
        offsets.add("there", trip(second * 10**9, 100_000, chance.randrange(100_000, 300_000), ahead_ns))
    assert abs(offsets.offset_ns("there") + ahead_ns) < NUM_KEPT * 50_000 + 100_000
