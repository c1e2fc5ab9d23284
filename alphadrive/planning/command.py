"""The options of `alphadrive plan` that predict a run from runs there were."""

import argparse
import json
import math
from pathlib import Path

from alphadrive.config import Config
from alphadrive.errors import InputError

DEFAULT_COUNTS = tuple(2**power for power in range(13))


def add_calibration_options(parser: argparse.ArgumentParser) -> None:
    """`--calibrate` and what goes with it."""
    group = parser.add_argument_group(
        "prediction from finished runs",
        "Simulate CONFIG with other numbers of rollout workers, with the speeds that runs have shown.",
    )
    group.add_argument(
        "--calibrate",
        type=Path,
        action="append",
        metavar="RUN",
        help="folder of a finished GRPO run on this hardware; give several to know more",
    )
    group.add_argument(
        "--workers",
        type=worker_counts,
        metavar="1,2,4",
        help="numbers of rollout workers (default: the powers of two up to 4096)",
    )
    group.add_argument(
        "--fail-rate",
        type=float,
        default=0.0,
        metavar="F",
        help="deaths of an engine in an hour (default: 0)",
    )
    group.add_argument(
        "--weak",
        action="store_true",
        help="groups of a step, learner ranks and reward workers grow with the rollout workers",
    )


def is_prediction(args: argparse.Namespace) -> bool:
    """Whether a prediction is asked for. Raises InputError for options that mean nothing without one."""
    if not args.calibrate and (args.workers or args.fail_rate or args.weak):
        raise InputError(
            "--workers, --fail-rate and --weak need --calibrate RUN, the folder of a finished run"
        )
    return bool(args.calibrate)


def worker_counts(text: str) -> list[int]:
    """Read `1,2,4`."""
    try:
        counts = [int(word) for word in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers of 1 or more, for example 1,2,4")
    return counts


def run_prediction(config: Config, args: argparse.Namespace, *, as_json: bool) -> int:
    """Calibrate, simulate, print."""
    from alphadrive.planning.calibration import calibrate
    from alphadrive.planning.prediction import predict

    if not args.fail_rate >= 0:
        raise InputError(f"--fail-rate {args.fail_rate}: expected 0 or more deaths of an engine in an hour")
    measured = calibrate(args.calibrate)
    if args.fail_rate and math.isnan(measured.engine_start_s):
        raise InputError(
            "--fail-rate needs the time an engine takes to start, and no summary.json of "
            f"{', '.join(map(str, args.calibrate))} has engine_start_s: calibrate on a run that has ended"
        )
    counts = args.workers or DEFAULT_COUNTS
    prediction = predict(config, measured, counts, fail_rate=args.fail_rate, is_weak=args.weak)
    print(json.dumps(prediction.as_fields(), indent=2) if as_json else prediction)
    return 0
