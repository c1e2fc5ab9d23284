"""`alphadrive score FILE.jsonl`: the rewards of recorded groups, offline.

    {"solution": "<answer> KEEP, STRAIGHT </answer>", "completions": ["…", "…"]}       one group a line in
    {"rewards": [{"speed": …, "path": …, "format": …, "total": …}, …], "advantages": […]}    and a line out

Every line is read and checked, then everything is scored, then written: bad input writes nothing. The
rewards themselves are in the package `rewards`, imported only when the command runs.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alphadrive.errors import DataError, RewardError
from alphadrive.reward_names import VARIANTS
from alphadrive.types import Completion, DrivingQuery, RewardBreakdown

_EXAMPLE = """\
examples:
  alphadrive score groups.jsonl
  alphadrive score --variant released --summary groups.jsonl
  alphadrive score groups.jsonl rewards.weights.my_rewards.py:smooth=0.5
"""


def add_score_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `score`; it sets `run`, a function of the parsed arguments."""
    parser = subparsers.add_parser(
        "score",
        help="rewards and advantages of recorded groups, offline",
        description="Score groups of completions: JSON lines with `solution` and `completions` in, one line "
        "of rewards and advantages a group out.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE.jsonl", help="one group a line; - reads standard input")
    parser.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        help="a key of the configuration, mostly rewards.*; grpo.loss chooses the advantages",
    )
    parser.add_argument("--variant", choices=VARIANTS, help="default: strict, or rewards.variant where given")
    parser.add_argument(
        "--summary", action="store_true", help="statistics of every term over all groups instead of the lines"
    )
    parser.add_argument("--dry-run", action="store_true", help="read and check everything, score nothing")
    parser.set_defaults(run=run_score)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRow:
    """One line of the input. `solutions` as written: plans, or answers with their tags."""

    solutions: tuple[str, ...]
    completions: tuple[Completion, ...]
    query: DrivingQuery


def run_score(args: argparse.Namespace) -> int:
    """Run `alphadrive score` from parsed arguments."""
    from alphadrive.config import default_config
    from rewards.advantage import group_advantages
    from rewards.further import load_terms
    from rewards.score import score_completions

    config = default_config([*args.overrides, *([f"rewards.variant={args.variant}"] if args.variant else [])])
    variant = config.rewards.variant
    further = load_terms(config.rewards, Path.cwd())
    rows = read_rows(args.file, needs_plans=variant != "released")
    if args.dry_run:
        num_completions = sum(len(row.completions) for row in rows)
        print(f"{args.file}: {len(rows)} groups of {num_completions} completions in all, valid (not scored)")
        return 0
    groups: list[tuple[RewardBreakdown, ...]] = []
    for row in rows:
        noise_key = f"{config.seed}/{row.query.query_id}"
        try:
            groups.append(
                score_completions(
                    row.completions,
                    row.solutions,
                    row.query,
                    variant=variant,
                    noise_key=noise_key,
                    further=further,
                )
            )
        except RewardError as error:
            raise RewardError(f"{args.file}: {error}; nothing was written") from error
    if args.summary:
        print("\n".join(summary_lines(groups)))
        return 0
    for rewards in groups:
        shown = [{**reward.terms, "total": reward.total} for reward in rewards]
        totals = [reward.total for reward in rewards]
        advantages = group_advantages(totals, config.grpo.advantage_estimator)
        print(json.dumps({"rewards": shown, "advantages": advantages}))
    return 0


def read_rows(name: str, needs_plans: bool) -> list[ScoreRow]:
    """All groups of a file, or of standard input for `-`. Blank lines are left out.

    `needs_plans` refuses solutions that are no plan (the released rewards take any text). Raises
    DataError with every problem, as `file: row N: field: got, expected`.
    """
    from alphadrive.data.validate import raise_problems

    rows: list[ScoreRow] = []
    problems: list[str] = []
    for number, line in enumerate(_lines(name)):
        if not line.strip():
            continue
        found: list[str] = []
        row = _row_of(line, number, needs_plans, found)
        problems += [f"{name}: row {number}: {problem}" for problem in found]
        if row is not None:
            rows.append(row)
    raise_problems(problems, f"{name}, rows counted from 0")
    if not rows:
        raise DataError(f"{name}: holds no group, expected one JSON object a line")
    return rows


