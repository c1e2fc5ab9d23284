"""`alphadrive model tiny`: the settings the shipped model was made with."""

import argparse
import json
from typing import TypedDict

from alphadrive.capacity import unwritable
from alphadrive.errors import ModelError


class _Settings(TypedDict):
    num_scenes: int
    steps: int
    batch_size: int
    learning_rate: float


SETTINGS = _Settings(num_scenes=60_000, steps=2600, batch_size=128, learning_rate=3e-3)


def run_build(args: argparse.Namespace) -> None:
    """Make the tiny model in `args.out` with seed `args.seed`; refuses a folder that is not empty, or cannot
    be written."""
    if args.out.exists() and any(args.out.iterdir()):
        raise ModelError(
            f"--out={args.out}: expected a folder that is new or empty; remove it or name another"
        )
    if parent := unwritable(args.out):
        raise ModelError(f"--out={args.out}: cannot be written: {parent} is not ours to write in")
    if args.dry_run:
        steps, batch_size, num_scenes = SETTINGS["steps"], SETTINGS["batch_size"], SETTINGS["num_scenes"]
        print(
            f"{args.out}: {steps} steps of {batch_size} on {num_scenes} scenes, seed {args.seed} (not made)"
        )
        return
    from alphadrive.tiny.pretrain import build

    figures = build(args.out, **SETTINGS, seed=args.seed)
    print(json.dumps(figures, indent=2))
