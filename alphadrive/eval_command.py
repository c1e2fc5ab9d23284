"""`alphadrive eval`: the arguments, and the way from a model or a file of answers to tables and files.

    eval MODEL DATA                      draw the answers (`alphadrive.engine_evaluation`), then judge them
    eval --predictions FILE.jsonl DATA   judge answers that are there (`alphadrive.predictions`); no engine

What either needs is imported only when the command runs.
"""

import argparse
import asyncio
import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from alphadrive.ablations import SYNTAX, parse_ablations
from alphadrive.engine_arguments import add_engine_arguments, engine_options
from alphadrive.errors import ConfigError

if TYPE_CHECKING:
    from alphadrive.engine_evaluation import EvalOptions
    from alphadrive.eval_report import EvalReport
    from alphadrive.evaluation import Answered

_USAGE = """\
alphadrive eval MODEL DATA [options]
       alphadrive eval --predictions FILE.jsonl DATA [--out DIR] [--seed S]"""


def add_eval_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `eval`; it sets `run`, a function of the parsed arguments."""
    parser = subparsers.add_parser(
        "eval",
        usage=_USAGE,
        help="what the answers of a model, or those in a file, are worth on a dataset",
        description="Answer every row greedily on a vLLM engine, or read answers from a file, and judge them "
        "strictly: docs/evaluation.md defines every figure.",
        epilog="example: alphadrive eval runs/demo data/demo/eval --max-pixels 25088 --samples 8",
    )
    parser.add_argument(
        "operands",
        metavar="MODEL DATA",
        nargs="+",
        help="MODEL: a run, a checkpoint, a model folder, 'tiny', or a hub id; DATA: a folder of shards",
    )
    parser.add_argument(
        "--predictions", type=Path, metavar="FILE", help="judge these answers; no model, no engine"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write eval.json, eval.txt, predictions.jsonl"
    )
    parser.add_argument("--num-rows", type=int, metavar="N", help="only the first N rows")
    parser.add_argument(
        "--samples", type=int, default=0, metavar="K", help="also draw K answers a row: pass@K (default: 0)"
    )
    parser.add_argument(
        "--sample-rows", type=int, metavar="N", help="draw them for the first N rows only (default: all)"
    )
    parser.add_argument(
        "--ablate",
        action="append",
        default=[],
        metavar="FIELD=HOW,…",
        help=f"also answer with one input changed at a time, of {SYNTAX}",
    )
    parser.add_argument(
        "--trajectory",
        action="store_true",
        help="ask for a trajectory too, of a model trained with data.trajectory=true",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, show what it needs, start nothing"
    )
    add_engine_arguments(parser)
    parser.set_defaults(run=functools.partial(run_eval, parser))


def run_eval(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    """Run `alphadrive eval` from parsed arguments."""
    if args.predictions is not None and len(args.operands) == 1:
        _refuse_engine_options(parser, args)
        return _eval_predictions(args, Path(args.operands[0]))
    if args.predictions is None and len(args.operands) == 2:
        return _eval_model(args, args.operands[0], Path(args.operands[1]))
    parser.error(f"got {args.operands}, expected MODEL DATA, or --predictions FILE and DATA")


def _refuse_engine_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    kept = ("command", "verbose", "run", "operands", "predictions", "out", "seed")
    for name, value in vars(args).items():
        if name not in kept and value != parser.get_default(name):
            raise ConfigError(
                f"--{name.replace('_', '-')}: an option for drawing answers, and --predictions draws none; "
                "leave it out"
            )


def _eval_predictions(args: argparse.Namespace, data: Path) -> int:
    from alphadrive.data.parquet import DrivingDataset
    from alphadrive.eval_figures import figures_of
    from alphadrive.eval_report import EvalReport
    from alphadrive.predictions import read_predictions, read_queries

    path: Path = args.predictions
    _prepare(args.out)
    answers = read_predictions(path, read_queries(DrivingDataset(data)))
    report = EvalReport(
        who=str(path),
        data=data,
        decoding="answers from a file, strict parse",
        figures=figures_of(answers, args.seed),
    )
    return _show(args.out, report, answers, {}, source=path)


def _eval_model(args: argparse.Namespace, model: str, data: Path) -> int:
    from alphadrive.data.parquet import DrivingDataset
    from alphadrive.engine_evaluation import EvalOptions, ask_model, check_ablated_lengths
    from alphadrive.eval_figures import compared, figures_of, judged
    from alphadrive.eval_report import EvalReport
    from alphadrive.eval_table import answer_progress
    from alphadrive.plan_command import dry_answers
    from alphadrive.preflight import check_run

    options = EvalOptions(
        engine=replace(engine_options(args, model), trajectory=args.trajectory),
        data=data,
        num_rows=args.num_rows,
        samples=args.samples,
        sample_rows=args.sample_rows,
        ablations=parse_ablations(args.ablate),
    )
    config = options.engine.as_config(data, options.num_rows)
    if args.dry_run:
        checked = check_run(config, "eval")
        dataset = DrivingDataset(data, options.num_rows)
        check_ablated_lengths(options, checked.model_folder, dataset)
        who = f"eval of {model} on {data}"
        return dry_answers(who, config, checked, _num_answers(options, len(dataset)))
    _prepare(args.out)
    check_run(config, "eval")
    num_rows = len(DrivingDataset(data, options.num_rows))
    with answer_progress(_num_answers(options, num_rows)) as on_answer:
        found = asyncio.run(ask_model(options, on_answer))
    before = judged(found.answers)
    report = EvalReport(
        who=model,
        data=data,
        decoding="greedy, strict parse",
        figures=figures_of(found.answers, args.seed),
        seconds=found.seconds,
        ablations={
            str(ablation): compared(before, judged(answers), args.seed)
            for ablation, answers in found.ablated.items()
        },
    )
    return _show(args.out, report, found.answers, {str(name): rows for name, rows in found.ablated.items()})


def _prepare(out: Path | None) -> None:
    from alphadrive.eval_report import prepare_out

    if out is not None:
        prepare_out(out)


def _num_answers(options: "EvalOptions", num_rows: int) -> int:
    sampled = min(num_rows, options.sample_rows or num_rows) if options.samples else 0
    return num_rows * (1 + len(options.ablations)) + sampled


def _show(
    out: Path | None,
    report: "EvalReport",
    answers: "Sequence[Answered]",
    ablated: "Mapping[str, Sequence[Answered]]",
    source: Path | None = None,
) -> int:
    from alphadrive.eval_report import write_eval
    from alphadrive.eval_table import eval_tables

    tables = eval_tables(report)
    print(tables, end="")
    if out is not None:
        write_eval(out, report, tables, answers, ablated, source)
        print(f"wrote {out / 'eval.json'}, eval.txt and predictions.jsonl")
    return 0
