"""What a killed driver leaves behind is ended; what a driver leaves in order is left alone."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest

from cluster.processes import is_alive

DRIVER = """
import subprocess, sys, time
from cluster import processes
processes.INTERVAL_S = 0.1
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
def start():
    return subprocess.Popen(sleep, start_new_session=True, stdout=subprocess.DEVNULL)

before = start()
with processes.Reaper(sys.argv[1]) as reaper, processes.ProcessTree(reaper):
    own = [start(), start()]
    time.sleep(1)
    print(before.pid, reaper.pid, *(child.pid for child in own), flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def driver(tmp_path):
    """A driver with three children, the first of which it had before its run: (process, children, file)."""
    weights = tmp_path / ".weights-1.0.tmp"
    weights.write_text("w")
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, f"{tmp_path}/*weights*"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    pids = [int(pid) for pid in process.stdout.readline().split()]
    children = [psutil.Process(pid) for pid in pids]
    yield process, children, weights
    process.kill()
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    process.wait()


def wait_until_gone(processes, timeout_s=20):
    deadline_s = time.monotonic() + timeout_s
    while any(is_alive(process) for process in processes):
        assert time.monotonic() < deadline_s, processes
        time.sleep(0.05)


def test_after_kill_9_of_the_driver_its_run_is_gone_a_stopped_process_too(driver):
    process, (before, reaper, *own), weights = driver
    os.kill(own[0].pid, signal.SIGSTOP)
    process.kill()
    wait_until_gone([*own, reaper])
    assert not weights.exists()
    assert is_alive(before)


def test_a_driver_that_is_killed_with_all_its_children_as_ray_ends_a_job_leaves_no_file(driver):
    process, (before, reaper, *own), weights = driver
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for number in (signal.SIGTERM, signal.SIGKILL):
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.send_signal(number)
    wait_until_gone([before, *own, reaper])
    assert not weights.exists()


def test_an_orderly_end_is_no_business_of_the_reaper(driver):
    process, (before, reaper, *own), weights = driver
    process.communicate("\n", timeout=20)
    wait_until_gone([reaper])
    assert all(is_alive(child) for child in [before, *own])
    assert weights.exists()
