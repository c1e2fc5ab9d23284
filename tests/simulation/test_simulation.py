"""The simulation holds for many seeds, repeats itself exactly, and notices when shipped code is broken."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray")

from simulation.faults import KINDS
from simulation.many import Total, first_failing, simulate_many
from simulation.mutants import MUTANTS
from simulation.one_seed import simulate

NUM_SEEDS = 500
NUM_SEEDS_FOR_A_MUTANT = 300

SEEDS_THAT_FAILED = {
    13: "a stop while engines were starting left a learner that was up already",
    29: "an export that was cut off by the end of the run left its weights file",
    74: "a second signal while a hung engine was closed left workers",
    523: "a driver killed before it wrote its summary: an older attempt's was told as the result",
    928: "a disk full when the control room wrote down where it is ended the run",
    1061: "an engine that took damaged weights as the learner died stayed in service",
    1086: "a disk full when a lost learner took records back ended the run by an error without a name",
    1267: "the same when a resumed run completed a line of its metrics",
    6556: "an engine that got its place on a node that was told to leave meanwhile was started there",
    8283: "a disk full when a finished run's summary was written again ended the second start",
    2313: "the counts had an epoch of which nothing had been issued",
}
"""Seeds that found something, and what it was. What a seed does changes with the simulation and the code:
a mutant or a test of its own says the same."""


def digest_of(seed):
    report = simulate(seed, KINDS)
    trace = "\n".join(f"{moment_s:.9f} {text}" for moment_s, text in report.trace)
    return hashlib.sha256(trace.encode()).hexdigest()


def test_500_seeds_hold_and_every_kind_of_fault_struck():
    total = Total()
    for report in simulate_many(range(NUM_SEEDS), num_processes=2):
        assert not report.violations, (report.seed, report.violations)
        total.add(report)
    assert {kind.name for kind in KINDS} <= set(total.injected)


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
