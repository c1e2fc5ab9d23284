"""How well rollouts and training overlap:

    alphadrive data synth --out /tmp/scenes --num 400
    python benchmarks/profile_overlap.py /tmp/scenes --json overlap.json

The shipped loop, pools, sync and learner on a real Ray; the learner is real, the engines sleep, so that both
have what they need of two cores. First the learner alone: engines that take no time. Then engines that need R
seconds for a step's groups, a share of what the update took alone, for each of `--shares`. For each:

    T        seconds of the learner's update in this run, the mean; beside it what it was alone
    step     seconds of a step, the mean
    overlap  max(R, T) / step: 1 is a step that takes no longer than the slower part
    profile  the same by `alphadrive profile`: the busier part's share of the time
    causes   what the train loop spent the rest on

`--real` adds a run with vLLM engines, whose R is not known: there T beside T alone says how much engine and
learner take from each other on two cores, and the report of `alphadrive profile` is printed.
"""

import argparse
import json
import math
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from sleeping_engine import SEATS, sleeping_actor

import cluster.grpo
from alphadrive.config import Config, load_config
from alphadrive.profiling.analysis import Profile, profile_of
from alphadrive.profiling.report import report_text
from alphadrive.profiling.span_file import read_spans
from cluster.actors import RolloutActor
from cluster.grpo import train_on_ray
from cluster.launch import execute
from cluster.proof import CanaryLimit


def main() -> None:
    """Measure and print a line for each share."""
    parser = argparse.ArgumentParser(description="overlap of rollouts and training")
    parser.add_argument("data", type=Path)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.9, 1.5])
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--groups-per-step", type=int, default=64)
    parser.add_argument("--real", action="store_true", help="also with vLLM engines")
    parser.add_argument("--json", type=Path)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = config_of(args, Path(folder))
        real = measured(config, RolloutActor) if args.real else None
        cluster.grpo.canary_limit_and_queries = without_limit  # type: ignore[assignment]
        alone = measured(config, sleeping_actor(0.0))
        alone_s = update_s(alone)
        found = [figures("alone", 0.0, alone_s, alone)]
        for share in args.shares:
            draw_s = share * alone_s * SEATS / config.grpo.groups_per_step
            profile = measured(config, sleeping_actor(draw_s))
            found.append(figures(f"{share:g}", share * alone_s, alone_s, profile))
    if real is not None:
        found.append(figures("real", 0.0, alone_s, real))
        print(report_text("real engines", real))
    if args.json:
        args.json.write_text(json.dumps(found, indent=2))


def config_of(args: argparse.Namespace, folder: Path) -> Config:
    """A run without evaluation, and with no checkpoint before its end."""
    keys = {
        "data.train": args.data,
        "data.eval": "null",
        "eval.every_steps": 0,
        "run.root": folder,
        "run.tensorboard": "false",
        "rewards.variant": "random",
        "grpo.steps": args.steps,
        "grpo.groups_per_step": args.groups_per_step,
        "grpo.max_new_tokens": 32,
        "checkpoint.every_steps": 1_000_000,
        "profile.enabled": "true",
    }
    return load_config("debug", [*(f"{key}={value}" for key, value in keys.items()), *args.overrides])


def measured(config: Config, actor: type[RolloutActor]) -> Profile:
    """Make a run with these engines; where its time went."""
    train = partial(train_on_ray, rollout_actor=actor)
    return profile_of(read_spans(execute("grpo", config, train, overwrite=True).folder))


def without_limit(attempt: Any, original: Any = cluster.grpo.canary_limit_and_queries) -> Any:
    """The canaries are drawn and compared as ever; what sleeps need not agree."""
    limit, queries = original(attempt)
    assert isinstance(limit, CanaryLimit)
    limit._floor = limit._ceiling = math.inf
    return limit, queries


def update_s(profile: Profile) -> float:
    """Seconds of the learner's update, the mean."""
    return profile.loop["train"] * profile.wall_s / profile.num_steps


def figures(label: str, rollout_s: float, alone_s: float, profile: Profile) -> dict[str, Any]:
    """Print and return what was measured with one speed of engines."""
    rest = {name: share for name, share in profile.loop.items() if name != "train"}
    step_s = profile.wall_s / profile.num_steps
    row = {
        "R/T": label,
        "R": rollout_s,
        "T": update_s(profile),
        "T alone": alone_s,
        "step": step_s,
        "overlap": max(rollout_s, update_s(profile)) / step_s,
        "profile": profile.overlap,
        "loop": profile.loop,
    }
    causes = ", ".join(f"{name} {share:.1%}" for name, share in sorted(rest.items(), key=lambda it: -it[1]))
    print(
        f"R/T {label:>5}  R {rollout_s:6.3f} s  T {row['T']:6.3f} s ({alone_s:.3f} s alone)  "
        f"step {step_s:6.3f} s  overlap {row['overlap']:.3f}  profile {profile.overlap:.3f}  "
        f"causes: {causes}",
        flush=True,
    )
    return row


if __name__ == "__main__":
    main()
