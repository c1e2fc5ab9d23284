"""`alphadrive data stats | show | split`: arguments in, tables, a page or folders out."""

import argparse
import json
from pathlib import Path

from alphadrive.errors import ConfigError


def add_tool_parsers(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the three commands under `data`. Every one sets `run`, a function of the parsed arguments."""
    stats = commands.add_parser(
        "stats",
        help="count plans, speeds, routes, splits and sources of a dataset",
        epilog="example: alphadrive data stats data/train --out stats.html",
    )
    _add_folder(stats)
    stats.add_argument("--out", type=Path, metavar="FILE", help="also write bar charts to this HTML page")
    stats.add_argument("--json", action="store_true", help="print JSON instead of tables")
    stats.set_defaults(run=_stats)

    show = commands.add_parser(
        "show",
        help="write rows with image, prompt, plans and reasoning to one HTML page",
        epilog="example: alphadrive data show data/train --out rows.html --where split=train",
    )
    _add_folder(show)
    show.add_argument("--out", type=Path, required=True, metavar="FILE", help="the HTML page")
    show.add_argument(
        "--num", type=int, default=24, metavar="N", help="rows shown, spread over the dataset (default: 24)"
    )
    show.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="FIELD=PATTERN",
        help="only rows whose field matches, * for any text; may be repeated",
    )
    show.set_defaults(run=_show)

    split = commands.add_parser(
        "split",
        help="divide a dataset, every scene whole on one side",
        epilog="example: alphadrive data split data/drives --share eval=0.1 --out data/split",
    )
    _add_folder(split)
    split.add_argument("--by", choices=("scene",), default="scene", help="what stays whole (default: scene)")
    split.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="gets one folder for each split"
    )
    split.add_argument(
        "--share",
        action="append",
        required=True,
        metavar="NAME=SHARE",
        help="a split and its share of the scenes, for example eval=0.1; may be repeated; the rest is train",
    )
    split.add_argument("--seed", type=int, default=0, metavar="S", help="of the division (default: 0)")
    split.add_argument("--dry-run", action="store_true", help="count rows and scenes, write nothing")
    split.set_defaults(run=_split)


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="a folder of Parquet shards")


def _stats(args: argparse.Namespace) -> int:
    from alphadrive.data.stats import dataset_stats
    from alphadrive.data.stats_views import print_stats, write_stats_page

    stats = dataset_stats(args.folder)
    if args.json:
        print(json.dumps(stats.as_dict(), indent=2))
    else:
        print_stats(args.folder, stats)
    if args.out is not None:
        write_stats_page(args.out, args.folder, stats)
        if not args.json:
            print(f"wrote {args.out}")
    return 0


def _show(args: argparse.Namespace) -> int:
    from alphadrive.data.show import MAX_SHOWN, Condition, write_contact_sheet

    if not 1 <= args.num <= MAX_SHOWN:
        raise ConfigError(
            f"--num={args.num}: expected 1 to {MAX_SHOWN} rows on a page; narrow them by --where"
        )
    conditions = [Condition.parse(text) for text in args.where]
    num_shown = write_contact_sheet(args.folder, args.out, conditions, args.num)
    print(f"{args.out}: {num_shown} rows of {args.folder}")
    return 0


def _split(args: argparse.Namespace) -> int:
    from alphadrive.data.split import parse_shares, planned_sides, split_dataset

    divide = planned_sides if args.dry_run else split_dataset
    note = " (not written)" if args.dry_run else ""
    for side in divide(args.folder, args.out, parse_shares(args.share), args.seed):
        print(f"{side.folder}: {side.num_rows} rows of {side.num_scenes} scenes{note}")
    return 0
