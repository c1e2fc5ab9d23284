"""How well rollouts and training overlap:

    alphadrive data synth --out /tmp/scenes --num 400
    python benchmarks/profile_overlap.py /tmp/scenes --json overlap.json

The shipped loop, pools, sync and learner on a real Ray; the learner is real, the engines sleep, so that both
have what they need of two cores. First the learner alone: engines that take no time give T, the seconds of
its update. Then engines that need R = share x T for a step's groups, for each of `--shares`. For each:

    wall     median seconds of a step
    overlap  max(R, T) / wall, with T as it was alone: 1 is a step that takes no longer than the slower part
    profile  the same by `alphadrive profile`: busy shares of the run itself
    causes   what the train loop spent the rest on

`--real` runs vLLM engines instead, once, as `alphadrive profile` would: there only `profile` is known, as two
cores are not enough for engine and learner at once.
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
    parser.add_argument("--real", action="store_true", help="vLLM engines instead of sleeping ones")
    parser.add_argument("--json", type=Path)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = config_of(args, Path(folder))
        if args.real:
            print(report_text("real engines", measured(config, RolloutActor)))
            return
        cluster.grpo.canary_limit_and_queries = without_limit  # type: ignore[assignment]
        alone = measured(config, sleeping_actor(0.0))
        update_s = alone.loop["train"] * alone.wall_s / alone.num_steps
        found = [figures("alone", 0.0, update_s, alone)]
        for share in args.shares:
            draw_s = share * update_s * SEATS / config.grpo.groups_per_step
            profile = measured(config, sleeping_actor(draw_s))
            found.append(figures(f"{share:g}", share * update_s, update_s, profile))
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


def figures(label: str, rollout_s: float, update_s: float, profile: Profile) -> dict[str, Any]:
    """Print and return what was measured with one speed of engines."""
    rest = {name: share for name, share in profile.loop.items() if name != "train"}
    row = {
        "R/T": label,
        "R": rollout_s,
        "T": update_s,
        "wall": profile.step_s,
        "overlap": max(rollout_s, update_s) / profile.step_s,
        "profile": profile.overlap,
        "loop": profile.loop,
    }
    causes = ", ".join(f"{name} {share:.1%}" for name, share in sorted(rest.items(), key=lambda it: -it[1]))
    print(
        f"R/T {label:>5}  R {rollout_s:6.3f} s  T {update_s:6.3f} s  wall {profile.step_s:6.3f} s  "
        f"overlap {row['overlap']:.3f}  profile {profile.overlap:.3f}  causes: {causes}",
        flush=True,
    )
    return row


if __name__ == "__main__":
    main()
