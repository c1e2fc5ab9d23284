"""Line and bar charts as inline SVG, for `alphadrive.report` and `alphadrive data stats`. No script, no
external font, no dependency."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 380, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 10, 22
_SMOOTH_ABOVE = 40
_BAR, _BAR_GAP, _BAR_LEFT, _BAR_RIGHT = 12, 6, 160, 92
_LABEL_LETTERS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line of a chart: finite `values` at `steps`, both of one length."""

    name: str
    steps: tuple[float, ...]
    values: tuple[float, ...]


def number(value: float) -> str:
    """A number for people: four significant digits, thousands separated, no trailing zeros.

    >>> number(12345.678), number(0.30000004), number(1e-06)
    ('12,346', '0.3', '1e-06')
    """
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def line_chart(title: str, series: Sequence[Series]) -> str:
    """A `<figure>` with a line for each series and a legend that states the last value of each.

    Long series are drawn pale, with their running mean over a twentieth of the steps on top;
    not so a maximum (`…/max`), whose mean means nothing.
    """
    steps = [step for line in series for step in line.steps]
    values = [value for line in series for value in line.values]
    low, high = _padded(min(values), max(values))
    first, last = min(steps), max(steps)

    def x(step: float) -> float:
        share = (step - first) / (last - first) if last > first else 0.5
        return _LEFT + share * (WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return HEIGHT - _BOTTOM - (value - low) / (high - low) * (HEIGHT - _TOP - _BOTTOM)

    parts = [_grid(low, high, first, last, y)]
    for index, line in enumerate(series):
        points = [(x(step), y(value)) for step, value in zip(line.steps, line.values, strict=True)]
        if len(points) > _SMOOTH_ABOVE and not line.name.endswith("/max"):
            parts.append(_line(points, f"c{index % 6} pale"))
            smooth = _running_mean(line.values, max(2, len(points) // 20))
            points = [(x(step), y(value)) for step, value in zip(line.steps, smooth, strict=True)]
        parts.append(_line(points, f"c{index % 6}"))
    legend = "".join(
        f'<span class="c{index % 6}">{escape(line.name)} <b>{number(line.values[-1])}</b></span>'
        for index, line in enumerate(series)
    )
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title, quote=True)}">'
        f'{"".join(parts)}</svg><div class="legend">{legend}</div></figure>'
    )


def bar_chart(title: str, labels: Sequence[str], counts: Mapping[str, Sequence[int]], total: int) -> str:
    """A `<figure>` with a horizontal bar for each label and each named series of counts, and its share.

    Every series in `counts` has one count a label; shares are of `total`, the number of rows.
    """
    longest = max((count for series in counts.values() for count in series), default=0) or 1
    names, parts = list(counts), []
    row_height = _BAR * len(names) + _BAR_GAP
    for place, label in enumerate(labels):
        top = place * row_height
        shown = label if len(label) <= _LABEL_LETTERS else f"{label[: _LABEL_LETTERS - 1]}…"
        middle = top + _BAR * len(names) / 2 + 4
        parts.append(f'<text x="{_BAR_LEFT - 8}" y="{middle:.1f}" text-anchor="end">{escape(shown)}</text>')
        for index, name in enumerate(names):
            count, y = counts[name][place], top + index * _BAR
            width = count / longest * (WIDTH - _BAR_LEFT - _BAR_RIGHT)
            share = f"{count:,} ({100 * count / max(1, total):.1f} %)"
            size = f'x="{_BAR_LEFT}" y="{y}" width="{width:.1f}" height="{_BAR - 1}"'
            parts.append(
                f'<rect class="c{index % 6}" {size}/>'
                f'<text x="{_BAR_LEFT + width + 5:.1f}" y="{y + _BAR - 3}">{share}</text>'
            )
    legend = "".join(f'<span class="c{index % 6}">{escape(name)}</span>' for index, name in enumerate(names))
    height = max(1, len(labels)) * row_height
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title, quote=True)}">'
        f'<g class="grid bars">{"".join(parts)}</g></svg><div class="legend">{legend}</div></figure>'
    )


def _padded(low: float, high: float) -> tuple[float, float]:
    if high > low:
        margin = 0.05 * (high - low)
        return low - margin, high + margin
    margin = abs(low) * 0.1 or 1.0
    return low - margin, high + margin


def _grid(low: float, high: float, first: float, last: float, y: Callable[[float], float]) -> str:
    parts = []
    for tick in _ticks(low, high):
        height = y(tick)
        parts.append(f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">{number(tick)}</text>')
    bottom = HEIGHT - 6
    parts.append(f'<text x="{_LEFT}" y="{bottom}">step {number(first)}</text>')
    parts.append(f'<text x="{WIDTH - _RIGHT}" y="{bottom}" text-anchor="end">{number(last)}</text>')
    return f'<g class="grid">{"".join(parts)}</g>'


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers in [low, high]."""
    rough = (high - low) / 4
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first = math.ceil(low / step)
    return [round(index * step, 12) for index in range(first, math.floor(high / step) + 1)]


def _line(points: Sequence[tuple[float, float]], style: str) -> str:
    if len(points) == 1:
        return f'<circle class="{style}" cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r="3"/>'
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline class="{style}" points="{path}"/>'


def _running_mean(values: Sequence[float], window: int) -> list[float]:
    means = []
    for index in range(len(values)):
        recent = values[max(0, index + 1 - window) : index + 1]
        means.append(sum(recent) / len(recent))
    return means
