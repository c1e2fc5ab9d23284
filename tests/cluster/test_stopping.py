"""Signals: the first asks, the second insists, and a run that is stopped ends in order."""

import signal
import subprocess
import sys
import time

import pytest

PROGRAM = """
import asyncio, sys
from types import SimpleNamespace
from cluster.launch import _run_loop
from cluster.stopping import StopSignals, sigterm_as_interrupt, signals_deferred

kind = sys.argv[1]
stop = StopSignals(grace_s=float(sys.argv[2]))

async def work():
    asked = asyncio.Event()
    if kind != "starting":
        stop.on_stop = asked.set
    try:
        print("READY", flush=True)
        await asyncio.wait_for(asked.wait(), 60)
        print("STOPPING", flush=True)
        await asyncio.sleep(60 if kind == "slow" else 0.1)
        print("CHECKPOINT", flush=True)
    finally:
        print("CLOSED", flush=True)

try:
    with sigterm_as_interrupt():
        if kind == "early":
            with signals_deferred():
                print("READY", flush=True)
                import time
                time.sleep(3)
                print("NOT CUT", flush=True)
        _run_loop(SimpleNamespace(stop=stop, placement=None), work())
except KeyboardInterrupt as interrupt:
    print(type(interrupt).__name__)
"""


def signalled(kind, numbers, grace_s=30.0):
    """Run the program, send it signals as soon as it is ready; the lines that it writes."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, kind, str(grace_s)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "READY\n"
        for number in numbers:
            time.sleep(0.7)
            process.send_signal(number)
        output, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    return output.split("\n")[:-1]


@pytest.mark.parametrize(
    ("number", "name"), [(signal.SIGINT, "KeyboardInterrupt"), (signal.SIGTERM, "Terminated")]
)
def test_the_first_signal_lets_the_step_end_and_a_checkpoint_be_written(number, name):
    assert signalled("quick", [number]) == ["STOPPING", "CHECKPOINT", "CLOSED", name]


def test_the_second_signal_does_not_wait_for_the_checkpoint():
    assert signalled("slow", [signal.SIGTERM, signal.SIGTERM]) == ["STOPPING", "CLOSED", "Terminated"]


def test_after_the_grace_time_nothing_is_waited_for():
    assert signalled("slow", [signal.SIGTERM], grace_s=0.5) == ["STOPPING", "CLOSED", "Terminated"]


def test_before_the_loop_runs_one_signal_is_enough():
    assert signalled("starting", [signal.SIGTERM]) == ["CLOSED", "Terminated"]


def test_a_call_that_must_not_be_cut_in_half_is_not():
    assert signalled("early", [signal.SIGTERM]) == ["NOT CUT", "Terminated"]
