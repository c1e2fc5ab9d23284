"""A run that stands still ends with an error that says what waits; one that is only slow goes on."""

import asyncio
import subprocess
import sys
import time

import pytest

from alphadrive.config import Config
from alphadrive.errors import LearnerDiedError, LearnerError, StalledError
from cluster.stall import POLL_S, guarded, stall_limit_s, watch_progress
from cluster.virtual_time import run_virtual


async def counted_to(total, seconds_each):
    """Counts slowly; gives how it ends and at what time."""
    count = 0

    async def work():
        nonlocal count
        for _ in range(total):
            await asyncio.sleep(seconds_each)
            count += 1
        await asyncio.sleep(10_000)

    loop = asyncio.get_running_loop()
    try:
        await guarded(work(), watch_progress(600, lambda: count, lambda: "3 slots held"))
    except StalledError as error:
        return str(error), loop.time()
    return "the end", loop.time()


def test_what_stands_still_ends_after_the_limit_and_says_what_waits():
    words, ended_s = run_virtual(counted_to(0, 0))
    assert "nothing was done for 600 s" in words and "3 slots held" in words
    assert ended_s == 600


def test_every_sign_of_progress_starts_the_limit_again():
    _, ended_s = run_virtual(counted_to(10, 599))
    assert 5990 + 600 <= ended_s <= 5990 + 600 + POLL_S


def test_time_in_which_the_event_loop_did_not_turn_does_not_count():
    async def main():
        async def work():
            await asyncio.sleep(0.12)
            time.sleep(0.5)
            return "done"

        return await guarded(work(), watch_progress(0.3, lambda: 0, lambda: "", poll_s=0.05))

    assert asyncio.run(main()) == "done"


def test_the_limit_is_ten_minutes_or_twice_the_longest_wait_that_is_allowed():
    config = Config()
    assert stall_limit_s(config) == 600
    config.learner.hang_timeout_s = 1000
    assert stall_limit_s(config) == 2000
    config.rollout.request_timeout_s = 1500
    assert stall_limit_s(config) == 3000


def test_the_loss_of_the_learner_is_raised_before_what_it_caused():
    async def main():
        async def work():
            try:
                await asyncio.sleep(100)
            finally:
                raise LearnerError("a rank could not reach another one")

        async def watch():
            await asyncio.sleep(1)
            raise LearnerDiedError("a rank died")

        with pytest.raises(LearnerDiedError, match="a rank died"):
            await guarded(work(), watch())

    run_virtual(main())


BLOCKED = """
import asyncio, sys, time
from cluster import stall
stall.POLL_S = 0.1

async def main(deadman):
    pulse = asyncio.ensure_future(deadman.pulse())
    await asyncio.sleep(1)
    print("went on", flush=True)
    time.sleep(600)

with stall.Deadman(0.6, lambda words: print("REPORTED", words.splitlines()[0], flush=True)) as deadman:
    asyncio.run(main(deadman))
"""


def test_a_driver_whose_event_loop_is_blocked_ends_with_an_error_that_says_where():
    done = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stdout.splitlines()[0] == "went on"
    assert "REPORTED StalledError: the driver stands still" in done.stdout
    assert 'File "<string>", line 10, in main' in done.stderr


AT_WORK = """
import time
from cluster import stall

stall.POLL_S = 0.05
with stall.Deadman(0.6, lambda words: None) as deadman:
    for _ in range(15):
        time.sleep(0.1)
        deadman.touch()
    print("went on", flush=True)
    time.sleep(30)
"""


def test_what_gets_further_before_the_loop_turns_is_not_taken_for_standing_still():
    done = subprocess.run([sys.executable, "-c", AT_WORK], capture_output=True, text=True, timeout=60)
    assert done.stdout == "went on\n" and done.returncode == 1
