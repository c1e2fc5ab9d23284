"""What a dataset holds, counted in one pass and in bounded memory.

`alphadrive data stats` prints it (`alphadrive.data.stats_views` makes table and page of it). Values that
are no plan, no speed, no text are counted as such, never an error: validation judges them.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from alphadrive.actions import Plan, parse_plan
from alphadrive.data.scan import scan

MAX_DISTINCT = 1000
SPEED_BIN_MPS = 2
OTHERS = "(others)"
UNREADABLE_PLAN = "(no plan)"

_COLUMNS = (
    "scene_id",
    "split",
    "images.list.element.camera",
    "images.list.element.width",
    "images.list.element.height",
    "speed_mps",
    "navigation",
    "plans",
    "reasoning",
    "teacher_plan",
    "waypoints",
    "source",
    "label_rule",
)


@dataclass(kw_only=True)
class DatasetStats:
    """Counts over the rows of a dataset.

    `recorded` counts the plan recorded in each row, `acceptable` every plan in each row it is acceptable
    in; the `..._words` count SPEED and PATH words the same way. `num_plans` counts rows by how
    many plans they accept, `speed_bins` by speed in steps of 2 m/s (the lower end of each). `image_sizes`
    counts images. Texts beyond a thousand different ones are counted together as `(others)`.
    """

    num_rows: int = 0
    num_scenes: int = 0
    splits: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    label_rules: Counter[str] = field(default_factory=Counter)
    navigation: Counter[str] = field(default_factory=Counter)
    recorded: Counter[str] = field(default_factory=Counter)
    acceptable: Counter[str] = field(default_factory=Counter)
    recorded_words: Counter[str] = field(default_factory=Counter)
    acceptable_words: Counter[str] = field(default_factory=Counter)
    num_plans: Counter[int] = field(default_factory=Counter)
    speed_bins: Counter[int] = field(default_factory=Counter)
    speed_mean_mps: float | None = None
    speed_min_mps: float | None = None
    speed_max_mps: float | None = None
    image_sizes: Counter[str] = field(default_factory=Counter)
    with_reasoning: int = 0
    with_waypoints: int = 0
    with_teacher_plan: int = 0
    teacher_not_acceptable: int = 0

    def as_dict(self) -> dict[str, object]:
        """The same as plain values for JSON."""
        values = ((each.name, getattr(self, each.name)) for each in fields(self))
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in values}


def dataset_stats(folder: Path) -> DatasetStats:
    """Count the rows of a dataset. Raises DataError for what is no dataset or damaged."""
    stats = DatasetStats()
    scenes: set[bytes] = set()
    speeds = _Range()
    for row in scan(folder, _COLUMNS):
        values = row.values
        stats.num_rows += 1
        scenes.add(hashlib.blake2b(str(values["scene_id"]).encode(), digest_size=8).digest())
        _count_texts(stats, values)
        _count_plans(stats, values)
        speed = values["speed_mps"]
        if speed is not None and math.isfinite(speed):
            speeds.add(speed)
            stats.speed_bins[SPEED_BIN_MPS * math.floor(speed / SPEED_BIN_MPS)] += 1
    stats.num_scenes = len(scenes)
    if speeds.num:
        stats.speed_min_mps, stats.speed_max_mps = speeds.low, speeds.high
        stats.speed_mean_mps = speeds.total / speeds.num
    return stats


@dataclass
class _Range:
    num: int = 0
    total: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    def add(self, value: float) -> None:
        self.num, self.total = self.num + 1, self.total + value
        self.low, self.high = min(self.low, value), max(self.high, value)


def _count_texts(stats: DatasetStats, values: dict[str, Any]) -> None:
    for counts, name in (
        (stats.splits, "split"),
        (stats.sources, "source"),
        (stats.label_rules, "label_rule"),
        (stats.navigation, "navigation"),
    ):
        _count(counts, values[name])
    for image in values["images"] or ():
        found = image or dict.fromkeys(("camera", "width", "height"))
        _count(stats.image_sizes, f"{found['camera']} {found['width']}x{found['height']}")
    stats.with_reasoning += values["reasoning"] is not None
    stats.with_waypoints += values["waypoints"] is not None


def _count_plans(stats: DatasetStats, values: dict[str, Any]) -> None:
    plans = [parse_plan(text or "") for text in values["plans"] or ()]
    stats.num_plans[len(plans)] += 1
    recorded = plans[0] if plans else None
    stats.recorded[str(recorded) if recorded else UNREADABLE_PLAN] += 1
    if recorded:
        stats.recorded_words.update((recorded.speed, recorded.path))
    acceptable = {plan for plan in plans if plan}
    stats.acceptable.update(map(str, acceptable))
    stats.acceptable_words.update(_words(acceptable))
    if values["teacher_plan"] is not None:
        stats.with_teacher_plan += 1
        stats.teacher_not_acceptable += parse_plan(values["teacher_plan"]) not in acceptable


def _words(plans: Iterable[Plan]) -> set[str]:
    return {word for plan in plans for word in (plan.speed, plan.path)}


def _count(counts: Counter[str], value: object) -> None:
    """Count one text, or OTHERS when it is new and there are a thousand already."""
    text = "(null)" if value is None else str(value)
    counts[text if text in counts or len(counts) < MAX_DISTINCT else OTHERS] += 1
