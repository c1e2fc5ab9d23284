"""A profile as one picture (SVG, no dependency): what every worker did and waited for, and the lanes of three
steps around the median one."""

from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

from alphadrive.atomic import write_text
from alphadrive.profiling.analysis import Profile
from alphadrive.profiling.intervals import Interval, Intervals, common
from alphadrive.profiling.recording import KINDS, Recording
from alphadrive.profiling.states import BUSY, LoopStates, worker_states
from alphadrive.profiling.steps import all_steps
from alphadrive.profiling.verdict import verdict_of

WIDTH, LEFT, RIGHT = 900, 110, 20
BAR, GAP, HEAD, LEGEND = 20, 8, 34, 30
MAX_LANES = 16
COLOURS = {
    "train": "#1f5fa8",
    "generate": "#2d7d46",
    "score": "#7a5195",
    "weights": "#e0912f",
    "tickets": "#d9d9d9",
    "groups": "#f0d5a8",
    "reward": "#c9a6dd",
    "evaluation": "#6fb7c9",
    "checkpoint": "#b2452c",
    "other": "#8c8c8c",
}
NAMES = {
    "tickets": "waits for a ticket",
    "groups": "waits for groups",
    "reward": "waits for rewards",
    "weights": "weight sync",
    "other": "else",
}
STYLE = (
    "text{font:12px sans-serif;fill:#333}.title{font-weight:bold;font-size:14px}.verdict{font-size:13px}"
    ".axis{stroke:#bbb;stroke-width:1}"
)


def write_plot(path: Path, name: str, recording: Recording, profile: Profile) -> None:
    """Draw a profile into an SVG file, whole or not at all."""
    parts: list[str] = []
    used: dict[str, None] = {}
    y = _verdict(parts, name, profile)
    y = _bars(parts, used, y, profile)
    y = _lanes(parts, used, y, recording, profile)
    y = _legend(parts, used, y)
    write_text(
        path,
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}">'
        f'<style>{STYLE}</style><rect width="{WIDTH}" height="{y}" fill="#fff"/>{"".join(parts)}</svg>\n',
    )


def _verdict(parts: list[str], name: str, profile: Profile) -> int:
    rates = f"{profile.samples_per_s:.1f} samples/s, {profile.step_s:.2f} s a step"
    overlap = f", overlap {profile.overlap:.2f}" if profile.overlap is not None else ""
    parts.append(_text(12, 24, f"{name}: {rates}{overlap}", "title"))
    line, y = "", 44
    for word in verdict_of(profile).words.split():
        if len(line) + len(word) > 125:
            parts.append(_text(12, y, line, "verdict"))
            line, y = "", y + 17
        line = f"{line} {word}".strip()
    parts.append(_text(12, y, line, "verdict"))
    return y + 14


def _bars(parts: list[str], used: dict[str, None], y: int, profile: Profile) -> int:
    steps = f"steps {profile.first_step} to {profile.last_step}"
    parts.append(_text(LEFT, y + 20, f"shares of the time, {steps}", "title"))
    y += HEAD
    rows: list[tuple[str, Mapping[str, float]]] = [("train loop", profile.loop)]
    for kind, workers in profile.kinds.items():
        rows.append((f"{kind} x {workers.count}", {BUSY[kind]: workers.busy, **workers.idle}))
    for label, shares in rows:
        parts.append(_text(LEFT - 8, y + 14, label, anchor="end"))
        at = float(LEFT)
        for name in sorted(shares, key=list(COLOURS).index):
            width = shares[name] * (WIDTH - LEFT - RIGHT)
            parts.append(_box(at, y, width, COLOURS[name], f"{name} {shares[name]:.1%}"))
            if width > 40:
                parts.append(_text(at + width / 2, y + 14, f"{shares[name]:.0%}", anchor="middle", on=name))
            used[name] = None
            at += width
        y += BAR + GAP
    return y


def _lanes(parts: list[str], used: dict[str, None], y: int, recording: Recording, profile: Profile) -> int:
    steps = all_steps(recording)
    middle = next(index for index, step in enumerate(steps) if step.number == profile.median_step)
    shown = steps[max(0, middle - 1) : middle + 2]
    window = (shown[0].window[0], shown[-1].window[1])
    loop = LoopStates(recording, steps, [window])
    rows = [("train loop", loop.parts())]
    for kind in KINDS[1:]:
        tracks = recording.of_kind(kind)
        rows += [(track.source, worker_states(track, loop)) for track in tracks[: MAX_LANES // 2]]
    title = f"steps {shown[0].number} to {shown[-1].number}, {(window[1] - window[0]) / 1e9:.2f} s"
    parts.append(_text(LEFT, y + 20, title, "title"))
    y += HEAD
    top = y
    for label, states in rows[:MAX_LANES]:
        parts.append(_text(LEFT - 8, y + 14, label, anchor="end"))
        parts += _pieces(states, window, y)
        used.update(dict.fromkeys(states))
        y += BAR + GAP
    for step in shown[1:]:
        x = _x(step.window[0], window)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 4}" y2="{y - 4}"/>')
    return y


def _pieces(states: Mapping[str, Intervals], window: Interval, y: int) -> Iterable[str]:
    for name, pieces in states.items():
        for start_ns, end_ns in common(pieces, [window]):
            x = _x(start_ns, window)
            title = f"{name} {(end_ns - start_ns) / 1e6:.1f} ms"
            yield _box(x, y, max(0.3, _x(end_ns, window) - x), COLOURS[name], title)


def _x(moment_ns: int, window: Interval) -> float:
    return LEFT + (moment_ns - window[0]) / (window[1] - window[0]) * (WIDTH - LEFT - RIGHT)


def _legend(parts: list[str], used: Iterable[str], y: int) -> int:
    at, y = LEFT, y + 8
    for name in sorted(used, key=list(COLOURS).index):
        words = NAMES.get(name, name)
        width = 30 + 7 * len(words)
        if at + width > WIDTH - RIGHT:
            at, y = LEFT, y + 20
        parts.append(_box(at, y, 12, COLOURS[name], name, height=12))
        parts.append(_text(at + 17, y + 11, words))
        at += width
    return y + LEGEND


def _box(x: float, y: float, width: float, colour: str, title: str, height: int = BAR) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{height}" fill="{colour}">'
        f"<title>{escape(title)}</title></rect>"
    )


def _text(x: float, y: float, text: str, style: str = "", anchor: str = "start", on: str = "") -> str:
    fill = ' style="fill:#fff"' if on in ("train", "generate", "score", "checkpoint", "other") else ""
    return f'<text x="{x:.1f}" y="{y}" class="{style}" text-anchor="{anchor}"{fill}>{escape(text)}</text>'
