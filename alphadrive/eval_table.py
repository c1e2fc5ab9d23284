"""What `alphadrive eval` shows: progress while it runs, tables at the end, the same in `eval.txt`."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from alphadrive.eval_figures import Compared, EvalFigures
from alphadrive.eval_report import EvalReport
from alphadrive.metrics.pairs import PairCounts
from alphadrive.metrics.planning import ActionScore, PlanningMetrics
from alphadrive.metrics.reasoning import ReasoningMetrics
from alphadrive.metrics.variety import VarietyMetrics

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
        for title, table in _tables(report):
            console.print(title, table, sep="\n", highlight=False, markup=False)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()).rstrip() + "\n"


def _tables(report: EvalReport) -> Iterator[tuple[str, Table]]:
    """Each table with the line that stands above it."""
    figures = report.figures
    planning, samples, released = figures.planning, figures.samples, figures.released
    yield f"{report.who} on {report.data}: {planning.num_rows} rows, {report.decoding}", _summary(figures)
    yield "Per action, one against the rest (%)", _actions(planning.actions)
    yield "Columns of the paper's Table 1, strict parse (accuracy and F1, %)", _paper_columns(planning)
    for name, rows in planning.confusion.items():
        yield f"{name.capitalize()}: rows by credited truth (down) and answer (across)", _confusion(rows)
    if figures.reasoning is not None:
        found = figures.reasoning
        title = f"Reasoning against {found.num_rows} references (x 100); METEOR: {found.meteor_matching}"
        yield title, _reasoning(found)
    if figures.pairs:
        yield "Counterfactual pairs, which differ in one fact", _pairs(figures.pairs)
    if samples is not None:
        variety = samples.variety
        yield (
            f"{variety.num_samples} samples a row, {variety.num_rows} rows",
            _variety(variety),
        )
        yield "One plan out of the samples, same rows", _comparison(samples.answer, samples.choices)
    if report.ablations:
        yield "One input changed", _comparison(planning, report.ablations)
    low, high = released.planning_accuracy_ci95
    yield (
        f"Released rule, an upper bound for comparison with published figures: {released.rule}\n"
        f"accuracy {_percent(released.planning_accuracy)} ({100 * low:.1f} to {100 * high:.1f})",
        _actions(released.actions),
    )


def _summary(figures: EvalFigures) -> Table:
    metrics = figures.planning
    table = _table("", "value")
    low, high = metrics.planning_accuracy_ci95
    interval = f"({100 * low:.1f} to {100 * high:.1f})"
    table.add_row("planning accuracy (95 % interval)", f"{_percent(metrics.planning_accuracy)} {interval}")
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
        table.add_row(name, _percent(value))
    table.add_row("severity-weighted cost (0 to 1)", f"{metrics.severity_cost:.4f}")
    if figures.trajectory is not None:
        stated, ade_m = figures.trajectory.stated_share, figures.trajectory.ade_m
        error = "-" if ade_m is None else f"{ade_m:.2f} m"
        table.add_row("trajectory stated; its ADE to 3 s", f"{_percent(stated)}; {error}")
    return table


def _actions(scores: Mapping[str, ActionScore]) -> Table:
    table = _table("action", "precision", "recall", "F1", "support", "predicted")
    for word, score in scores.items():
        rates = (_hundredths(value) for value in (score.precision, score.recall, score.f1))
        table.add_row(word, *rates, str(score.support), str(score.num_predicted))
    return table


def _paper_columns(metrics: PlanningMetrics) -> Table:
    table = _table("accuracy", *metrics.paper_columns)
    f1s = (_hundredths(score.f1) for score in metrics.paper_columns.values())
    table.add_row(_hundredths(metrics.planning_accuracy), *f1s)
    return table


def _confusion(rows: Mapping[str, Mapping[str, int]]) -> Table:
    answers = list(next(iter(rows.values())))
    table = _table("truth", *answers)
    for truth, counts in rows.items():
        table.add_row(truth, *(str(counts[answer]) for answer in answers))
    return table


def _reasoning(metrics: ReasoningMetrics) -> Table:
    table = _table("BLEU-4", "CIDEr-D", "METEOR")
    table.add_row(*(_hundredths(value) for value in (metrics.bleu4, metrics.cider_d, metrics.meteor)))
    return table


def _pairs(pairs: Mapping[str, PairCounts]) -> Table:
    table = _table("fact", "pairs", "both right", "one", "neither")
    for fact, counts in pairs.items():
        shares = (_percent(count / counts.num_pairs) for count in (counts.both, counts.one, counts.neither))
        table.add_row(fact.replace("_", " "), str(counts.num_pairs), *shares)
    return table


def _variety(variety: VarietyMetrics) -> Table:
    table = _table("", "value")
    for k, share in variety.pass_at.items():
        table.add_row("pass@1, the accuracy of one sample" if k == 1 else f"pass@{k}", _percent(share))
    distinct = f"{variety.distinct_plans:.2f} ({_percent(variety.distinct_share)})"
    table.add_row("distinct valid plans a row (share of K)", distinct)
    table.add_row("distinct acceptable plans a row", f"{variety.distinct_acceptable:.2f}")
    table.add_row("entropy of the plans, bits", f"{variety.entropy_bits:.2f}")
    table.add_row("invalid samples", _percent(variety.invalid_rate))
    return table


def _comparison(before: PlanningMetrics, others: Mapping[str, Compared]) -> Table:
    table = _table("", "accuracy", "difference (95 % interval)", "missed brake", "false brake", "cost")
    table.add_row("the answer", _percent(before.planning_accuracy), "", *_risks(before))
    for name, other in others.items():
        low, high = other.gain_ci95
        gain = f"{100 * other.gain:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
        accuracy = _percent(other.metrics.planning_accuracy)
        table.add_row(name.replace("_", " "), accuracy, gain, *_risks(other.metrics))
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _risks(metrics: PlanningMetrics) -> Sequence[str]:
    brakes = _percent(metrics.missed_brake_rate), _percent(metrics.false_brake_rate)
    return *brakes, f"{metrics.severity_cost:.4f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _hundredths(share: float) -> str:
    return f"{100 * share:.1f}"
