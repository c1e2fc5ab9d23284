"""The offset of another clock from round trips whose true delays are known."""

import random
import shutil
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alphadrive.profiling.clocks import NUM_KEPT, ClockOffsets, RoundTrip
from alphadrive.profiling.spans import clock_id


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


ELSEWHERE = ["unshare", "--time", "--monotonic", "5000"]
ANSWER = """
import sys, time
from alphadrive.profiling.spans import clock_id
for _ in sys.stdin:
    print(time.monotonic_ns(), clock_id(), sep=",", flush=True)
"""


def is_allowed():
    """Whether a process may be given a clock of its own here."""
    return (
        shutil.which("unshare") and subprocess.run([*ELSEWHERE, "true"], capture_output=True).returncode == 0
    )


@pytest.mark.skipif(not is_allowed(), reason="no time namespaces here: they need Linux and root")
def test_a_real_process_with_another_clock():
    offsets = ClockOffsets(clock_id())
    with subprocess.Popen(
        [*ELSEWHERE, sys.executable, "-c", ANSWER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        for _ in range(NUM_KEPT):
            sent_ns = time.monotonic_ns()
            process.stdin.write("now\n")
            process.stdin.flush()
            remote_ns, clock = process.stdout.readline().strip().split(",")
            offsets.add(clock, RoundTrip(sent_ns, int(remote_ns), time.monotonic_ns()))
        process.stdin.close()
    assert clock != clock_id()
    assert abs(offsets.offset_ns(clock) + 5000 * 10**9) <= offsets.error_ns(clock) + 1
