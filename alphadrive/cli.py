"""The `alphadrive` program: arguments, one boundary for errors, exit codes.

    0    done
    1    an error of the run itself (an engine, the learner, a checkpoint)
    2    wrong input: arguments, configuration, data, model, run folder, resources
    130  stopped by Ctrl-C
    143  stopped by SIGTERM

What a command does is imported when it runs, so that `--help` answers at once.
"""

import argparse
import errno
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from alphadrive import secrets
from alphadrive.data.cli import add_data_parser
from alphadrive.doctor.command import add_doctor_parser
from alphadrive.errors import AlphaDriveError
from alphadrive.eval_command import add_eval_parser
from alphadrive.export_command import add_export_parser
from alphadrive.plan_command import add_plan_parser, dry_demo, dry_run
from alphadrive.predict_command import add_predict_parser
from alphadrive.profile_command import add_profile_parser
from alphadrive.resources import put_our_packages_first
from alphadrive.run_commands import add_run_parsers
from alphadrive.score_command import add_score_parser
from alphadrive.stack_command import add_stack_parser
from alphadrive.teacher.command import add_distill_parser

if TYPE_CHECKING:
    from cluster.launch import RunResult

Command = Callable[[argparse.Namespace], int]

_DESCRIPTION = """\
Train vision-language driving planners: supervised warm-up, then GRPO with decoupled vLLM rollouts.

In the order one uses them:
  alphadrive demo                                     the whole thing, on two CPU cores
  alphadrive data synth --out data/train --num 4000   make (or import) a dataset
  alphadrive distill DATA --out DIR ...               a teacher's reasoning, where the data has none
  alphadrive plan CONFIG                              what a run needs: memory, batches, time
  alphadrive sft CONFIG                               stage 1: imitate a teacher
  alphadrive grpo CONFIG model.path=RUN_OR_FOLDER     stage 2: reinforcement learning
  alphadrive eval MODEL DATA                          stage 3: what its answers are worth
  alphadrive predict MODEL IMAGE --speed 8.3 ...      one image in, reasoning and plan out
  alphadrive score FILE.jsonl                         the rewards of answers, without any model
  alphadrive export RUN --out DIR                     its policy, as a model folder for use elsewhere
  alphadrive debug CONFIG                             stage 2 in one process, for breakpoints
  alphadrive status|scale|stop RUN                    look at a live run, change its workers, end it
  alphadrive profile RUN|CONFIG                       where the time goes, and what limits the run
  alphadrive stack RUN                                where every process of it stands, when it hangs
  alphadrive doctor                                   is this machine ready? with a remedy for each no
"""

_INTERRUPTED = 130
_TERMINATED = 143
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

