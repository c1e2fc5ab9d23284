"""Completions scored a second on one core: `python benchmarks/reward_throughput.py`.

Times `rewards.score.variant_terms` and the advantages on groups of distinct texts (each about 250 characters:
right, wrong, half right, malformed), in seconds of this process's CPU time, and the whole command
`alphadrive score` on a file of the same groups, in seconds of its CPU time, start included.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from alphadrive.actions import PATHS, SPEEDS
from rewards.advantage import group_advantages
from rewards.score import variant_terms

GROUP_SIZE = 8
THOUGHT = "the light ahead is green, the lane is free for the next 60 m and the route goes on, no cause"


def make_groups(num_groups: int) -> list[tuple[list[str], list[str]]]:
    """Solutions (one or two plans) and the texts of each group; no text occurs twice."""
    rng = random.Random(0)

    def plan() -> str:
        return f"{rng.choice(SPEEDS)}, {rng.choice(PATHS)}"

    groups = []
    for group in range(num_groups):
        solutions = list({plan() for _ in range(rng.choice((1, 1, 2)))})
        texts = []
        for member in range(GROUP_SIZE):
            stated = rng.choice(solutions) if rng.random() < 0.5 else plan()
            end = "" if rng.random() < 0.05 else "</answer>"
            texts.append(f"<think> {THOUGHT}, {group}/{member}: {THOUGHT} </think> <answer> {stated} {end}")
        groups.append((solutions, texts))
    return groups


def function_rate(groups: list[tuple[list[str], list[str]]], variant: str) -> float:
    """Completions a second of CPU time, rewards and advantages, best of three."""
    best_s = float("inf")
    for _ in range(3):
        started_s = time.process_time()
        for solutions, texts in groups:
            rewards = variant_terms(texts, solutions, "q", variant, "0/q")
            group_advantages([sum(terms.values()) for terms in rewards])
        best_s = min(best_s, time.process_time() - started_s)
    return len(groups) * GROUP_SIZE / best_s


def command_rate(groups: list[tuple[list[str], list[str]]], variant: str) -> float:
    """Completions a second of CPU time of `alphadrive score`, reading and writing JSON included."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "groups.jsonl"
        lines = (json.dumps({"solution": solutions, "completions": texts}) for solutions, texts in groups)
        file.write_text("".join(f"{line}\n" for line in lines))
        command = [sys.executable, "-m", "alphadrive.cli", "score", "--variant", variant, str(file)]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used_s = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return len(groups) * GROUP_SIZE / used_s


def main() -> None:
    """Print a line for each variant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-groups", type=int, default=25_000, metavar="N", help="default: 25000")
    parser.add_argument("--variants", nargs="+", default=["strict"], metavar="V", help="default: strict")
    args = parser.parse_args()
    groups = make_groups(args.num_groups)
    length = sum(len(text) for _, texts in groups for text in texts) / (len(groups) * GROUP_SIZE)
    print(f"{len(groups)} groups of {GROUP_SIZE}, {length:.0f} characters a text")
    for variant in args.variants:
        print(
            f"{variant}: {function_rate(groups, variant):,.0f} completions/s scored, "
            f"{command_rate(groups, variant):,.0f} completions/s through `alphadrive score`"
        )


if __name__ == "__main__":
    main()
