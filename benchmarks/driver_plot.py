"""Draws what `benchmarks/driver_scaling.py` found, several runs in one picture:

python benchmarks/driver_plot.py docs/images/scaling.svg "one by one=before.json" "in batches=after.json"
"""

import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 430, 300, 62, 14, 34, 46
COLOURS = ("#b2452c", "#1f5fa8", "#2d7d46", "#7a5195")
Points = Sequence[tuple[float, float]]
Scale = Callable[[float], float]


def log_scale(values: Sequence[float], first: float, last: float) -> tuple[Scale, list[float]]:
    """From values to a place between `first` and `last`, and round values in between."""
    low, high = math.log10(min(values) / 1.3), math.log10(max(values) * 1.3)
    decades = range(math.floor(low), math.ceil(high) + 1)
    ticks = [factor * 10.0**power for power in decades for factor in (1, 2, 5)]
    inside = [tick for tick in ticks if low <= math.log10(tick) <= high]
    return lambda value: first + (math.log10(value) - low) / (high - low) * (last - first), inside


def panel(title: str, x_name: str, lines: dict[str, Points], has_linear: bool) -> str:
    """One diagram, both axes logarithmic; with the line on which y is x where asked for."""
    xs = [x for points in lines.values() for x, _ in points]
    ys = [y for points in lines.values() for _, y in points]
    place_x, ticks_x = log_scale(xs, LEFT, WIDTH - RIGHT)
    place_y, ticks_y = log_scale(ys + (xs if has_linear else []), HEIGHT - BOTTOM, TOP)
    parts = [f'<text x="{LEFT}" y="18" class="title">{escape(title)}</text>']
    for tick in ticks_x:
        at = f"{place_x(tick):.1f}"
        parts.append(f'<line x1="{at}" x2="{at}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{at}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{tick:,.0f}</text>')
    for tick in ticks_y:
        at = f"{place_y(tick):.1f}"
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{float(at) + 4:.1f}" text-anchor="end">{tick:,g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">{escape(x_name)}</text>')
    if has_linear:
        ends = ((place_x(x), place_y(x)) for x in (min(xs), max(xs)))
        parts.append(polyline(ends, "#999", 'stroke-dasharray="4 3"'))
    for number, (name, points) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        placed = [(place_x(x), place_y(y)) for x, y in points]
        parts.append(polyline(placed, colour))
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in placed]
        below = TOP + 14 + 15 * number if has_linear else HEIGHT - BOTTOM - 24 + 15 * number
        parts.append(f'<text x="{LEFT + 8}" y="{below}" style="fill:{colour}">{escape(name)}</text>')
    return "".join(parts)


def polyline(points: Iterable[tuple[float, float]], colour: str, style: str = "") -> str:
    """A line through points."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" {style}/>'


def main() -> None:
    """Read the runs, write the picture."""
    target, *runs = sys.argv[1:]
    found = {name: json.loads(Path(path).read_text()) for name, path in (run.split("=") for run in runs)}
    trained = {name: [(row["offered"], row["groups/s"]) for row in rows] for name, rows in found.items()}
    costs = {name: [(row["groups/s"], row["us/sample"]) for row in rows] for name, rows in found.items()}
    left = panel("groups/s trained", "groups/s that the engines are good for", trained, True)
    right = panel("driver, µs of processor a sample", "groups/s trained", costs, False)
    style = (
        "text{font:12px sans-serif;fill:#333;paint-order:stroke;stroke:#fff;stroke-width:3px}"
        ".title{font-weight:bold}line{stroke:#ddd}rect{fill:#fff}"
    )
    Path(target).write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH} {HEIGHT}"><style>{style}</style>'
        f'<rect width="{2 * WIDTH}" height="{HEIGHT}"/>{left}'
        f'<g transform="translate({WIDTH} 0)">{right}</g></svg>\n'
    )


if __name__ == "__main__":
    main()
