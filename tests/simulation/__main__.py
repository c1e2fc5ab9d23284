"""`python -m simulation`: many seeds, or one with its trace. `make simulate SEEDS=10000` calls it.

Run from the root of the repository with `PYTHONPATH=tests`.
"""

import argparse
import sys
import time
from collections import Counter

from simulation.faults import KINDS
from simulation.many import Total, first_failing, simulate_many
from simulation.mutants import MUTANTS
from simulation.world import Report, simulate

REPLAY = "PYTHONPATH=tests .venv/bin/python -m simulation --seed {seed} --trace"


def main() -> int:
    """The command; 1 when something did not hold."""
    parser = argparse.ArgumentParser(prog="simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=500, help="how many seeds (500)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (0)")
    parser.add_argument("--processes", type=int, default=2, help="how many at once (2)")
    parser.add_argument("--seed", type=int, help="this seed alone")
    parser.add_argument("--trace", action="store_true", help="show all events of --seed")
    parser.add_argument("--mutants", action="store_true", help="for every mutant a seed that fails")
    options = parser.parse_args()
    if options.mutants:
        return show_mutants(options.seeds)
    if options.seed is not None:
        report = simulate(options.seed, KINDS, with_logs=options.trace)
        show(report, with_trace=options.trace)
        return 1 if report.violations else 0
    started_s, total = time.monotonic(), Total()
    for report in simulate_many(range(options.first, options.first + options.seeds), options.processes):
        total.add(report)
    show_total(total, time.monotonic() - started_s)
    return 1 if total.failed else 0


def show_mutants(num_seeds: int) -> int:
    """For every mutant a seed that fails; 1 when there is one without."""
    reports = [(mutant, first_failing(mutant, num_seeds)) for mutant in MUTANTS]
    for mutant, report in reports:
        found = f"seed {report.seed}: {report.violations[0]}" if report else f"{num_seeds} seeds hold"
        print(f"{mutant.name}: {found}")
    return 0 if all(report for _, report in reports) else 1


def show(report: Report, *, with_trace: bool) -> None:
    """One seed: its events, what did not hold, how to see it again."""
    if with_trace:
        for moment_s, text in report.trace:
            print(f"{moment_s:10.3f}  {text}")
    ending = report.ending or "no end"
    print(f"seed {report.seed}: {ending} after {report.num_lives} lives, faults {dict(report.injected)}")
    for violation in report.violations:
        print(f"  VIOLATION {violation}")
    if report.violations:
        print(f"  replay: {REPLAY.format(seed=report.seed)}")


def show_total(total: Total, seconds: float) -> None:
    """All seeds: faults by kind, endings, violations; the first failures with their events."""
    for report in total.failed[:3]:
        show(report, with_trace=True)
    for report in total.failed[3:50]:
        show(report, with_trace=False)
    print("faults injected:")
    for name, number in sorted(total.injected.items()):
        print(f"  {number:8d}  {name}")
    print("lives of the driver:", _counted(total.lives))
    print("runs:", _counted(total.endings))
    print(
        f"seeds {total.num_seeds}, lives of the driver {total.num_lives}, simulated "
        f"{total.simulated_s / 3600:.1f} h, faults {total.injected.total()}, checks {total.num_checks}, "
        f"violations {sum(len(report.violations) for report in total.failed)} in {len(total.failed)} seeds, "
        f"{seconds:.1f} s"
    )


def _counted(names: Counter[str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in names.most_common())


if __name__ == "__main__":
    sys.exit(main())
