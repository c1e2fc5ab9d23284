"""`alphadrive model tiny`: the settings the shipped model was made with."""

import argparse
import json

from alphadrive.errors import ModelError


def run_build(args: argparse.Namespace) -> None:
    """Make the tiny model in `args.out` with seed `args.seed`; refuses a folder that is not empty."""
    if args.out.exists() and any(args.out.iterdir()):
        raise ModelError(
            f"--out={args.out}: expected a folder that is new or empty; remove it or name another"
        )
    from alphadrive.tiny.pretrain import build

    figures = build(args.out, num_scenes=24_000, steps=800, batch_size=64, learning_rate=2e-3, seed=args.seed)
    print(json.dumps(figures, indent=2))
