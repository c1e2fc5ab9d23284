"""The counts of a dataset as tables on a terminal, and as a page of bar charts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from rich.console import Console
from rich.markup import escape as plain
from rich.table import Table

from alphadrive.actions import PATHS, SPEEDS
from alphadrive.data.stats import SPEED_BIN_MPS, UNREADABLE_PLAN, DatasetStats
from alphadrive.html_page import write_page
from alphadrive.report_charts import bar_chart

_SHOWN_TEXTS = 12
_MAX_BINS = 100


def print_stats(folder: Path, stats: DatasetStats, console: Console | None = None) -> None:
    """Print what a dataset holds: an overview, its words, its plans, its texts."""
    console = console or Console()
    console.print(_overview(folder, stats))
    console.print(_word_table(stats))
    console.print(_plan_table(stats))
    for title, counts in _texts(stats).items():
        table = Table()
        table.add_column(title)
        for name in ("images" if title == "images" else "rows", "share"):
            table.add_column(name, justify="right")
        for label, count in _most(counts):
            table.add_row(plain(label), f"{count:,}", _share(count, stats.num_rows))
        console.print(table)


def write_stats_page(path: Path, folder: Path, stats: DatasetStats) -> None:
    """Write the same as bar charts to a self-contained HTML page. Raises DataError when it cannot."""
    total = stats.num_rows
    plans = [plan for plan, _ in _most(stats.recorded | stats.acceptable, None)]
    words = [*SPEEDS, *PATHS]
    bins = _bins(stats.speed_bins)
    accepted = sorted(stats.num_plans)
    charts = [
        bar_chart("Plans", plans, _both(plans, stats.recorded, stats.acceptable), total),
        bar_chart("Words", words, _both(words, stats.recorded_words, stats.acceptable_words), total),
        bar_chart(
            "Speed, m/s",
            [f"{low} to {low + SPEED_BIN_MPS}" for low in bins],
            {"rows": [stats.speed_bins[low] for low in bins]},
            total,
        ),
        bar_chart(
            "Acceptable plans in a row",
            [str(number) for number in accepted],
            {"rows": [stats.num_plans[number] for number in accepted]},
            total,
        ),
    ]
    for title, counts in _texts(stats).items():
        labels, numbers = zip(*_most(counts), strict=True) if counts else ((), ())
        charts.append(bar_chart(title, labels, {"images" if title == "images" else "rows": numbers}, total))
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in _facts(stats)
    )
    head = f"<h1>{escape(str(folder))}</h1><table>{rows}</table><h2>Counts</h2>"
    write_page(path, f"{folder}: statistics", f"{head}<div class='charts'>{''.join(charts)}</div>")


def _bins(counts: Mapping[int, int]) -> Sequence[int]:
    """All bins from the lowest to the highest; those that occur alone where that would be endless."""
    every = range(min(counts, default=0), max(counts, default=0) + 1, SPEED_BIN_MPS)
    return every if every.stop - every.start <= _MAX_BINS * SPEED_BIN_MPS else sorted(counts)


def _facts(stats: DatasetStats) -> list[tuple[str, str]]:
    def of_rows(count: int) -> str:
        return f"{count:,} ({_share(count, stats.num_rows)})"

    facts = [("rows", f"{stats.num_rows:,}"), ("scenes", f"{stats.num_scenes:,}")]
    if stats.speed_mean_mps is not None:
        facts.append(
            (
                "speed: least, mean, most",
                f"{stats.speed_min_mps:.1f}, {stats.speed_mean_mps:.1f}, {stats.speed_max_mps:.1f} m/s",
            )
        )
    several = sum(count for number, count in stats.num_plans.items() if number > 1)
    return [
        *facts,
        ("with several acceptable plans", of_rows(several)),
        ("with reasoning", of_rows(stats.with_reasoning)),
        ("with waypoints", of_rows(stats.with_waypoints)),
        ("with a teacher's plan", of_rows(stats.with_teacher_plan)),
        ("of these, not an acceptable one", f"{stats.teacher_not_acceptable:,}"),
    ]


def _overview(folder: Path, stats: DatasetStats) -> Table:
    table = Table(title=plain(str(folder)), show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in _facts(stats):
        table.add_row(name, value)
    return table


def _word_table(stats: DatasetStats) -> Table:
    table = Table()
    for name in ("word", "recorded", "share", "acceptable", "share"):
        table.add_column(name, justify="left" if name == "word" else "right")
    for words in (SPEEDS, PATHS):
        for word in words:
            recorded, acceptable = stats.recorded_words[word], stats.acceptable_words[word]
            shares = (_share(count, stats.num_rows) for count in (recorded, acceptable))
            recorded_share, acceptable_share = shares
            table.add_row(word, f"{recorded:,}", recorded_share, f"{acceptable:,}", acceptable_share)
        table.add_section()
    return table


def _plan_table(stats: DatasetStats) -> Table:
    """Recorded plans, a line for each PATH word, a column for each SPEED word."""
    table = Table()
    for name in ("recorded plans", *SPEEDS):
        table.add_column(name, justify="right" if name in SPEEDS else "left")
    for path in PATHS:
        table.add_row(path, *(f"{stats.recorded[f'{speed}, {path}']:,}" for speed in SPEEDS))
    if stats.recorded[UNREADABLE_PLAN]:
        table.add_row(UNREADABLE_PLAN, f"{stats.recorded[UNREADABLE_PLAN]:,}")
    return table


def _texts(stats: DatasetStats) -> dict[str, Counter[str]]:
    return {
        "navigation": stats.navigation,
        "split": stats.splits,
        "source": stats.sources,
        "label rule": stats.label_rules,
        "images": stats.image_sizes,
    }


def _most(counts: Counter[str], shown: int | None = _SHOWN_TEXTS) -> list[tuple[str, int]]:
    """The most frequent texts, ties by name; the rest in one line."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    if shown is None or len(ranked) <= shown:
        return ranked
    rest = ranked[shown:]
    return [*ranked[:shown], (f"{len(rest):,} more", sum(count for _, count in rest))]


def _both(
    labels: Sequence[str], recorded: Mapping[str, int], acceptable: Mapping[str, int]
) -> dict[str, list[int]]:
    return {
        "recorded": [recorded.get(label, 0) for label in labels],
        "acceptable": [acceptable.get(label, 0) for label in labels],
    }


def _share(count: int, total: int) -> str:
    return f"{100 * count / max(1, total):.1f} %"
