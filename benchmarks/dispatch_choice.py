"""What the choice of an engine costs the driver, by the number of engines:

    python benchmarks/dispatch_choice.py --engines 16 1000 4096

Groups come and go in random order, eight an engine under way on average. Microseconds for each group, of the
choice with the two changes of the load that it means; and of a look at all engines in its place.
"""

import argparse
import random
import time
from types import SimpleNamespace
from typing import Any

from cluster.dispatch import Dispatcher
from cluster.trials import Trials
from cluster.workers import WorkerState

LOAD = 8


class Bench:
    """An engine as the dispatcher sees it."""

    def __init__(self, number: int) -> None:
        self.number, self.num_under_way = number, 0
        self.state, self.reserved_for = WorkerState.SERVING, None


def scanned(engines: list[Any]) -> Any:
    """The same engine, by looking at all."""
    best, fewest = None, 0
    for engine in engines:
        if engine.reserved_for is not None or engine.state is not WorkerState.SERVING:
            continue
        if best is None or engine.num_under_way < fewest:
            best, fewest = engine, engine.num_under_way
    return best


def measure(num_engines: int, num_groups: int, *, scans: bool) -> float:
    """Seconds for a group."""
    engines: list[Any] = [Bench(number) for number in range(num_engines)]
    dispatcher = Dispatcher(SimpleNamespace(engines=engines))  # type: ignore[arg-type]
    for engine in engines:
        dispatcher.note(engine)
    trials, chance = Trials("a group", 0, 2), random.Random(0)
    under_way: list[Any] = []
    spent_s = 0.0
    for turn in range(LOAD * num_engines + num_groups):
        started_s = time.perf_counter()
        engine = scanned(engines) if scans else dispatcher._choose(trials)
        engine.num_under_way += 1
        if not scans:
            dispatcher.note(engine)
        if turn >= LOAD * num_engines:
            spent_s += time.perf_counter() - started_s
        under_way.append(engine)
        if turn >= LOAD * num_engines:
            place = chance.randrange(len(under_way))
            under_way[place], under_way[-1] = under_way[-1], under_way[place]
            ended = under_way.pop()
            started_s = time.perf_counter()
            ended.num_under_way -= 1
            if not scans:
                dispatcher.note(ended)
            spent_s += time.perf_counter() - started_s
    return spent_s / num_groups


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="the cost of choosing an engine")
    parser.add_argument("--engines", type=int, nargs="+", default=[16, 1000, 4096])
    parser.add_argument("--groups", type=int, default=20_000)
    args = parser.parse_args()
    print(f"{'engines':>8}  {'us a group':>10}  {'looking at all':>14}")
    for num_engines in args.engines:
        indexed = measure(num_engines, args.groups, scans=False)
        looked = measure(num_engines, max(200, args.groups // num_engines), scans=True)
        print(f"{num_engines:8d}  {1e6 * indexed:10.2f}  {1e6 * looked:14.2f}")


if __name__ == "__main__":
    main()
