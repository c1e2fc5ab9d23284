"""What `alphadrive eval` shows: progress while it runs, tables at the end, the same in `eval.txt`."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from alphadrive.eval_figures import Compared, EvalFigures, SampleFigures
from alphadrive.eval_report import EvalReport
from alphadrive.metrics.planning import ActionScore, PlanningMetrics
from alphadrive.metrics.reasoning import ReasoningMetrics
from alphadrive.metrics.released import ReleasedMetrics

_WIDTH = 100


@contextmanager
def answer_progress(total: int) -> Iterator[Callable[[], None]]:
    """A progress bar on a terminal, nothing elsewhere; yields the function that counts one answer."""
    console = Console(stderr=True)
    columns = (TextColumn("answers"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("answers", total=total)
        yield lambda: progress.advance(task)


def eval_tables(report: EvalReport) -> str:
    """All tables of a report as plain text."""
    console = Console(file=io.StringIO(), width=_WIDTH)
    with console.capture() as capture:
        for table in _tables(report):
            console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def _tables(report: EvalReport) -> Iterator[Table]:
    figures = report.figures
    planning = figures.planning
    yield _summary(report)
    yield _actions("per action (one against the rest, in %)", planning.actions)
    yield _paper_columns(planning)
    for name, rows in planning.confusion.items():
        yield _confusion(name, rows)
    if figures.reasoning is not None:
        yield _reasoning(figures.reasoning)
    if figures.samples is not None:
        yield _variety(figures.samples)
        yield _comparison(
            "one plan out of K, on the rows with samples", figures.samples.answer, figures.samples.choices
        )
    if report.ablations:
        yield _comparison("one input changed", planning, report.ablations)
    yield _released(figures.released)


def _summary(report: EvalReport) -> Table:
    figures: EvalFigures = report.figures
    metrics = figures.planning
    table = _table(f"{report.who} on {report.data}: {metrics.num_rows} rows", report.decoding, "value")
    table.add_row("planning accuracy (95 % interval)", _with_interval(metrics))
    for name, value in (
        (f"always {figures.majority[0]} would reach", figures.majority[1]),
        ("exactly the recorded plan", metrics.exact_match),
        ("speed word right", metrics.speed_accuracy),
        ("path word right", metrics.path_accuracy),
        ("macro F1: all words", metrics.macro_f1),
        ("macro F1: speed words", metrics.speed_macro_f1),
        ("macro F1: path words", metrics.path_macro_f1),
        ("invalid answers", metrics.invalid_rate),
        ("missed brake", metrics.missed_brake_rate),
        ("false brake", metrics.false_brake_rate),
        ("turn or change to the wrong side", metrics.wrong_side_rate),
    ):
        table.add_row(name, percent(value))
    table.add_row("severity-weighted cost (0 to 1)", f"{metrics.severity_cost:.4f}")
    return table


def _actions(title: str, scores: Mapping[str, ActionScore]) -> Table:
    table = _table(title, "action", "precision", "recall", "F1", "support", "predicted")
    for word, score in scores.items():
        rates = (_hundredths(value) for value in (score.precision, score.recall, score.f1))
        table.add_row(word, *rates, str(score.support), str(score.num_predicted))
    return table


def _paper_columns(metrics: PlanningMetrics) -> Table:
    table = _table(
        "columns of the paper's Table 1, strict parse (F1, in %)", "accuracy", *metrics.paper_columns
    )
    f1s = (_hundredths(score.f1) for score in metrics.paper_columns.values())
    table.add_row(_hundredths(metrics.planning_accuracy), *f1s)
    return table


def _confusion(name: str, rows: Mapping[str, Mapping[str, int]]) -> Table:
    answers = list(next(iter(rows.values())))
    heads = [answer.replace("LEFT_", "L_").replace("RIGHT_", "R_") for answer in answers]
    table = _table(f"{name}: rows by credited truth (down) and answer (across)", "truth", *heads)
    for truth, counts in rows.items():
        table.add_row(truth, *(str(counts[answer]) for answer in answers))
    return table


def _reasoning(metrics: ReasoningMetrics) -> Table:
    table = _table(
        f"reasoning against the reference of {metrics.num_rows} rows (x 100)", "BLEU-4", "CIDEr-D", "METEOR"
    )
    table.add_row(*(_hundredths(value) for value in (metrics.bleu4, metrics.cider_d, metrics.meteor)))
    table.caption = f"METEOR: {metrics.meteor_matching}"
    return table


def _variety(figures: SampleFigures) -> Table:
    variety = figures.variety
    title = f"{variety.num_samples} samples a row, {variety.num_rows} rows"
    table = _table(title, "samples", "value")
    for k, share in variety.pass_at.items():
        name = "pass@1 (accuracy of one sample)" if k == 1 else f"pass@{k}"
        table.add_row(name, percent(share))
    table.add_row("invalid samples", percent(variety.invalid_rate))
    table.add_row(
        "distinct valid plans a row (share of K)",
        f"{variety.distinct_plans:.2f} ({percent(variety.distinct_share)})",
    )
    table.add_row("distinct acceptable plans a row", f"{variety.distinct_acceptable:.2f}")
    table.add_row("entropy of the plans, bits", f"{variety.entropy_bits:.2f}")
    return table


def _comparison(title: str, before: PlanningMetrics, others: Mapping[str, Compared]) -> Table:
    table = _table(title, "", "accuracy", "difference", "95 % interval", "missed brake", "cost")
    table.add_row("the answer itself", percent(before.planning_accuracy), "", "", *_risks(before))
    for name, other in others.items():
        low, high = other.gain_ci95
        table.add_row(
            name.replace("_", " "),
            percent(other.metrics.planning_accuracy),
            f"{100 * other.gain:+.1f}",
            f"{100 * low:+.1f} to {100 * high:+.1f}",
            *_risks(other.metrics),
        )
    return table


def _released(metrics: ReleasedMetrics) -> Table:
    table = _actions(
        f"released rule: accuracy {percent(metrics.planning_accuracy)}, an upper bound "
        "(for published figures only)",
        metrics.actions,
    )
    table.caption = metrics.rule
    return table


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _risks(metrics: PlanningMetrics) -> Sequence[str]:
    return percent(metrics.missed_brake_rate), f"{metrics.severity_cost:.4f}"


def _with_interval(metrics: PlanningMetrics) -> str:
    low, high = metrics.planning_accuracy_ci95
    return f"{percent(metrics.planning_accuracy)} ({100 * low:.1f} to {100 * high:.1f})"


def percent(share: float | None) -> str:
    """A share for people: `78.3 %`, or `-` where there is none."""
    return "-" if share is None else f"{100 * share:.1f} %"


def _hundredths(share: float) -> str:
    return f"{100 * share:.1f}"
