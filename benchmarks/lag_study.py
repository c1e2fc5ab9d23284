"""What a higher `grpo.max_policy_lag` costs in accuracy and brings in throughput, on the main job:

    make demo
    python benchmarks/lag_study.py --model runs/demo-sft --data data/demo

For every lag and seed one GRPO run of the `demo` configuration from the same SFT checkpoint, then the
evaluation on all held-out scenes. Lags take turns within a seed, so that a machine that changes its pace does
not favour one. A run that is complete is not made again. Prints a table and writes `runs/lag-study.json`.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

LAGS = (0, 1, 2, 4)
ALPHADRIVE = str(Path(sys.executable).with_name("alphadrive"))


def main() -> None:
    """Make the runs that are missing, print the table."""
    parser = argparse.ArgumentParser(description="accuracy and throughput by policy lag")
    parser.add_argument("--model", type=Path, required=True, help="SFT checkpoint or run that all start from")
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and eval/")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("overrides", nargs="*", help="further keys of the configuration, for all runs")
    args = parser.parse_args()
    rows = [
        one_run(args.model, args.data, args.runs, lag, seed, args.overrides)
        for seed in args.seeds
        for lag in LAGS
    ]
    (args.runs / "lag-study.json").write_text(json.dumps(rows, indent=2) + "\n")
    print(table(rows))


def one_run(model: Path, data: Path, runs: Path, lag: int, seed: int, overrides: list[str]) -> dict[str, Any]:
    """Train and evaluate; the figures of the run."""
    run = runs / f"lag-{lag}-seed-{seed}"
    keys = {
        "run.root": runs,
        "run.name": run.name,
        "seed": seed,
        "model.path": model,
        "data.train": data / "train",
        "data.eval": data / "eval",
        "eval.every_steps": 0,
        "grpo.max_policy_lag": lag,
    }
    words = [*(f"{key}={value}" for key, value in keys.items()), *overrides]
    command(["grpo", "demo", "--resume", *words])
    evaluation = runs / f"{run.name}-eval"
    if not (evaluation / "eval.json").is_file():
        sizes = ["--max-pixels", "25088", "--max-model-len", "512"]
        command(["eval", str(run), str(data / "eval"), "--out", str(evaluation), *sizes])
    grpo = json.loads((run / "summary.json").read_text())["grpo"]
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "lag": lag,
        "seed": seed,
        "accuracy": json.loads((evaluation / "eval.json").read_text())["planning_accuracy"],
        "samples_per_s": grpo["samples_per_s"],
        "idle_share": statistics.fmean(line["fully_async/trainer/idle_ratio"] for line in metrics),
        "max_policy_lag": grpo["max_policy_lag"],
        "loop_seconds": grpo["loop_seconds"],
    }


def command(words: list[str]) -> None:
    """Run a command of ours; its output is shown. Raises CalledProcessError."""
    subprocess.run([ALPHADRIVE, *words], check=True)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a row for each lag, over the seeds."""
    heads = (
        "max_policy_lag",
        "planning accuracy by seed",
        "mean",
        "samples/s",
        "learner idle",
        "largest lag",
    )
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for lag in LAGS:
        own = [row for row in rows if row["lag"] == lag]
        accuracies = [row["accuracy"] for row in own]
        cells = (
            f"{lag}",
            ", ".join(f"{value:.1%}" for value in accuracies),
            f"{statistics.fmean(accuracies):.1%}",
            f"{statistics.median(row['samples_per_s'] for row in own):.0f}",
            f"{statistics.fmean(row['idle_share'] for row in own):.0%}",
            f"{max(row['max_policy_lag'] for row in own)}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
