"""Print the tables of docs/results.md from the runs that `alphadrive demo --seed S` and
`alphadrive demo --controls --seed S` left behind:

    python benchmarks/demo_results.py 0 1 2
"""

import json
import sys
from pathlib import Path
from typing import Any

from alphadrive.demo import DemoPaths

Row = dict[str, Any]

NAMES = {
    "sft-equal-prompts": "SFT continued on GRPO's scenes, as many prompts",
    "sft-equal-time": "SFT continued on GRPO's scenes, as long as GRPO took",
    "sft-recorded": "the same, imitating the recorded plans (no errors in them)",
    "random-reward": "GRPO with a random reward",
    "blank-image": "the GRPO model, blank images",
    "shuffle-image": "the GRPO model, another scene's image",
}


def main(seeds: list[int]) -> None:
    """Print the tables of the given seeds, the worst gain marked."""
    runs = {seed: DemoPaths.of(seed).run for seed in seeds}
    summaries = {seed: _read(run / "summary.json") for seed, run in runs.items()}
    worst = min(seeds, key=lambda seed: float(summaries[seed]["grpo"]["gain"]))
    heads = [f"seed {seed}{' (worst)' if seed == worst and len(seeds) > 1 else ''}" for seed in seeds]
    sft = [summaries[seed]["sft"] for seed in seeds]
    grpo = [summaries[seed]["grpo"] for seed in seeds]
    _table(
        ["planning accuracy", *heads],
        ["SFT checkpoint", *(_accuracy(row) for row in sft)],
        ["**GRPO**", *(_accuracy(row) for row in grpo)],
        ["**gain of GRPO**", *(_gain(row) for row in grpo)],
        [
            f"pass@8 at temperature 1, SFT / GRPO ({sft[0]['pass_at_8_rows']} scenes)",
            *_each(_pass_at_8, sft, grpo),
        ],
        ["invalid answers, SFT / GRPO", *_each(_invalid, sft, grpo)],
        ["the most frequent plan, always", *(_percent(summaries[seed]["majority"]) for seed in seeds)],
    )
    _print_controls(heads, [run / "controls.json" for run in runs.values()])
    _table(
        ["", *heads],
        ["samples seen by SFT", *(f"{row['samples']:,}" for row in sft)],
        ["prompts drawn by GRPO", *(f"{row['samples'] // 8:,}" for row in grpo)],
        ["samples drawn by GRPO (G = 8)", *(f"{row['samples']:,}" for row in grpo)],
        ["of them skipped: no variance in the group", *(_percent(row["skipped_share"]) for row in grpo)],
        ["GRPO, samples/s", *(f"{row['samples_per_s']:.0f}" for row in grpo)],
        ["GRPO, rollout tokens/s", *(f"{row['rollout_tokens_per_s']:,.0f}" for row in grpo)],
        ["weight sync, median", *(f"{summaries[seed]['weight_sync']['median_s']:.2f} s" for seed in seeds)],
        ["canary, largest difference", *(f"{summaries[s]['canary']['max_abs_diff']:.1e}" for s in seeds)],
        ["largest policy lag (bound 1)", *(str(row["max_policy_lag"]) for row in grpo)],
        ["data / SFT / evaluations / GRPO", *(_stages(summaries[seed]["seconds"]) for seed in seeds)],
        ["total", *(f"{summaries[seed]['seconds']['total'] / 60:.1f} min" for seed in seeds)],
        ["resident memory, at most", *(f"{summaries[s]['peak_rss_bytes'] / 2**30:.1f} GiB" for s in seeds)],
    )


def _print_controls(heads: list[str], paths: list[Path]) -> None:
    if not all(path.is_file() for path in paths):
        print("(no table of controls: `alphadrive demo --controls` has not been run for every seed)\n")
        return
    controls = [_read(path) for path in paths]
    lines: list[list[str]] = []
    for name, label in NAMES.items():
        rows = [control[name] for control in controls]
        samples = " / ".join(f"{row['samples']:,}" for row in rows if "samples" in row)
        lines.append([label, samples, *(f"{_accuracy(row)}; {_gain(row)}" for row in rows)])
    _table(["control: accuracy; gain over the SFT checkpoint", "samples", *heads], *lines)


def _read(path: Path) -> Row:
    content: Row = json.loads(path.read_text())
    return content


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _accuracy(row: Row) -> str:
    low, high = row["planning_accuracy_ci95"]
    return f"{_percent(row['planning_accuracy'])} ({100 * low:.1f} to {100 * high:.1f})"


def _gain(row: Row) -> str:
    low, high = row["gain_ci95"]
    return f"{100 * row['gain']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def _each(shown: Any, sft: list[Row], grpo: list[Row]) -> list[str]:
    return [f"{shown(before)} / {shown(after)}" for before, after in zip(sft, grpo, strict=True)]


def _pass_at_8(row: Row) -> str:
    return _percent(row["pass_at_8"])


def _invalid(row: Row) -> str:
    return _percent(row["invalid_rate"])


def _stages(seconds: dict[str, float]) -> str:
    return " / ".join(f"{seconds[name]:.0f}" for name in ("data", "sft", "eval", "grpo")) + " s"


def _table(*rows: list[str]) -> None:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    print("\n".join(lines), end="\n\n")


if __name__ == "__main__":
    main([int(text) for text in sys.argv[1:]] or [0])
