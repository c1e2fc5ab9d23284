"""`alphadrive predict MODEL IMAGE`: one image and situation in, reasoning and plan out.

The image becomes a dataset of one row in a temporary folder, so that it is checked, asked about and
answered exactly as a row of an evaluation is.
"""

import argparse
import asyncio
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from alphadrive.engine_arguments import add_engine_arguments, engine_options
from alphadrive.errors import DataError

if TYPE_CHECKING:
    from alphadrive.actions import Plan
    from alphadrive.data.records import DrivingRecord
    from alphadrive.evaluation import Answered

_PLACEHOLDER_PLAN = "KEEP, STRAIGHT"
"""Every row of a dataset has a plan; nothing here reads this one."""


def add_predict_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `predict`; it sets `run`, a function of the parsed arguments."""
    parser = subparsers.add_parser(
        "predict",
        help="reasoning and plan for one image",
        description="Ask a model on a vLLM engine what to do in the next three seconds.",
        epilog="example: alphadrive predict runs/demo front.png --speed 8.3 --navigation straight",
    )
    parser.add_argument(
        "model", metavar="MODEL", help="a run, a checkpoint, a model folder, 'tiny', or a hub id"
    )
    parser.add_argument("image", metavar="IMAGE", type=Path, help="a front camera image: JPEG, PNG or WebP")
    parser.add_argument("--speed", type=float, required=True, metavar="V", help="current speed in m/s")
    parser.add_argument(
        "--navigation", required=True, metavar="TEXT", help="the route command, such as 'turn left in 50 m'"
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=0,
        metavar="K",
        help="also draw K answers, count their plans, choose one of them (default: 0)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, show what it needs, start nothing"
    )
    add_engine_arguments(parser)
    parser.set_defaults(run=run_predict)


def run_predict(args: argparse.Namespace) -> int:
    """Run `alphadrive predict` from parsed arguments."""
    from alphadrive.data.parquet import write_records
    from alphadrive.engine_evaluation import EvalOptions, ask_model
    from alphadrive.model_folder import special_tokens_of
    from alphadrive.model_source import model_folder_of
    from alphadrive.plan_command import dry_answers
    from alphadrive.preflight import check_run

    special_tokens = special_tokens_of(model_folder_of(args.model, args.revision))
    record = query_record(args.image, args.speed, args.navigation, special_tokens)
    engine = engine_options(args, args.model)
    with tempfile.TemporaryDirectory(prefix="alphadrive-predict-") as scratch:
        data = Path(scratch) / "data"
        options = EvalOptions(engine=engine, data=data, samples=args.samples)
        write_records([record], data)
        config = engine.as_config(data)
        checked = check_run(config, "eval", remember=False)
        if args.dry_run:
            who = f"predict by {args.model} on {args.image}"
            return dry_answers(who, config, checked, 1 + args.samples)
        answered = asyncio.run(ask_model(options)).answers[0]
    prediction = prediction_of(answered)
    print(json.dumps(asdict(prediction)) if args.json else prediction)
    return 0


def query_record(
    path: Path, speed_mps: float, navigation: str, special_tokens: tuple[str, ...]
) -> "DrivingRecord":
    """The image and its situation as a row. Raises DataError with everything that is wrong with them."""
    from alphadrive.data.checks import FRONT_CAMERA, record_problems
    from alphadrive.data.images import read_header
    from alphadrive.data.paths import read_file_under
    from alphadrive.data.records import DrivingRecord, ImageRecord

    try:
        file = path.resolve()
        data = read_file_under(file.parent, file.name)
        header = read_header(data)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    record = DrivingRecord(
        query_id=path.name,
        scene_id=path.name,
        time_s=0.0,
        split="predict",
        images=(
            ImageRecord(camera=FRONT_CAMERA, dt_s=0.0, data=data, width=header.width, height=header.height),
        ),
        speed_mps=speed_mps,
        navigation=navigation,
        plans=(_PLACEHOLDER_PLAN,),
        source="predict",
        label_rule="none",
    )
    if problems := record_problems(record, special_tokens):
        raise DataError("\n".join(_as_asked(problem, path) for problem in problems))
    return record


def _as_asked(problem: str, path: Path) -> str:
    """A problem of a row in the words of the command line."""
    names = {"speed_mps": "--speed", "navigation": "--navigation", "images[0].bytes": str(path)}
    name, _, words = problem.partition(":")
    return f"{names.get(name, name)}:{words}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanCount:
    """A sampled plan, how often it was drawn, and its expected cost if the samples are to be believed."""

    plan: str
    count: int
    expected_cost: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledPlans:
    """K sampled answers: their valid plans, the most frequent first, and the plan that each rule of
    `alphadrive.metrics.choice` takes (None where no sample is valid)."""

    num_samples: int
    plans: tuple[PlanCount, ...]
    majority_vote: str | None
    risk_averse: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a model said about one image, greedily. `plan` is None where the answer cannot be read."""

    reasoning: str
    plan: str | None
    text: str
    samples: SampledPlans | None

    def __str__(self) -> str:
        lines = [f"reasoning  {self.reasoning or '-'}"]
        lines.append(f"plan       {self.plan or f'none that can be read in {self.text!r}'}")
        if self.samples is not None:
            drawn = self.samples
            lines.append(f"{drawn.num_samples} samples:")
            lines += [
                f"  {one.count:>4} x {one.plan:<24} expected cost {one.expected_cost:.3f}"
                for one in drawn.plans
            ]
            if invalid := drawn.num_samples - sum(one.count for one in drawn.plans):
                lines.append(f"  {invalid:>4} x invalid")
            lines.append(f"majority vote  {drawn.majority_vote or '-'}")
            lines.append(f"risk-averse    {drawn.risk_averse or '-'}")
        return "\n".join(lines)


def prediction_of(answered: "Answered") -> Prediction:
    """The greedy answer and the samples of one query, read strictly."""
    from alphadrive.actions import parse_answer, reasoning_of

    return Prediction(
        reasoning=reasoning_of(answered.text),
        plan=_written(parse_answer(answered.text)),
        text=answered.text,
        samples=_sampled([parse_answer(text) for text in answered.samples]),
    )


def _sampled(plans: "Sequence[Plan | None]") -> SampledPlans | None:
    from alphadrive.metrics.choice import expected_cost, majority_vote, risk_averse

    if not plans:
        return None
    counts = Counter(plan for plan in plans if plan is not None)
    return SampledPlans(
        num_samples=len(plans),
        plans=tuple(
            PlanCount(plan=str(plan), count=count, expected_cost=expected_cost(plan, plans))
            for plan, count in counts.most_common()
        ),
        majority_vote=_written(majority_vote(plans)),
        risk_averse=_written(risk_averse(plans)),
    )


def _written(plan: "Plan | None") -> str | None:
    return None if plan is None else str(plan)
