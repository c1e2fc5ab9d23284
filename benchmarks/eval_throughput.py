"""Answers a second of `alphadrive eval` beside those of the engine it uses, on the same prompts:

    python benchmarks/eval_throughput.py runs/demo data/demo/eval --max-pixels 25088 --max-new-tokens 64 \\
        --max-num-seqs 64 --max-model-len 512

One engine, started before any clock. Each round asks every row three times, in turn, with empty caches:

    vllm      vLLM's own `generate` on prompts and fitted images that are ready before the clock starts,
              all handed over at once: what the engine can do
    engine    `RolloutEngine.generate`, all rows at once: reads and fits the images too
    eval      what `alphadrive eval` does for its answers, then all their figures

Other work on the machine disturbs the clock; the seconds of processor, of this process and the engine's
together, hardly.
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil

from alphadrive.data.parquet import DrivingDataset
from alphadrive.engine_arguments import add_engine_arguments, engine_options
from alphadrive.engine_evaluation import Asker, EvalOptions, open_engine
from alphadrive.eval_figures import figures_of
from rollout.engine import RolloutEngine
from rollout.settings import Sampling


def main() -> None:
    """Measure and print one line a round, then the medians."""
    parser = argparse.ArgumentParser(description="answers/s of alphadrive eval and of its engine")
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--num-rows", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    add_engine_arguments(parser)
    args = parser.parse_args()
    options = EvalOptions(engine=engine_options(args, args.model), data=args.data, num_rows=args.num_rows)
    asyncio.run(measure(options, args.rounds))


async def measure(options: EvalOptions, num_rounds: int) -> None:
    """Run the rounds; the first is not counted."""
    dataset = DrivingDataset(options.data, options.num_rows)
    queries = [dataset.query(row) for row in range(len(dataset))]
    sampling = Sampling(num_samples=1, temperature=0.0, max_new_tokens=options.engine.max_new_tokens)
    async with open_engine(options) as engine:
        ready = [engine._requests.prompt(query, "real") for query in queries]

        async def vllm() -> None:
            calls = (
                engine._final_output(prompt, sampling, f"{time.monotonic_ns()}-{row}")
                for row, prompt in enumerate(ready)
            )
            await asyncio.gather(*calls)

        async def own() -> None:
            await asyncio.gather(*(engine.generate(q.row, q, sampling, "real") for q in queries))

        async def evaluate() -> None:
            figures_of(await Asker(engine, options).greedy())

        ways = {"vllm": vllm, "engine": own, "eval": evaluate}
        wall: dict[str, list[float]] = {name: [] for name in ways}
        processor: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(num_rounds + 1):
            for name, way in ways.items():
                wall_s, processor_s = await timed(engine, way)
                wall[name].append(wall_s)
                processor[name].append(processor_s)
            line = ", ".join(f"{name} {len(queries) / found[-1]:.1f}/s" for name, found in wall.items())
            print(f"round {number}: {line}{'' if number else ' (warm-up, not counted)'}", flush=True)
    for name in ways:
        rate = len(queries) / statistics.median(wall[name][1:])
        each_ms = 1000 * statistics.median(processor[name][1:]) / len(queries)
        print(f"{name}: median {rate:.1f} answers/s, {each_ms:.2f} ms of processor an answer")
    for name in ("vllm", "engine"):
        shares = (share(seconds[name], seconds["eval"]) for seconds in (wall, processor))
        print("eval / {}: {:.1%} by the clock, {:.1%} by processor".format(name, *shares))


def share(other: list[float], of_eval: list[float]) -> float:
    """Median over the counted rounds of how fast `eval` was beside another way of the same round."""
    return statistics.median(theirs / ours for theirs, ours in zip(other[1:], of_eval[1:], strict=True))


async def timed(engine: RolloutEngine, way: Callable[[], Awaitable[None]]) -> tuple[float, float]:
    """Seconds of one way by the clock and of processor, with all of the engine's caches empty before."""
    await engine._llm.pause_generation(mode="keep", clear_cache=True)
    await engine._llm.resume_generation()
    started_s, used_s = time.perf_counter(), processor_seconds()
    await way()
    return time.perf_counter() - started_s, processor_seconds() - used_s


def processor_seconds() -> float:
    """Seconds of processor that this process and those it started have used."""
    this = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in (this, *this.children(recursive=True)))


if __name__ == "__main__":
    main()
