"""Answers a second of `alphadrive eval` beside those of the engine it uses, on the same prompts:

    python benchmarks/eval_throughput.py runs/demo data/demo/eval --max-pixels 25088 --max-new-tokens 64 \\
        --max-num-seqs 64 --max-model-len 512

One engine, started before any clock. Each round asks every row three times, in turn, with empty caches:

    vllm      vLLM's own `generate` on prompts and fitted images that are ready before the clock starts,
              all handed over at once: what the engine can do
    engine    `RolloutEngine.generate`, all rows at once: reads and fits the images too
    eval      what `alphadrive eval` does for its answers, then all their figures
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

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
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(num_rounds + 1):
            for name, way in ways.items():
                rates[name].append(len(queries) / await timed(engine, way))
            line = ", ".join(f"{name} {found[-1]:.1f}/s" for name, found in rates.items())
            print(f"round {number}: {line}{'' if number else ' (warm-up, not counted)'}", flush=True)
    medians = {name: statistics.median(found[1:]) for name, found in rates.items()}
    shares = [
        statistics.median(e / v for e, v in zip(rates["eval"][1:], rates[name][1:], strict=True))
        for name in ("vllm", "engine")
    ]
    print(f"median: {', '.join(f'{name} {rate:.1f}/s' for name, rate in medians.items())}")
    print(f"eval / vllm {shares[0]:.1%}, eval / engine {shares[1]:.1%} (medians of the rounds' ratios)")


async def timed(engine: RolloutEngine, way: Callable[[], Awaitable[None]]) -> float:
    """Seconds of one way, with all of the engine's caches empty before."""
    await engine._llm.pause_generation(mode="keep", clear_cache=True)
    await engine._llm.resume_generation()
    started_s = time.perf_counter()
    await way()
    return time.perf_counter() - started_s


if __name__ == "__main__":
    main()
