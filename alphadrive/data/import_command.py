"""`alphadrive data import LAYOUT PATH --out DIR`: arguments, progress, the closing line.

`alphadrive.data.cli` calls `add_import_parser`.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from alphadrive.errors import ConfigError

if TYPE_CHECKING:
    from alphadrive.data.drive_rows import RowOptions
    from alphadrive.data.importing import ImportProgress, ImportResult, ImportSource

_PLAIN_EVERY_S = 10.0
_BAR_EVERY_S = 0.2
_MIN_EVERY_S = 0.01
_TRAJECTORY = "plans, waypoints and, where the source has none, navigation come from the trajectory"


def add_import_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `import` and its layouts. Every leaf sets `run`, a function of the parsed arguments."""
    importing = commands.add_parser(
        "import",
        help="import a published dataset, or your own logs",
        description="An interrupted import goes on where it was when the same command is run again.",
    )
    layouts = importing.add_subparsers(dest="layout", required=True, metavar="LAYOUT")

    metaad = layouts.add_parser("metaad", help="the MetaAD JSON layout: image, problem, solution, thinking")
    _add_common(metaad, "a JSON file, or a folder of them with the images", _metaad)

    comma = layouts.add_parser(
        "comma2k19", help=f"comma2k19 segments: video, CAN speed, poses; {_TRAJECTORY}"
    )
    _add_common(comma, "the data set, a chunk, a drive or one segment", _comma2k19)
    _add_every(comma)
    _add_labelling(comma)

    nuscenes = layouts.add_parser(
        "nuscenes", help=f"nuScenes through its devkit, CAM_FRONT at the key frames; {_TRAJECTORY}"
    )
    _add_common(nuscenes, "the folder with v1.0-…/, maps/ and samples/", _nuscenes, has_own_splits=True)
    nuscenes.add_argument(
        "--version",
        default="v1.0-mini",
        choices=("v1.0-mini", "v1.0-trainval", "v1.0-test"),
        help="default: v1.0-mini",
    )
    _add_labelling(nuscenes)

    table = layouts.add_parser("csv", help=f"CSV tables of poses, speeds and image paths; {_TRAJECTORY}")
    _add_common(table, "a table, or a folder of them; each is one scene", _csv)
    table.add_argument(
        "--labels-only",
        action="store_true",
        help="rows without images, for statistics of labels; they cannot be trained on",
    )
    _add_every(table)
    _add_labelling(table)


def _add_common(
    parser: argparse.ArgumentParser,
    path_help: str,
    make_source: "Callable[[argparse.Namespace], ImportSource]",
    *,
    has_own_splits: bool = False,
) -> None:
    parser.add_argument("path", type=Path, metavar="PATH", help=path_help)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the Parquet shards"
    )
    if has_own_splits:
        parser.add_argument("--split", help="only the scenes of this official split (default: all)")
    else:
        parser.add_argument("--split", default="train", help="name of the split (default: train)")
    parser.add_argument(
        "--max-bad-rows",
        type=int,
        default=0,
        metavar="N",
        help="leave out up to N bad rows, listed in rejected.jsonl (default: 0)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="find what would be read, check where it goes, import nothing"
    )
    parser.set_defaults(run=_import, make_source=make_source)


def _add_every(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--every", type=float, default=0.5, metavar="S", help="seconds between two rows (default: 0.5)"
    )


def _add_labelling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--label-rule", default="alphadrive", help="alphadrive or senna (default: alphadrive)"
    )
    parser.add_argument(
        "--rule-param",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a parameter of the rule, for example turn_deg=25; may be given several times",
    )
    parser.add_argument(
        "--near-threshold",
        choices=("both", "drop", "ignore"),
        default="both",
        help="where a threshold moved by 20 %% would change the label: write both labels, drop the row, or "
        "keep the rule's label alone (default: both)",
    )
    parser.add_argument(
        "--no-navigation", action="store_true", help="the same text that says nothing in every row"
    )


