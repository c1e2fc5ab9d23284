"""`alphadrive model tiny`: the settings the shipped model was made with."""

import argparse
import json
from typing import TypedDict

from alphadrive.errors import ModelError


class _Settings(TypedDict):
    num_scenes: int
    steps: int
    batch_size: int
    learning_rate: float


SETTINGS = _Settings(num_scenes=60_000, steps=2600, batch_size=128, learning_rate=3e-3)


def run_build(args: argparse.Namespace) -> None:
    """Make the tiny model in `args.out` with seed `args.seed`; refuses a folder that is not empty."""
    if args.out.exists() and any(args.out.iterdir()):
        raise ModelError(
            f"--out={args.out}: expected a folder that is new or empty; remove it or name another"
        )
    from alphadrive.tiny.pretrain import build

    figures = build(args.out, **SETTINGS, seed=args.seed)
    print(json.dumps(figures, indent=2))
