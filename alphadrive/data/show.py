"""`alphadrive data show`: rows of a dataset as one HTML page, to look at what a planner is asked.

Every row with its images, prompt, plans, the teacher's plan and reasoning. What is wrong in a row is
shown, not refused. Memory and page are bounded by the number of rows and the size of their pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from html import escape
from pathlib import Path
from typing import Any

from alphadrive.data.images import decode_image
from alphadrive.data.parquet import DrivingDataset
from alphadrive.data.records import DrivingRecord, ImageRecord
from alphadrive.data.scan import scan
from alphadrive.errors import ConfigError, DataError
from alphadrive.html_page import image_tag, write_page
from alphadrive.prompts import planning_prompt

MAX_SHOWN = 500
FIELDS = ("query_id", "scene_id", "split", "source", "label_rule", "navigation", "plan", "teacher_plan")
_MAX_IMAGES, _MAX_IMAGE_WIDTH = 8, 448
_MAX_LETTERS = 4000


@dataclass(frozen=True, slots=True)
class Condition:
    """A field and the pattern it must match: `*` any text, `?` any letter, upper and lower case differ.
    `plan` is the recorded plan."""

    field: str
    pattern: str

    @classmethod
    def parse(cls, text: str) -> "Condition":
        """Read `plan=STOP, *`. Raises ConfigError."""
        field, equals, pattern = text.partition("=")
        if not equals or field not in FIELDS:
            raise ConfigError(
                f"--where {text!r}: expected FIELD=PATTERN, the field one of {', '.join(FIELDS)}, "
                "for example --where 'plan=STOP, *'"
            )
        return cls(field, pattern)

    def holds(self, values: dict[str, Any]) -> bool:
        """Whether a row's columns fulfil it; a null is an empty text."""
        value = (values["plans"] or [""])[0] if self.field == "plan" else values[self.field]
        return fnmatchcase(value or "", self.pattern)


def choose_rows(folder: Path, conditions: Sequence[Condition], num: int) -> list[int]:
    """`num` rows that fulfil all conditions, evenly spread over those that do; all when there are fewer.

    Raises DataError when there is none.
    """
    columns = ["plans" if name == "plan" else name for name in FIELDS]
    rows = scan(folder, columns)
    found = [row.index for row in rows if all(condition.holds(row.values) for condition in conditions)]
    if not found:
        asked = " and ".join(f"{condition.field}={condition.pattern!r}" for condition in conditions)
        raise DataError(f"{folder}: no row with {asked}" if asked else f"{folder}: holds no row")
    num = min(num, len(found))
    return [found[place * len(found) // num] for place in range(num)]


def write_contact_sheet(folder: Path, out: Path, conditions: Sequence[Condition], num: int) -> int:
    """Write the page and return how many rows it shows. Raises DataError."""
    dataset = DrivingDataset(folder)
    rows = choose_rows(folder, conditions, num)
    cards = "".join(_card(dataset.record(row), dataset.where(row)) for row in rows)
    head = f"<h1>{escape(str(folder))}</h1><p class='note'>{len(rows)} of {len(dataset):,} rows"
    asked = "".join(f", {escape(each.field)} like “{escape(each.pattern)}”" for each in conditions)
    write_page(out, f"{folder}: rows", f"{head}{asked}</p>{cards}")
    return len(rows)


def _card(record: DrivingRecord, where: str) -> str:
    images = "".join(_image(image) for image in record.images[:_MAX_IMAGES])
    plans = list(record.plans)
    teacher = "-"
    if record.teacher_plan is not None:
        teacher = _text(record.teacher_plan) + ("" if record.teacher_plan in plans else " (not acceptable)")
    lines = [
        ("recorded plan", _text(plans[0] if plans else None)),
        ("also acceptable", "<br>".join(_text(plan) for plan in plans[1:]) or "-"),
        ("teacher's plan", teacher),
        ("reasoning", _text(record.reasoning)),
        ("waypoints", _text(_points(record.waypoints))),
        ("source", _text(record.source)),
        ("label rule", _text(record.label_rule)),
        ("prompt", f"<details><summary>show</summary>{_text(_prompt(record))}</details>"),
    ]
    table = "".join(f"<tr><th>{name}</th><td class='text'>{value}</td></tr>" for name, value in lines)
    speed = "-" if record.speed_mps is None else f"{record.speed_mps:.1f} m/s"
    return (
        f"<section class='group row'><div>{images or 'no image'}<p><b>{_text(record.query_id)}</b><br>"
        f"{speed}, “{_text(record.navigation)}”<br>split {_text(record.split)}, scene "
        f"{_text(record.scene_id)}, {record.time_s} s<br>{escape(where)}</p></div>"
        f"<table>{table}</table></section>"
    )


def _image(image: ImageRecord) -> str:
    caption = f"{_text(image.camera)}, {image.dt_s} s, {image.width}x{image.height}"
    try:
        picture = image_tag(decode_image(image.data or b""), _MAX_IMAGE_WIDTH)
    except DataError as error:
        picture = f"<p class='note'>No image: {escape(str(error))}</p>"
    return f"{picture}<p class='note'>{caption}</p>"


def _prompt(record: DrivingRecord) -> str | None:
    if record.speed_mps is None or record.navigation is None:
        return None
    return planning_prompt(record.speed_mps, record.navigation)


def _points(waypoints: Sequence[Sequence[float]] | None) -> str | None:
    if waypoints is None:
        return None
    return " ".join(
        "(" + ", ".join("-" if value is None else f"{value:.1f}" for value in point) + ")"
        for point in waypoints
    )


def _text(value: str | None) -> str:
    """Escaped, cut where it is endless; a dash for nothing."""
    if not value:
        return "-"
    return escape(value if len(value) <= _MAX_LETTERS else f"{value[:_MAX_LETTERS]} …")
