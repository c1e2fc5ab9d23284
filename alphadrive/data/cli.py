"""`alphadrive data import | synth | validate`: arguments in, one line out. What looks at data and splits
it is in `alphadrive.data.tools_cli`.

`alphadrive.cli` calls `add_data_parser` and then the parsed `run(args)`, which returns the exit code.
"""

import argparse
import itertools
import sys
from pathlib import Path

from alphadrive.data.import_command import add_import_parser
from alphadrive.data.tools_cli import add_tool_parsers
from alphadrive.errors import ConfigError
from alphadrive.world.choices import FREQUENCIES, KINDS


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
    synth.add_argument(
        "--kind",
        choices=KINDS,
        default="plain",
        help="what the scenes test, see docs/world.md (default: plain)",
    )
    synth.add_argument(
        "--frequencies",
        choices=FREQUENCIES,
        default="balanced",
        help="how often each plan is driven (default: balanced)",
    )
    synth.add_argument("--dry-run", action="store_true", help="check everything, write nothing")
    synth.set_defaults(run=_synth)

    validate = commands.add_parser(
        "validate",
        help="report every problem of a dataset",
        description="Report every problem of each folder, and every scene that stands in two splits.",
    )
    validate.add_argument(
        "folders",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="folders of Parquet shards, for example all splits",
    )
    validate.add_argument("--model", metavar="M", help="also refuse this model's special tokens in text")
    validate.set_defaults(run=_validate)
    add_tool_parsers(commands)


def _synth(args: argparse.Namespace) -> int:
    from alphadrive.data.candidates import Candidate
    from alphadrive.data.validate import write_valid_records
    from alphadrive.data.writing import check_new_dataset
    from alphadrive.world.dataset import synthesize

    if args.num < 1:
        raise ConfigError(f"--num={args.num}: expected 1 or more scenes")
    kind = "" if args.kind == "plain" else f"{args.kind} "
    if args.dry_run:
        check_new_dataset(args.out)
        print(f"{args.out}: {args.num} {kind}scenes of split {args.split}, seed {args.seed} (not written)")
        return 0
    records = synthesize(args.num, args.seed, args.split, kind=args.kind, frequencies=args.frequencies)
    candidates = (Candidate(where=f"scene {index}", record=record) for index, record in enumerate(records))
    num_written, _ = write_valid_records(candidates, args.out)
    pairs = f" in {args.num} pairs" if num_written != args.num else ""
    print(f"{args.out}: {num_written} {kind}scenes{pairs} of split {args.split}, seed {args.seed}")
    return 0


def _validate(args: argparse.Namespace) -> int:
    from alphadrive.data.parquet import DrivingDataset
    from alphadrive.data.scenes import split_problems
    from alphadrive.data.validate import count_of_problems, iter_problems

    special_tokens: tuple[str, ...] = ()
    if args.model:
        from alphadrive.model_folder import resolve_model, special_tokens_of

        special_tokens = special_tokens_of(resolve_model(args.model))
    found = (iter_problems(folder, special_tokens) for folder in args.folders)
    num_problems = 0
    for problem in itertools.chain(*found, split_problems(args.folders)):
        print(problem, file=sys.stderr)
        num_problems += 1
    if num_problems:
        print(f"{', '.join(map(str, args.folders))}: {count_of_problems(num_problems)}", file=sys.stderr)
        return 2
    for folder in args.folders:
        print(f"{folder}: {len(DrivingDataset(folder))} rows, valid")
    return 0
