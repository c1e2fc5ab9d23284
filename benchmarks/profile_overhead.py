"""What profiling costs a run:

    alphadrive data synth --out /tmp/scenes --num 400
    python benchmarks/profile_overhead.py /tmp/scenes --minutes 4

One GRPO run with real engines, rewards and learner. Recording is switched on and off, in all processes, for
`--block` seconds each; every block is compared with its two neighbours, the run's start left out. Prints what
a step takes with and without, wall clock and CPU of all processes, the medians of the ratios with 95 %
intervals (bootstrap over blocks). Then, as the cores of most machines are not that quiet, what it is made of:
how many spans a step records and what one costs in a tight loop, and what it costs to collect them once (CPU
of all processes, the actors still there and idle), which happens every other second.
"""

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import cluster.profiler
from alphadrive.config import load_config
from alphadrive.profiling import spans
from alphadrive.profiling.span_file import read_spans
from cluster.grpo import train_on_ray
from cluster.launch import execute
from cluster.profiler import Profiler, Worker

SKIPPED_S = 20.0
"""The start of the run."""
NUM_ROUNDS, SPANS_A_ROUND = 200, 150
IDLE_S = 5.0


@dataclass(frozen=True, slots=True)
class Moment:
    """From `time_s` (Unix) on recording is on or off, or None while processes are being told; `cpu_s` is what
    all processes of the run have used by then."""

    time_s: float
    is_on: bool | None
    cpu_s: float


class Switching(Profiler):
    """A profiler that records every other block."""

    block_s = 12.0
    moments: list[Moment] = []  # noqa: RUF012  one run a process
    round_cpu_s = 0.0
    """What it costs to collect and write spans once."""
    _asks = True

    async def run(self) -> None:
        """Collect and switch until cancelled."""
        switching = asyncio.create_task(self._switch())
        try:
            await super().run()
        finally:
            switching.cancel()

    async def _switch(self) -> None:
        while True:
            self._note(self.is_on)
            await asyncio.sleep(self.block_s)
            self._note(None)
            self.is_on = not self.is_on
            self._asks = True
            if self.is_on:
                spans.begin("driver", "driver")
            # Asked at the latest a period from now, and a rank answers after its step.
            await asyncio.sleep(2 * cluster.profiler.PERIOD_S)
            if not self.is_on:
                spans.end()
            self._asks = self.is_on

    async def end(self) -> None:
        """As ever; then measure what it costs to collect, while there are actors and nothing to do."""
        self._asks = self.is_on = True
        await super().end()
        spans.begin("driver", "driver")
        started_s, cpu_s = time.monotonic(), tree_cpu_s()
        await asyncio.sleep(IDLE_S)
        idle = (tree_cpu_s() - cpu_s) / (time.monotonic() - started_s)
        started_s, cpu_s = time.monotonic(), tree_cpu_s()
        for _ in range(NUM_ROUNDS):
            for _ in range(SPANS_A_ROUND):
                with spans.span("cost", ticket=1):
                    pass
            self._ask()
            await asyncio.wait(self._asking.values())
            await self._write()
        used_s = tree_cpu_s() - cpu_s - idle * (time.monotonic() - started_s)
        type(self).round_cpu_s = used_s / NUM_ROUNDS

    def _ask(self) -> list[Worker]:
        return super()._ask() if self._asks else []

    def _note(self, is_on: bool | None) -> None:
        self.moments.append(Moment(time.time(), is_on, tree_cpu_s()))


def tree_cpu_s() -> float:
    """Seconds of CPU of this process and all below it."""
    total = 0.0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


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
            "eval.every_steps": 0,
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
    blocks = measured_blocks(lines, Switching.moments)
    all_spans = [span for track in recorded.tracks.values() for span in track.spans]
    num_spans = sum(span.name != "cost" for span in all_spans)
    report(blocks, num_spans / max(1, len(recorded.driver.named("train"))))


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


@dataclass(frozen=True, slots=True)
class Block:
    """What a step took while recording was on or off: wall clock, and CPU of all processes of the run."""

    is_on: bool
    num_steps: float
    wall_s: float
    cpu_s: float


def measured_blocks(lines: Sequence[dict[str, float]], moments: Sequence[Moment]) -> list[Block]:
    """The blocks in order, those of the run's start left out. Steps count by parts at a block's ends."""
    ends_s = [line["time_s"] for line in lines]
    first_s = moments[0].time_s + SKIPPED_S
    blocks = []
    for start, end in pairwise(moments):
        if start.is_on is None or start.time_s < first_s or end.time_s > ends_s[-1]:
            continue
        steps = float(np.diff(np.interp([start.time_s, end.time_s], ends_s, range(len(ends_s))))[0])
        wall_s, cpu_s = end.time_s - start.time_s, end.cpu_s - start.cpu_s
        blocks.append(Block(start.is_on, steps, wall_s / steps, cpu_s / steps))
    return blocks


def report(blocks: Sequence[Block], spans_a_step: float) -> None:
    """Print the comparison."""
    for is_on in (True, False):
        own = [block for block in blocks if block.is_on == is_on]
        print(
            f"{'on' if is_on else 'off':>4}: {len(own)} blocks, {sum(block.num_steps for block in own):.0f} "
            f"steps, medians {statistics.median(block.wall_s for block in own):.4f} s a step, "
            f"{statistics.median(block.cpu_s for block in own):.4f} s of CPU"
        )
    for what in ("wall", "cpu"):
        ratios = neighbour_ratios([(block.is_on, getattr(block, f"{what}_s")) for block in blocks])
        low, high = interval(ratios)
        print(
            f"{what:>4}: on / off - 1, median over {len(ratios)} blocks "
            f"{statistics.median(ratios) - 1:+.2%}, 95 % interval {low - 1:+.2%} to {high - 1:+.2%}"
        )
    off = [block for block in blocks if not block.is_on]
    step_s = statistics.median(block.wall_s for block in off)
    step_cpu_s = statistics.median(block.cpu_s for block in off)
    recording_s = spans_a_step * span_s()
    collecting_s = Switching.round_cpu_s * step_s / cluster.profiler.PERIOD_S
    print(
        f"{spans_a_step:.0f} spans a step; to record them costs {1e6 * recording_s:.0f} us of CPU, "
        f"{recording_s / step_cpu_s:.3%} of a step's\n"
        f"to collect {SPANS_A_ROUND} and write them costs {1e3 * Switching.round_cpu_s:.2f} ms of CPU in all "
        f"processes; every {cluster.profiler.PERIOD_S:g} s: {collecting_s / step_cpu_s:.3%} of a step's\n"
        f"together {(recording_s + collecting_s) / step_cpu_s:.3%}"
    )


def neighbour_ratios(values: Sequence[tuple[bool, float]]) -> list[float]:
    """For every inner block on / off, with the mean of its neighbours, so that a drift cancels out."""
    ratios = []
    for (_, before), (is_on, own), (_, after) in zip(values, values[1:], values[2:], strict=False):
        others = (before + after) / 2
        ratios.append(own / others if is_on else others / own)
    return ratios


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """Of their median, by bootstrap."""
    numbers = random.Random(0)
    drawn = sorted(statistics.median(numbers.choices(ratios, k=len(ratios))) for _ in range(2000))
    return drawn[50], drawn[1949]


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
