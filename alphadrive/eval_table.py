"""What `alphadrive eval` shows on the screen: progress while it runs, one table at the end."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from alphadrive.actions import Plan
from alphadrive.pairs import print_pairs

if TYPE_CHECKING:
    from alphadrive.engine_evaluation import EvalOptions, EvalReport


@contextmanager
def answer_progress(total: int) -> Iterator[Callable[[], None]]:
    """A progress bar on a terminal, nothing elsewhere; yields the function that counts one answer."""
    console = Console(stderr=True)
    columns = (TextColumn("answers"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("answers", total=total)
        yield lambda: progress.advance(task)


def print_eval(
    options: "EvalOptions",
    reports: "list[EvalReport]",
    majority: tuple[Plan, float],
    console: Console | None = None,
) -> None:
    """Print the figures of each image mode, and the scores of every action."""
    console = console or Console()
    for report in reports:
        console.print(_summary_table(options, report, majority))
        console.print(_action_table(report))
        print_pairs(report.greedy.predictions, console)


def _summary_table(options: "EvalOptions", report: "EvalReport", majority: tuple[Plan, float]) -> Table:
    metrics, variety = report.greedy.metrics, report.variety
    table = Table(title=f"{options.model} on {options.data} ({metrics.num_rows} rows, image: {report.image})")
    table.add_column("greedy, strict parse")
    table.add_column("value", justify="right")
    low, high = metrics.planning_accuracy_ci95
    rows: list[tuple[str, float | None]] = [
        ("planning accuracy", metrics.planning_accuracy),
        ("  95 % interval, low", low),
        ("  95 % interval, high", high),
        ("exactly the recorded plan", metrics.exact_match),
        ("macro F1 (speed and path words)", metrics.macro_f1),
        ("invalid answers", metrics.invalid_rate),
        ("missed brake", metrics.missed_brake_rate),
        ("false brake", metrics.false_brake_rate),
        (f"always {majority[0]} would reach", majority[1]),
    ]
    if variety is not None:
        rows += [
            (f"pass@{variety.num_samples} (temperature 1, {variety.num_rows} rows)", variety.pass_at_k),
            ("accuracy of one sample", variety.sample_accuracy),
        ]
    for name, value in rows:
        table.add_row(name, "-" if value is None else f"{100 * value:.1f} %")
    if variety is not None:
        table.add_row(
            "distinct plans a row (acceptable)",
            f"{variety.distinct_plans:.2f} ({variety.distinct_acceptable:.2f})",
        )
    return table


def _action_table(report: "EvalReport") -> Table:
    table = Table()
    for name in ("action", "precision", "recall", "F1", "support", "predicted"):
        table.add_column(name, justify="left" if name == "action" else "right")
    for word, score in report.greedy.metrics.actions.items():
        table.add_row(
            word,
            *(f"{100 * value:.1f}" for value in (score.precision, score.recall, score.f1)),
            str(score.support),
            str(score.num_predicted),
        )
    return table