_OVERRIDES = (
    "CONFIG is a YAML file or the name of a shipped configuration; key=value overrides one of its keys. "
    "Batch sizes are counted in prompts (queries); each prompt makes grpo.group_size samples."
)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script; ends the process with the exit code."""
    code = run(argv)
    if code in (_INTERRUPTED, _TERMINATED):
        # All of ours is closed by now, but an engine's threads, whose processes got the same Ctrl-C, may
        # abort the interpreter on its way out.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run(argv: Sequence[str] | None = None) -> int:
    """Parse the arguments, run the command, and turn this project's errors into an exit code."""
    put_our_packages_first()
    args = parse_arguments(argv)
    level = logging.DEBUG if args.verbose else logging.INFO
    logging.basicConfig(
        level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S"
    )
    secrets.redact_logging(logging.getLogger().handlers)
    for name in ("absl", "filelock", "httpx", "httpx2", "urllib3", "vllm"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("vllm.triton_utils").setLevel(logging.ERROR)
    command: Command = args.run
    try:
        return command(args)
    except AlphaDriveError as error:
        print(f"alphadrive: {secrets.redact(str(error))}", file=sys.stderr)
        logging.getLogger(__name__).debug("where it was raised", exc_info=True)
        return error.exit_code
    except KeyboardInterrupt as interrupt:
        is_ctrl_c = type(interrupt) is KeyboardInterrupt
        print(f"alphadrive: {interrupt if str(interrupt) else 'stopped by Ctrl-C'}", file=sys.stderr)
        return _INTERRUPTED if is_ctrl_c else _TERMINATED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno in _DISK_ERRORS:
            remedy = "make room or write elsewhere"
        elif error.filename is not None:
            remedy = "the same command with `alphadrive -v` shows where"
        else:
            raise
        print(f"alphadrive: {secrets.redact(str(error))}; {remedy}", file=sys.stderr)
        logging.getLogger(__name__).debug("where it was raised", exc_info=True)
        return 1


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse, with overrides and operands allowed after options too (`grpo demo --overwrite grpo.steps=2`,
    `eval tiny --samples 8 data`)."""
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    if hasattr(args, "operands"):
        words = [*args.operands, *(text for text in rest if not text.startswith("-"))]
        args.operands, rest = words[:2], [*words[2:], *(text for text in rest if text.startswith("-"))]
    unknown = [text for text in rest if text.startswith("-") or "=" not in text]
    if unknown or (rest and not hasattr(args, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(unknown or rest)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    return args


def build_parser() -> argparse.ArgumentParser:
    """The whole command line. Every leaf sets `run`, a function of the parsed arguments."""
    parser = argparse.ArgumentParser(
        prog="alphadrive", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log in detail; tracebacks of errors")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_demo(commands)
    add_data_parser(commands)
    add_distill_parser(commands)
    _add_model(commands)
    _add_training(
        commands,
        "sft",
        _sft,
        "stage 1: supervised fine-tuning on reasoning and answer",
        "example: alphadrive sft debug sft.steps=50 run.name=warm-up",
    )
    _add_training(
        commands,
        "grpo",
        _grpo,
        "stage 2: GRPO with vLLM rollout workers, reward workers and a DeepSpeed learner",
        "example: alphadrive grpo debug model.path=runs/warm-up grpo.steps=20 rollout.num_workers=2",
    )
    _add_debug(commands)
    add_plan_parser(commands)
    add_eval_parser(commands)
    add_predict_parser(commands)
    add_score_parser(commands)
    add_export_parser(commands)
    add_run_parsers(commands)
    add_profile_parser(commands)
    add_stack_parser(commands)
    add_doctor_parser(commands)
    return parser


def _add_demo(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "demo",
        help="the main job with an embedded default: no download, no GPU, a quarter of an hour",
        description="Make scenes (cached), SFT, evaluate, GRPO, evaluate; everything under runs/demo.",
        epilog="example: alphadrive demo --seed 1",
    )
    parser.add_argument(
        "--controls",
        action="store_true",
        help="also what the gain is compared with: SFT continued, a random reward, blank and shuffled images",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="of data, training and sampling (default: 0)"
    )
    _add_dry_run(parser)
    parser.set_defaults(run=_demo)


def _add_model(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    model = commands.add_parser("model", help="make the tiny model shipped with the project")
    leaves = model.add_subparsers(dest="model_command", required=True, metavar="COMMAND")
    tiny = leaves.add_parser(
        "tiny",
        help="build and pre-train the 1 M parameter Qwen2-VL",
        description="Make the shipped model again: it learns to describe rendered scenes, never to plan.",
        epilog="example: alphadrive model tiny --out my-tiny-vlm",
    )
    tiny.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the model")
    tiny.add_argument("--seed", type=int, default=0, metavar="S", help="default: 0")
    _add_dry_run(tiny)
    tiny.set_defaults(run=_model_tiny)


def _add_training(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    command: Command,
    help_text: str,
    example: str,
) -> None:
    parser = commands.add_parser(
        name, help=help_text, description=f"{help_text}. {_OVERRIDES}", epilog=example
    )
    _add_config(parser)
    _add_existing(parser)
    _add_dry_run(parser)
    parser.set_defaults(run=command)


def _add_debug(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "debug",
        help="stage 2 in this one process: breakpoints in rewards, loss and loop are hit",
        description=f"The same GRPO loop in one process, without Ray. {_OVERRIDES}",
        epilog="example: python -m pdb -m alphadrive.cli debug configs/debug.yaml grpo.steps=2",
    )
    _add_config(parser)
    _add_existing(parser)
    _add_dry_run(parser)
    parser.set_defaults(run=_debug)


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, or the name of a shipped one")
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", help="override a key, for example grpo.steps=10"
    )


def _add_existing(parser: argparse.ArgumentParser) -> None:
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="go on from the run's newest checkpoint")
    existing.add_argument("--overwrite", action="store_true", help="remove the existing run first")


def _add_dry_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, show the plan, start nothing"
    )


def _demo(args: argparse.Namespace) -> int:
    if args.dry_run:
        return dry_demo(args.seed)
    from alphadrive.demo import run_demo

    run_demo(args)
    return 0


def _model_tiny(args: argparse.Namespace) -> int:
    from alphadrive.tiny.build import run_build

    run_build(args)
    return 0


def _sft(args: argparse.Namespace) -> int:
    from alphadrive.config import load_config

    config = load_config(args.config, args.overrides)
    if args.dry_run:
        return dry_run(config, "sft", resume=args.resume, overwrite=args.overwrite)
    from cluster.launch import run_sft

    return _ended(run_sft(config, resume=args.resume, overwrite=args.overwrite))


def _grpo(args: argparse.Namespace) -> int:
    from alphadrive.config import load_config

    config = load_config(args.config, args.overrides)
    if args.dry_run:
        return dry_run(config, "grpo", resume=args.resume, overwrite=args.overwrite)
    from cluster.launch import run_grpo

    return _ended(run_grpo(config, resume=args.resume, overwrite=args.overwrite))


def _debug(args: argparse.Namespace) -> int:
    from alphadrive.config import load_config

    config = load_config(args.config, args.overrides)
    if args.dry_run:
        return dry_run(config, "debug", resume=args.resume, overwrite=args.overwrite)
    from cluster.debug import run_debug

    return _ended(run_debug(config, resume=args.resume, overwrite=args.overwrite))


def _ended(result: "RunResult") -> int:
    """Write the report of a run that came to its end. `no_signal` is a finding, no failure."""
    from alphadrive.report import write_report

    report = write_report(result.folder)
    print(f"{result.folder}: {result.status}; see {report}")
    return 0


if __name__ == "__main__":
    main()
