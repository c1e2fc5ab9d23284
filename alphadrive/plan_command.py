"""`alphadrive plan CONFIG`: what a run needs and how fast it should be, before anything is started.

    0   it fits
    1   it does not; the nearest settings that would are shown

`--dry-run` of the commands that start a run comes here, too: the checks of a start, then the plan.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from alphadrive.planning.command import add_calibration_options, is_prediction, run_prediction

if TYPE_CHECKING:
    from alphadrive.config import Config
    from alphadrive.preflight import RunCheck
    from alphadrive.sizing.plan import Plan

_EPILOG = "example: alphadrive plan qwen2vl_2b_8gpu learner.zero_stage=1 --gpu H200 --rows 110000"


def add_plan_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `plan`; it sets `run`, a function of the parsed arguments."""
    from alphadrive.sizing.gpus import DEFAULT_GPU, GPUS

    parser = subparsers.add_parser(
        "plan",
        help="memory, batches and time of a run, before it is started",
        description="Memory of every kind of GPU, batch arithmetic, expected speed; what would not fit, and "
        "the nearest settings that would. Needs no GPU, and of the model at most its config.json.",
        epilog=_EPILOG,
    )
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, or the name of a shipped one")
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", help="override a key, for example grpo.steps=10"
    )
    parser.add_argument("--stage", choices=("grpo", "sft"), default="grpo", help="default: grpo")
    parser.add_argument("--gpu", choices=tuple(GPUS), default=DEFAULT_GPU, help=f"default: {DEFAULT_GPU}")
    parser.add_argument(
        "--rows", type=_count, metavar="N", help="rows of an epoch (default: those of data.train)"
    )
    parser.add_argument(
        "--answer-tokens", type=_count, metavar="N", help="tokens of a typical answer (default: 80)"
    )
    parser.add_argument("--json", action="store_true", help="for machines")
    add_calibration_options(parser)
    parser.set_defaults(run=run_plan)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")
    return int(text)


def run_plan(args: argparse.Namespace) -> int:
    """Print the plan; returns 1 when the run would not fit. Raises ConfigError, ModelError, DataError."""
    from alphadrive.config import load_config
    from alphadrive.sizing.gpus import GPUS
    from alphadrive.sizing.plan import make_plan, rows_of

    config = load_config(args.config, args.overrides)
    if is_prediction(args):
        return run_prediction(config, args, as_json=args.json)
    rows = args.rows if args.rows is not None else rows_of(config)
    plan = make_plan(config, args.stage, GPUS[args.gpu], rows=rows, answer_tokens=args.answer_tokens)
    return _shown(plan, as_json=args.json)


def dry_run(
    config: "Config",
    stage: Literal["grpo", "sft", "debug"],
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> int:
    """Check everything that a start checks, then show the plan; nothing is started, nothing written.

    Returns 1 when the run would not fit. Raises InputError.
    """
    from alphadrive.preflight import check_run
    from alphadrive.run_folder import RunFolder
    from alphadrive.sizing.gpus import DEFAULT_GPU, GPUS
    from alphadrive.sizing.plan import make_plan
    from cluster.jobs import check_paths, cluster_to_join

    check_paths(config)
    if stage != "debug":
        cluster_to_join()
    RunFolder.check(config, resume, overwrite, "grpo" if stage == "debug" else stage)
    if stage != "sft":
        from rewards.further import load_terms

        load_terms(config.rewards, Path.cwd())
    train = check_run(config, stage).train
    assert train is not None
    text_tokens = train.longest_prompt - train.longest_prompt_image
    plan = make_plan(config, stage, GPUS[DEFAULT_GPU], rows=train.num_rows, text_tokens=text_tokens)
    return _shown(plan)


def dry_answers(who: str, config: "Config", checked: "RunCheck", num_answers: int) -> int:
    """Show what the engine of `alphadrive eval` and `predict` needs, behind the checks; nothing is started.

    Returns 1 when it would not fit. Raises ModelError.
    """
    from alphadrive.sizing.architecture import architecture_of
    from alphadrive.sizing.gpus import DEFAULT_GPU, GPUS
    from alphadrive.sizing.memory import devices_of
    from alphadrive.sizing.text import answers_text
    from alphadrive.sizing.workload import workload_of

    assert checked.eval is not None
    # As many answers at once as the engine draws, each to a prompt of its own.
    config.grpo.group_size, config.grpo.groups_per_step = 1, config.rollout.max_num_seqs
    architecture = architecture_of(config.model)
    text_tokens = checked.eval.longest_prompt - checked.eval.longest_prompt_image
    workload = workload_of(config, architecture, checked.eval.num_rows, text_tokens)
    devices = devices_of(config, "eval", architecture, workload, GPUS[DEFAULT_GPU])
    longest = checked.eval.longest_prompt
    print(answers_text(who, checked.eval.num_rows, num_answers, longest, list(devices)) + "\n")
    return 0 if all(device.fits for device in devices) else 1


def dry_demo(seed: int) -> int:
    """Check the folders of the demo's two stages and show their plans; it would make the data itself.

    Returns 1 when a stage would not fit. Raises InputError.
    """
    from alphadrive.capacity import check_disk
    from alphadrive.config import load_config
    from alphadrive.demo import CONFIG, NUM_TRAIN, SFT_RANKS, SFT_SHARE, DemoPaths, overrides_of
    from alphadrive.run_folder import RunFolder
    from alphadrive.sizing.gpus import DEFAULT_GPU, GPUS
    from alphadrive.sizing.plan import make_plan

    paths, codes = DemoPaths.of(seed), []
    for stage, run, rows, overrides in (
        ("sft", paths.sft, int(NUM_TRAIN * SFT_SHARE), [SFT_RANKS]),
        ("grpo", paths.run, NUM_TRAIN, []),
    ):
        config = load_config(CONFIG, [*overrides_of(paths, run.name, seed), *overrides])
        RunFolder.check(config, overwrite=True, stage=stage)
        plan = make_plan(config, stage, GPUS[DEFAULT_GPU], rows=rows)
        check_disk(config, plan.architecture.parameters)
        codes.append(_shown(plan))
    return max(codes)


def _shown(plan: "Plan", *, as_json: bool = False) -> int:
    from alphadrive.sizing.advice import advise
    from alphadrive.sizing.text import plan_text

    advice = [] if plan.fits else advise(plan)
    if as_json:
        found = plan.as_json() | {"advice": [list(each.overrides) for each in advice]}
        print(json.dumps(found, indent=2))
    else:
        print(plan_text(plan, advice) + "\n")
    return 0 if plan.fits else 1
