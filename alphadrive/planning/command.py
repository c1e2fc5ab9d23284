"""The options of `alphadrive plan` that predict a run from runs there were."""

import argparse
import json
import logging
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from alphadrive.config import Config, load_config
from alphadrive.config_checks import get_key
from alphadrive.errors import InputError

DEFAULT_COUNTS = tuple(2**power for power in range(13))
MAX_WORKERS, MAX_FAIL_RATE = 10_000, 60.0
"""More would be simulated for hours, and an engine that dies every minute is a fault, not a rate."""
SPEED_KEYS = (
    "model.path",
    "model.dtype",
    "model.max_pixels",
    "data.trajectory",
    "grpo.max_new_tokens",
    "rollout.gpus_per_worker",
    "rollout.cpus_per_worker",
    "rollout.weight_transfer",
    "learner.gpus_per_rank",
    "learner.cpus_per_rank",
    "learner.zero_stage",
    "learner.max_tokens_per_microbatch",
    "learner.freeze_vision",
    "learner.offload_optimizer",
    "learner.activation_checkpointing",
    "learner.lora_rank",
)
"""What a run's speeds follow from and the simulation does not know: taken as the run has it."""

log = logging.getLogger(__name__)


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
    """Whether a prediction is asked for. Raises InputError for options that mean nothing with or without."""
    if args.calibrate and (args.stage != "grpo" or args.rows or args.answer_tokens):
        raise InputError(
            "--calibrate predicts GRPO from what runs have shown: without --stage, --rows and --answer-tokens"
        )
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
    if not counts or min(counts) < 1 or max(counts) > MAX_WORKERS:
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers from 1 to {MAX_WORKERS}, such as 1,2,4")
    return counts


def run_prediction(config: Config, args: argparse.Namespace, *, as_json: bool) -> int:
    """Calibrate, simulate, print."""
    from alphadrive.planning.calibration import calibrate
    from alphadrive.planning.prediction import predict

    if not 0 <= args.fail_rate <= MAX_FAIL_RATE:
        raise InputError(
            f"--fail-rate {args.fail_rate}: expected 0 to {MAX_FAIL_RATE:g} deaths of an engine in an hour"
        )
    measured = calibrate(args.calibrate)
    for difference in _differences(config, args.calibrate):
        log.warning("%s: its speeds are taken as they are", difference)
    if args.fail_rate and math.isnan(measured.engine_start_s):
        raise InputError(
            "--fail-rate needs the time an engine takes to start, and no summary.json of "
            f"{', '.join(map(str, args.calibrate))} has engine_start_s: calibrate on a run that has ended"
        )
    counts = args.workers or DEFAULT_COUNTS
    prediction = predict(config, measured, counts, fail_rate=args.fail_rate, is_weak=args.weak)
    print(json.dumps(prediction.as_fields(), indent=2) if as_json else prediction)
    return 0


def _differences(config: Config, runs: Sequence[Path]) -> Iterable[str]:
    """Where a run was made with other settings than those asked about, of all that speed follows from."""
    for run in runs:
        seen = load_config(str(run / "config.yaml"))
        for key in SPEED_KEYS:
            if get_key(seen, key) != get_key(config, key):
                yield f"{run} has {key}={get_key(seen, key)}, not {get_key(config, key)}"