def _lines(name: str) -> Iterator[str]:
    try:
        if name == "-":
            yield from sys.stdin
        else:
            with open(name, encoding="utf-8-sig") as stream:
                yield from stream
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror}; expected a file of JSON lines") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: not UTF-8 text: {error}") from error


def _row_of(line: str, number: int, needs_plans: bool, problems: list[str]) -> ScoreRow | None:
    """The group of one line, or None with what is wrong added to `problems`."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        problems.append(f"no valid JSON: {error}")
        return None
    if not isinstance(values, dict):
        problems.append(f"got {type(values).__name__}, expected an object with solution and completions")
        return None
    given = values.get("solution")
    solutions = _texts("solution", [given] if isinstance(given, str) else given, problems)
    texts = _texts("completions", values.get("completions"), problems)
    query = _query_of(values, number, solutions, problems)
    if needs_plans:
        problems += _solution_problems(solutions)
    completions = tuple(
        Completion(text=text, token_ids=(), rollout_logprobs=(), finish_reason="stop", weight_versions=())
        for text in texts
    )
    return None if problems else ScoreRow(solutions=solutions, completions=completions, query=query)


def _texts(field: str, values: Any, problems: list[str]) -> tuple[str, ...]:
    if not isinstance(values, list) or not values:
        what = "a text or a list of texts" if field == "solution" else "a list of one text or more"
        problems.append(f"{field}: got {_shown(values)}, expected {what}")
        return ()
    wrong = [index for index, value in enumerate(values) if not isinstance(value, str)]
    problems += [f"{field}[{index}]: got {_shown(values[index])}, expected a text" for index in wrong]
    return () if wrong else tuple(values)


def _solution_problems(solutions: Sequence[str]) -> list[str]:
    from rewards.score import read_solution

    return [
        f"solution: got {_shown(text)}, expected '<answer> SPEED, PATH </answer>' or 'SPEED, PATH'"
        for text in solutions
        if read_solution(text) is None
    ]


def _query_of(
    values: dict[str, Any], number: int, solutions: tuple[str, ...], problems: list[str]
) -> DrivingQuery:
    """The situation that further terms see; all of it may be left out of a line."""
    query_id, navigation = values.get("query_id", f"row {number}"), values.get("navigation", "")
    for field, text in (("query_id", query_id), ("navigation", navigation)):
        if not isinstance(text, str):
            problems.append(f"{field}: got {_shown(text)}, expected a text")
    speed = values.get("speed_mps", 0.0)
    if not _is_number(speed):
        problems.append(f"speed_mps: got {_shown(speed)}, expected a number of m/s")
        speed = 0.0
    waypoints = values.get("waypoints")
    if waypoints is not None and not _are_points(waypoints):
        problems.append(f"waypoints: got {_shown(waypoints)}, expected a list of [x, y] in metres")
        waypoints = None
    return DrivingQuery(
        query_id=str(query_id),
        row=number,
        speed_mps=float(speed),
        navigation=str(navigation),
        plans=solutions,
        waypoints=None if waypoints is None else tuple((float(x), float(y)) for x, y in waypoints),
    )


def _are_points(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(point, list) and len(point) == 2 and all(map(_is_number, point)) for point in values
    )


def _is_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond the range of float
        return False


def _shown(value: Any) -> str:
    return "nothing" if value is None else f"{value!r:.80}"


def summary_lines(groups: Sequence[tuple[RewardBreakdown, ...]]) -> list[str]:
    """A table: mean, standard deviation, smallest and largest value of every term, and how many groups
    have rewards that differ (the others teach nothing)."""
    columns: dict[str, list[float]] = {}
    for reward in (reward for rewards in groups for reward in rewards):
        for name, value in [*reward.terms.items(), ("total", reward.total)]:
            columns.setdefault(name, []).append(value)
    num = len(columns["total"])
    num_differing = sum(len({reward.total for reward in rewards}) > 1 for rewards in groups)
    width = max(map(len, columns))
    lines = [
        f"{len(groups)} groups, {num} completions; rewards differ in {num_differing} groups",
        f"{'term':<{width}}{'mean':>10}{'std':>10}{'min':>10}{'max':>10}",
    ]
    for name, values in columns.items():
        figures = (statistics.fmean(values), statistics.pstdev(values), min(values), max(values))
        lines.append(f"{name:<{width}}" + "".join(f"{value:>10.4f}" for value in figures))
    return lines
