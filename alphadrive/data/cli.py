"""`alphadrive data import | synth | validate`: arguments in, one line out.

`alphadrive.cli` calls `add_data_parser` and then the parsed `run(args)`, which returns the exit code.
"""

import argparse
import sys
from pathlib import Path

from alphadrive.data.import_command import add_import_parser
from alphadrive.errors import ConfigError


def add_data_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `data` and what is under it. Every leaf sets `run`, a function of the parsed arguments."""
    data = subparsers.add_parser("data", help="make, import and check datasets")
    commands = data.add_subparsers(dest="data_command", required=True, metavar="COMMAND")

    add_import_parser(commands)

    synth = commands.add_parser("synth", help="render scenes of the small driving world")
    synth.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the Parquet shards")
    synth.add_argument("--num", type=int, required=True, metavar="N", help="number of scenes")
    synth.add_argument("--seed", type=int, default=0, metavar="S", help="seed (default: 0)")
    synth.add_argument("--split", default="train", help="train, eval or another name (default: train)")
    synth.set_defaults(run=_synth)

    validate = commands.add_parser("validate", help="report every problem of a dataset")
    validate.add_argument("folder", type=Path, metavar="DIR", help="a folder of Parquet shards")
    validate.add_argument("--model", metavar="M", help="also refuse this model's special tokens in text")
    validate.set_defaults(run=_validate)


def _synth(args: argparse.Namespace) -> int:
    from alphadrive.data.candidates import Candidate
    from alphadrive.data.validate import write_valid_records
    from alphadrive.world.dataset import synthesize

    if args.num < 1:
        raise ConfigError(f"--num={args.num}: expected 1 or more scenes")
    records = synthesize(args.num, args.seed, args.split)
    candidates = (Candidate(where=f"scene {index}", record=record) for index, record in enumerate(records))
    num_written, _ = write_valid_records(candidates, args.out)
    print(f"{args.out}: {num_written} scenes of split {args.split}, seed {args.seed}")
    return 0


def _validate(args: argparse.Namespace) -> int:
    from alphadrive.data.parquet import DrivingDataset
    from alphadrive.data.validate import iter_problems

    special_tokens: tuple[str, ...] = ()
    if args.model:
        from alphadrive.model_folder import resolve_model, special_tokens_of

        special_tokens = special_tokens_of(resolve_model(args.model))
    num_problems = 0
    for problem in iter_problems(args.folder, special_tokens):
        print(problem, file=sys.stderr)
        num_problems += 1
    if num_problems:
        print(f"{args.folder}: {num_problems} problems", file=sys.stderr)
        return 2
    print(f"{args.folder}: {len(DrivingDataset(args.folder))} rows, valid")
    return 0
