"""`report.html`: one self-contained page about a run, drawn from its folder.

Figures (`summary.json`), learning curves and timings (`metrics.jsonl`), and sample rollouts with every
reward term (`rollouts/*.parquet`), with the images where the dataset is still there. A folder that
holds runs (`runs/demo/` with `sft/` and `grpo/`) gets one page with a section for each. Inline CSS
and SVG only: the page can be sent to somebody as it is.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from alphadrive.atomic import write_text
from alphadrive.config import load_config
from alphadrive.data.fetching import local_folder
from alphadrive.data.parquet import DrivingDataset
from alphadrive.errors import InputError, RunFolderError
from alphadrive.html_page import html_page, image_tag
from alphadrive.report_charts import Series, line_chart, number
from alphadrive.run_folder import read_metrics

CHARTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Planning accuracy on held-out rows", ("val/planning_accuracy", "val/exact_match")),
    ("Invalid answers and missed brakes", ("val/invalid_rate", "val/missed_brake_rate")),
    ("Reward, mean of all groups drawn", ("critic/score/mean",)),
    ("Reward terms", ("reward/*/mean",)),
    ("Groups without signal", ("frac_reward_zero_std",)),
    ("SFT loss", ("sft/loss",)),
    ("Loss", ("actor/loss", "actor/pg_loss", "actor/kl_loss")),
    ("Entropy", ("actor/entropy", "sft/entropy")),
    ("Clipped share and KL of the update", ("actor/pg_clipfrac", "actor/ppo_kl")),
    ("Gradient norm", ("actor/grad_norm", "sft/grad_norm")),
    ("Policy lag", ("training/policy_lag/mean", "training/policy_lag/max")),
    ("Engine and learner disagree by", ("training/rollout_probs_diff_mean",)),
    ("Answer length, tokens", ("response_length/mean", "response_length/max")),
    ("Samples a second", ("perf/samples_per_s",)),
)
_NUM_EARLY, _NUM_LATE = 2, 4
_IMAGE_WIDTH = 360

Line = Mapping[str, float | None]
Row = dict[str, Any]


def write_report(folder: Path) -> Path:
    """Write `report.html` into a run's folder and return its path.

    Parts that are not there are left out and named. Raises RunFolderError when there is no such folder.
    """
    if not folder.is_dir():
        raise RunFolderError(f"{folder}: no such run folder")
    runs = [path for path in [folder, *sorted(folder.iterdir())] if (path / "metrics.jsonl").is_file()]
    body = [f"<h1>{escape(folder.resolve().name)}</h1>", _figures(folder)]
    for run in runs:
        if run != folder:
            body.append(f"<h1>{escape(run.name)}</h1>")
        lines = read_metrics(run / "metrics.jsonl")
        body += [_curves(lines), _timings(lines), _rollouts(run)]
    if not runs:
        body.append('<p class="note">No metrics.jsonl: no step has been recorded.</p>')
    page = html_page(folder.resolve().name, "".join(body))
    write_text(folder / "report.html", page)
    return folder / "report.html"


def _figures(folder: Path) -> str:
    path = folder / "summary.json"
    if not path.is_file():
        return '<p class="note">No summary.json: the run has not ended.</p>'
    rows = _flattened(json.loads(path.read_text(encoding="utf-8")))
    cells = "".join(f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>" for key, value in rows)
    return f'<h2>Figures</h2><table class="figures">{cells}</table>'


def _flattened(tree: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, value in tree.items():
        if isinstance(value, dict):
            rows += _flattened(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", _shown(value)))
    return rows


def _shown(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return "-" if value is None else str(value).lower()
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, list):
        return (
            " to ".join(_shown(item) for item in value) if len(value) == 2 else ", ".join(map(_shown, value))
        )
    return str(value)


def _curves(lines: Sequence[Line]) -> str:
    names = list(dict.fromkeys(name for line in lines for name in line))
    charts = []
    for title, patterns in CHARTS:
        chosen = [name for pattern in patterns for name in names if _matches(name, pattern)]
        series = [line for line in (_series(name, lines) for name in chosen) if line.steps]
        if series:
            charts.append(line_chart(title, series))
    if not charts:
        return '<p class="note">No learning curves: no known metric has been recorded.</p>'
    return f'<h2>Learning curves</h2><div class="charts">{"".join(charts)}</div>'


def _matches(name: str, pattern: str) -> bool:
    before, star, after = pattern.partition("*")
    return name.startswith(before) and name.endswith(after) if star else name == pattern


def _series(name: str, lines: Sequence[Line]) -> Series:
    points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    return Series(
        name=name,
        steps=tuple(float(step or 0) for step, _ in points),
        values=tuple(float(value) for _, value in points if value is not None),
    )


def _timings(lines: Sequence[Line]) -> str:
    rows = []
    names = sorted({name for line in lines for name in line if name.startswith("timing_s/")})
    for name in names:
        values = sorted(_series(name, lines).values)
        if values:
            figures = (statistics.median(values), values[-1], sum(values))
            cells = "".join(f"<td>{number(figure)}</td>" for figure in figures)
            rows.append(f"<tr><th>{escape(name.removeprefix('timing_s/'))}</th>{cells}</tr>")
    if not rows:
        return ""
    head = "<tr><th>seconds</th><th>median a step</th><th>longest</th><th>in all</th></tr>"
    return f"<h2>Where the time went</h2><table>{head}{''.join(rows)}</table>"


def _rollouts(run: Path) -> str:
    files = sorted((run / "rollouts").glob("*.parquet"), key=lambda path: (path.stat().st_mtime, path.name))
    if not files:
        return ""
    try:
        early = pq.read_table(files[0]).slice(0, 64).to_pylist()
        late = pq.read_table(files[-1]).to_pylist()[-64:]
    except (pa.ArrowException, OSError) as error:
        return f'<p class="note">The rollouts cannot be read: {escape(str(error))}</p>'
    images = _Images(run)
    chosen = [*_telling(early, _NUM_EARLY), *_telling(late, _NUM_LATE)]
    unique = {row["ticket"]: row for row in sorted(chosen, key=lambda row: row["ticket"])}
    groups = "".join(_group(row, images.tag(row["row"])) for row in unique.values())
    return (
        "<h2>Sample rollouts</h2>"
        '<p class="note">From the first and the last part written; groups whose rewards differ most.</p>'
        f"{groups}"
    )


def _telling(rows: list[Row], count: int) -> list[Row]:
    return sorted(rows, key=lambda row: statistics.pstdev(row["rewards"]), reverse=True)[:count]


def _group(row: Row, image: str) -> str:
    terms = dict(row["reward_terms"])
    head = "".join(f"<th>{escape(name)}</th>" for name in (*terms, "reward", "advantage"))
    answers = []
    order = sorted(range(len(row["texts"])), key=lambda index: -row["rewards"][index])
    for index in order:
        values = [*(terms[name][index] for name in terms), row["rewards"][index], row["advantages"][index]]
        cells = "".join(f"<td>{_shown(value)}</td>" for value in values)
        answers.append(f"<tr><td class='text'>{escape(row['texts'][index])}</td>{cells}</tr>")
    acceptable = " or ".join(escape(plan) for plan in row["plans"])
    return (
        f'<section class="group"><div>{image}<p><b>{escape(str(row["query_id"]))}</b><br>'
        f"{number(row['speed_mps'])} m/s, “{escape(str(row['navigation']))}”<br>acceptable: {acceptable}<br>"
        f"weights {escape(str(row['weight_version']))}, ticket {row['ticket']}</p></div>"
        f"<table><tr><th class='text'>answer</th>{head}</tr>{''.join(answers)}</table></section>"
    )


class _Images:
    """The pictures of a run's training rows, or a word on why there are none."""

    def __init__(self, run: Path) -> None:
        self._dataset: DrivingDataset | None = None
        self._problem = ""
        try:
            self._dataset = DrivingDataset(local_folder(load_config(str(run / "config.yaml")).data.train))
        except InputError as error:
            self._problem = str(error)

    def tag(self, row: int) -> str:
        """An `<img>` with the picture as a data URI."""
        if self._dataset is None:
            return f'<p class="note">No image: {escape(self._problem)}</p>'
        try:
            image = self._dataset.image(row)
        except (InputError, IndexError) as error:
            return f'<p class="note">No image: {escape(str(error))}</p>'
        return image_tag(image, _IMAGE_WIDTH)