def _row_options(args: argparse.Namespace, every_s: float = 0.5) -> "RowOptions":
    from alphadrive.data.drive_rows import RowOptions
    from alphadrive.data.labels import make_rule

    if not _MIN_EVERY_S <= every_s < float("inf"):
        raise ConfigError(f"--every={every_s}: expected {_MIN_EVERY_S:g} seconds or more")
    return RowOptions(
        rule=make_rule(args.label_rule, args.rule_param),
        near=args.near_threshold,
        with_navigation=not args.no_navigation,
        every_s=every_s,
    )


def _metaad(args: argparse.Namespace) -> "ImportSource":
    from alphadrive.data.metaad import metaad_source

    return metaad_source(args.path, args.split)


def _comma2k19(args: argparse.Namespace) -> "ImportSource":
    from alphadrive.data.comma2k19 import comma2k19_source

    return comma2k19_source(args.path, args.split, _row_options(args, args.every))


def _nuscenes(args: argparse.Namespace) -> "ImportSource":
    from alphadrive.data.nuscenes import nuscenes_source

    return nuscenes_source(args.path, args.version, args.split, _row_options(args))


def _csv(args: argparse.Namespace) -> "ImportSource":
    from alphadrive.data.csv_table import csv_source

    options = _row_options(args, args.every)
    return csv_source(args.path, args.split, options, labels_only=args.labels_only)


def _import(args: argparse.Namespace) -> int:
    from alphadrive.data.importing import import_dataset
    from alphadrive.data.schema import IMPORT_FOLDER, STATE_FILE
    from alphadrive.data.writing import check_new_dataset

    if args.max_bad_rows < 0:
        raise ConfigError(f"--max-bad-rows={args.max_bad_rows}: expected 0 or more")
    source = args.make_source(args)
    if args.dry_run:
        if not (args.out / IMPORT_FOLDER / STATE_FILE).exists():
            check_new_dataset(args.out)
        num_bytes = sum(file.stat().st_size for file in source.files)
        found = f"{len(source.units)} units in {len(source.files)} files, {num_bytes / 1e6:.1f} MB"
        print(f"{args.out}: {args.path} has {found} (not imported)")
        return 0
    try:
        with _progress() as report:
            result = import_dataset(source, args.out, max_bad_rows=args.max_bad_rows, report=report)
    except KeyboardInterrupt:
        if (args.out / IMPORT_FOLDER / STATE_FILE).exists():
            print(f"{args.out}: run the same command again to go on", file=sys.stderr)
        raise
    print(_closing_text(args, result))
    return 0


def _closing_text(args: argparse.Namespace, result: "ImportResult") -> str:
    text = f"{args.out}: {result.num_rows} rows imported from {args.path}"
    if result.num_kept:
        text += f", {result.num_kept} of them before the interruption"
    if result.num_rejected:
        text += f", {result.num_rejected} rejected (see {args.out}/rejected.jsonl)"
    for reason, count in result.left_out.items():
        text += f"\n  left out: {count} {reason}"
    return text


@contextmanager
def _progress() -> "Iterator[Callable[[ImportProgress], None]]":
    """A bar on a terminal, a plain line every ten seconds elsewhere; yields what takes the progress."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rows]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("importing", total=None, rows="")
        interval_s = _BAR_EVERY_S if console.is_terminal else _PLAIN_EVERY_S
        last = time.monotonic()

        def report(progress: "ImportProgress") -> None:
            nonlocal last
            if time.monotonic() - last < interval_s:
                return
            last = time.monotonic()
            rows = f"{progress.num_rows} rows, {progress.num_rejected} rejected"
            if console.is_terminal:
                bar.update(
                    task,
                    description=progress.unit,
                    completed=progress.units_done,
                    total=progress.num_units,
                    rows=rows,
                )
            else:
                share = f"{progress.units_done:.1f} of {progress.num_units}"
                print(f"importing {progress.unit}: {share} read, {rows}", file=sys.stderr, flush=True)

        yield report
