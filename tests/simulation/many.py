"""Many seeds on a few processes, and what they add up to."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context

from simulation.faults import KINDS
from simulation.mutants import Mutant, applied
from simulation.world import Report, simulate

BATCH = 50


@dataclass
class Total:
    """What many seeds add up to."""

    num_seeds: int = 0
    num_lives: int = 0
    num_checks: int = 0
    simulated_s: float = 0.0
    endings: Counter[str] = field(default_factory=Counter)
    injected: Counter[str] = field(default_factory=Counter)
    lives: Counter[str] = field(default_factory=Counter)
    failed: list[Report] = field(default_factory=list)

    def add(self, report: Report) -> None:
        self.num_seeds += 1
        self.num_lives += report.num_lives
        self.num_checks += report.num_checks
        self.simulated_s += report.simulated_s
        self.endings[report.ending or "violation"] += 1
        self.injected.update(report.injected)
        self.lives.update(report.lives)
        if report.violations:
            self.failed.append(report)


def simulate_batch(seeds: range) -> list[Report]:
    """Some seeds in this process; only of those that fail the trace is kept."""
    reports = [simulate(seed, KINDS) for seed in seeds]
    for report in reports:
        if not report.violations:
            report.trace.clear()
    return reports


def simulate_many(seeds: range, num_processes: int) -> Iterator[Report]:
    """All seeds, in order, on some processes."""
    batches = [seeds[start : start + BATCH] for start in range(0, len(seeds), BATCH)]
    if num_processes == 1:
        for batch in batches:
            yield from simulate_batch(batch)
        return
    with ProcessPoolExecutor(num_processes, get_context("spawn")) as pool:
        for reports in pool.map(simulate_batch, batches):
            yield from reports


def first_failing(mutant: Mutant, num_seeds: int) -> Report | None:
    """The first of the seeds (the mutant's own, then those from 0) that does not hold with the mutant."""
    with applied(mutant):
        for seed in (mutant.seed, *range(num_seeds)):
            report = simulate(seed, KINDS)
            if report.violations:
                return report
    return None
