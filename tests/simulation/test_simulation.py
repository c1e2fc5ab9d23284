"""The simulation holds for many seeds, repeats itself exactly, and notices when the shipped code is broken."""

import hashlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("ray")

from simulation.faults import KINDS
from simulation.many import first_failing
from simulation.mutants import MUTANTS
from simulation.world import simulate

NUM_SEEDS = 500
NUM_SEEDS_FOR_A_MUTANT = 200

SEEDS_THAT_FAILED: dict[int, str] = {}
"""Seeds that found something, and what it was."""


def digest_of(seed):
    report = simulate(seed, KINDS)
    trace = "\n".join(f"{moment_s:.9f} {text}" for moment_s, text in report.trace)
    return hashlib.sha256(trace.encode()).hexdigest()


def test_500_seeds_hold_and_every_kind_of_fault_struck():
    injected = Counter()
    for seed in range(NUM_SEEDS):
        report = simulate(seed, KINDS)
        assert not report.violations, (seed, report.violations)
        injected.update(report.injected)
    assert {kind.name for kind in KINDS} <= set(injected)


@pytest.mark.parametrize("seed", SEEDS_THAT_FAILED)
def test_a_seed_that_failed_once_holds(seed):
    assert simulate(seed, KINDS).violations == []


def test_a_seed_repeats_itself_event_by_event_in_another_process_too():
    seeds = range(700, 712)
    here = [digest_of(seed) for seed in seeds]
    assert here == [digest_of(seed) for seed in seeds]
    assert len(set(here)) == len(seeds)
    code = (
        "import sys; sys.path[:0] = sys.argv[1:3]\n"
        "from test_simulation import digest_of\n"
        f"print(*[digest_of(seed) for seed in {seeds!r}])"
    )
    folder = Path(__file__).parent
    command = [sys.executable, "-c", code, str(folder), str(folder.parent)]
    there = subprocess.run(
        command, env=os.environ | {"PYTHONHASHSEED": "7"}, capture_output=True, text=True, check=True
    )
    assert there.stdout.split() == here


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_simulation_notices(mutant):
    assert first_failing(mutant, NUM_SEEDS_FOR_A_MUTANT), f"{NUM_SEEDS_FOR_A_MUTANT} seeds hold"
