"""`alphadrive profile`: profile a run, and read back where its time went.

alphadrive profile RUN      a folder: reads what the run has recorded, live, ended or killed
alphadrive profile CONFIG   anything else is a configuration: makes a short profiled run of it, then the same
"""

import argparse
import json
from pathlib import Path

from alphadrive.config import Config, load_config
from alphadrive.errors import InputError
from alphadrive.plan_command import dry_run

STEPS = 12
"""Enough for ten measured ones: the first and the last are left out."""


def add_profile_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `profile`; it sets `run`, a function of the parsed arguments."""
    parser = subparsers.add_parser(
        "profile",
        help="where the time of a run goes: idle shares by cause, critical path, a verdict",
        description=(
            "RUN, the folder of a run made with profile.enabled=true, is read back. Anything that is no "
            "folder is a CONFIG (a YAML file, or the name of a shipped one): a profiled grpo run of a few "
            "steps is made of it, called NAME-profile, and then read back."
        ),
        epilog="example: alphadrive profile runs/first --plot first.svg",
    )
    parser.add_argument("what", metavar="RUN|CONFIG", help="a run's folder, or a configuration")
    parser.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        help="override a key of CONFIG, for example rollout.num_workers=2",
    )
    parser.add_argument(
        "--steps",
        type=_num_steps,
        metavar="N",
        help=f"steps of the run that is made of CONFIG (default: {STEPS})",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier run of CONFIG's name")
    parser.add_argument(
        "--dry-run", action="store_true", help="check CONFIG, show the plan of its run, start nothing"
    )
    parser.add_argument("--json", action="store_true", help="for machines; the keys are in docs/profiling.md")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw it, as FILE.svg")
    parser.set_defaults(run=run_profile)


def run_profile(args: argparse.Namespace) -> int:
    """Print the profile of a run.

    Raises InputError for a run that was not profiled, for arguments that do not go together, and what a run
    raises.
    """
    if args.plot is not None and args.plot.suffix != ".svg":
        raise InputError(f"--plot {args.plot}: expected a name that ends in .svg")
    if args.plot is not None and not args.plot.absolute().parent.is_dir():
        raise InputError(f"--plot {args.plot}: no such folder: {args.plot.parent}; make it first")
    folder = Path(args.what)
    if not folder.is_dir():
        config = _profiled_config(args)
        if args.dry_run:
            return dry_run(config, "grpo", overwrite=args.overwrite)
        from cluster.launch import run_grpo

        folder = run_grpo(config, overwrite=args.overwrite).folder
    elif args.overrides or args.steps or args.overwrite or args.dry_run:
        raise InputError(
            f"{folder} is a run's folder: key=value, --steps, --overwrite and --dry-run are for a "
            "configuration, of which a new run is made"
        )
    return _tell(folder, as_json=args.json, plot=args.plot)


def _profiled_config(args: argparse.Namespace) -> Config:
    if args.what.startswith("runs/") or args.what.endswith("/"):
        raise InputError(f"{args.what}: no such folder; give a run's folder, or a configuration")
    config = load_config(args.what, args.overrides)
    config.profile.enabled = True
    given = {override.partition("=")[0] for override in args.overrides}
    if args.steps or "grpo.steps" not in given:
        config.grpo.steps = args.steps or STEPS
    if "run.name" not in given:
        config.run.name = f"{config.run.name}-profile"
    return config


def _tell(folder: Path, *, as_json: bool, plot: Path | None) -> int:
    from alphadrive.profiling.analysis import profile_of
    from alphadrive.profiling.plot import write_plot
    from alphadrive.profiling.report import report_json, report_text
    from alphadrive.profiling.span_file import has_spans, read_spans
    from alphadrive.profiling.timeline import write_timeline

    if not has_spans(folder):
        raise InputError(
            f"{folder}: was not profiled (no spans.jsonl in it); run it with profile.enabled=true"
        )
    try:
        recording = read_spans(folder)
    except ValueError as error:
        raise InputError(f"{error}; the run may have been killed as it began") from error
    profile = profile_of(recording)
    try:
        timeline = f"{write_timeline(folder, recording)} (open it at ui.perfetto.dev or chrome://tracing)"
    except OSError as error:  # a folder of somebody else
        timeline = f"not written: {error}"
    if plot is not None:
        write_plot(plot, str(folder), recording, profile)
    if as_json:
        print(json.dumps(report_json(str(folder), profile), indent=2))
    else:
        print(report_text(str(folder), profile))
        print(f"timeline: {timeline}")
    return 0


def _num_steps(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")
    return int(text)
