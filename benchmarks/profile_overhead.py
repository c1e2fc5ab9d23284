"""What profiling costs a run:

    alphadrive data synth --out /tmp/scenes --num 400
    python benchmarks/profile_overhead.py /tmp/scenes --minutes 4

One GRPO run with real engines, rewards and learner. Recording is switched on and off, in all processes, every
`--block` seconds; steps that lie whole in one kind of block are compared, the first ones left out. Prints the
median seconds of a step with and without, the difference of the two with a 95 % interval (bootstrap over
blocks' steps), how many spans a step records, and what one span costs in a tight loop.
"""

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import cluster.profiler
from alphadrive.config import load_config
from alphadrive.profiling import spans
from alphadrive.profiling.span_file import read_spans
from cluster.grpo import train_on_ray
from cluster.launch import execute
from cluster.profiler import Profiler

SKIPPED_S = 20.0
"""The start of the run."""


class Switching(Profiler):
    """A profiler that records every other block. `blocks` are Unix times from which on it is on or off, once
    every process knows."""

    block_s = 15.0
    blocks: list[tuple[float, bool | None]] = []  # noqa: RUF012  one run a process

    async def run(self) -> None:
        """Collect and switch until cancelled."""
        switching = asyncio.create_task(self._switch())
        try:
            await super().run()
        finally:
            switching.cancel()

    async def _switch(self) -> None:
        while True:
            self.blocks.append((time.time(), self.is_on))
            await asyncio.sleep(self.block_s)
            self.blocks.append((time.time(), None))
            self.is_on = not self.is_on
            if self.is_on:
                spans.begin("driver", "driver")
            # Asked at the latest a period from now, and a rank answers after its step.
            await asyncio.sleep(2 * cluster.profiler.PERIOD_S)
            if not self.is_on:
                spans.end()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="the cost of profiling")
    parser.add_argument("data", type=Path)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--block", type=float, default=12.0)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    Switching.block_s = args.block
    cluster.profiler.Profiler = Switching  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as folder:
        keys = {
            "data.train": args.data,
            "data.eval": "null",
            "run.root": folder,
            "run.tensorboard": "false",
            "rewards.variant": "random",
            "grpo.steps": 1_000_000,
            "checkpoint.every_steps": 1_000_000,
            "profile.enabled": "true",
        }
        overrides = [*(f"{key}={value}" for key, value in keys.items()), *args.overrides]
        result = execute("grpo", load_config("debug", overrides), ends_after(60 * args.minutes))
        lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
        recorded = read_spans(result.folder)
    by_kind = steps_by_kind(lines, Switching.blocks)
    num_spans = sum(len(track.spans) for track in recorded.tracks.values())
    report(by_kind, num_spans / max(1, len(recorded.driver.named("train"))))


def ends_after(seconds: float) -> Any:
    """A stage that stops by itself, as by `alphadrive stop`."""

    async def train(attempt: Any) -> None:
        async def stop() -> None:
            while attempt.stop.on_stop is None:
                await asyncio.sleep(0.5)
            await asyncio.sleep(seconds)
            attempt.stop.on_stop()

        stopping = asyncio.create_task(stop())
        try:
            await train_on_ray(attempt)
        finally:
            stopping.cancel()

    return train


def steps_by_kind(
    lines: Sequence[dict[str, float]], blocks: Sequence[tuple[float, bool | None]]
) -> dict[bool, list[float]]:
    """Seconds of the steps that lie within blocks of a kind."""
    found: dict[bool, list[float]] = {True: [], False: []}
    begin_s = blocks[0][0] + SKIPPED_S
    for line in lines:
        start_s, end_s = line["time_s"] - line["timing_s/step"], line["time_s"]
        for (from_s, is_on), (until_s, _) in pairwise(blocks):
            if is_on is not None and max(from_s, begin_s) <= start_s and end_s <= until_s:
                found[is_on].append(line["timing_s/step"])
    return found


def report(by_kind: dict[bool, list[float]], spans_a_step: float) -> None:
    """Print the comparison."""
    numbers = random.Random(0)

    def difference() -> float:
        drawn = {kind: numbers.choices(values, k=len(values)) for kind, values in by_kind.items()}
        return statistics.fmean(drawn[True]) / statistics.fmean(drawn[False]) - 1

    drawn = sorted(difference() for _ in range(2000))
    for kind, values in by_kind.items():
        name = "on" if kind else "off"
        print(
            f"{name:>4}: {len(values)} steps, mean {statistics.fmean(values):.4f} s, "
            f"median {statistics.median(values):.4f} s"
        )
    mean = statistics.fmean(by_kind[True]) / statistics.fmean(by_kind[False]) - 1
    print(f"difference of the means {mean:+.2%}, 95 % interval {drawn[50]:+.2%} to {drawn[1949]:+.2%}")
    cost_s, step_s = span_s(), statistics.median(by_kind[False])
    print(
        f"{spans_a_step:.0f} spans a step; one costs {1e6 * cost_s:.2f} us, all of them "
        f"{spans_a_step * cost_s / step_s:.3%} of a step"
    )


def span_s(number: int = 200_000) -> float:
    """Seconds that a span costs the process that records it."""
    spans.begin("driver", "driver")
    started_s = time.process_time()
    for index in range(number):
        with spans.span("forward", ticket=index):
            pass
    taken_s = time.process_time() - started_s
    spans.end()
    return taken_s / number


if __name__ == "__main__":
    main()
