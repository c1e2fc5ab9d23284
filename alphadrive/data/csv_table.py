"""Import of anybody's logs: one CSV table a drive, with poses, speeds and, in some rows, an image.

The columns are in `COLUMNS` and docs/importing.md. The whole trajectory of one table is in memory, images
are not.
"""

import csv
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from alphadrive.data.candidates import Candidate
from alphadrive.data.checks import MAX_SPEED_MPS
from alphadrive.data.drive_rows import Drive, Moment, Pace, RowOptions
from alphadrive.data.importing import ImportSource, SourceUnit
from alphadrive.data.paths import read_file_under
from alphadrive.data.trajectory import Track
from alphadrive.errors import DataError

SOURCE = "csv"
REQUIRED = ("time_s", "x_m", "y_m", "speed_mps")
COLUMNS = ("image", *REQUIRED, "yaw_rad", "navigation")
_LONG_BREAK_S = 60.0
"""With `labels_only`, no moments are looked for within a longer break: a clock may jump by years."""


@dataclass(slots=True, kw_only=True)
class _Table:
    """The good rows of a table; `line` is their line in the file, the header's being 1."""

    line: list[int] = field(default_factory=list)
    numbers: list[tuple[float, ...]] = field(default_factory=list)
    image: list[str] = field(default_factory=list)
    navigation: list[str] = field(default_factory=list)


def csv_source(path: Path, split: str, options: RowOptions, *, labels_only: bool = False) -> ImportSource:
    """The tables of a CSV file, or of all `*.csv` under a folder, each one scene.

    With `labels_only`, rows need no image: one is made every `every_s` seconds from the poses alone.
    Raises DataError when there is no table.
    """
    root = path if path.is_dir() else path.parent
    files = sorted(path.rglob("*.csv")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise DataError(f"{path}: expected a CSV table, or a folder with *.csv files")

    def unit(file: Path) -> SourceUnit:
        name = file.relative_to(root).with_suffix("").as_posix()
        return SourceUnit(
            name=name,
            candidates=functools.partial(_candidates, file, name, split, options, labels_only),
        )

    return ImportSource(
        layout=SOURCE,
        path=path,
        units=[unit(file) for file in files],
        files=files,
        options=options.as_text() | {"split": split, "labels_only": str(labels_only)},
        needs_image=not labels_only,
    )


def _candidates(
    file: Path, name: str, split: str, options: RowOptions, labels_only: bool
) -> Iterator[Candidate]:
    table = _Table()
    try:
        yield from _read(file, table)
    except DataError as error:
        yield Candidate(where=str(file), problems=[str(error)])
        return
    if len(table.line) < 2:
        yield Candidate(
            where=str(file), problems=[f"time_s: got {len(table.line)} good rows, expected a drive"]
        )
        return
    if not labels_only and not any(table.image):
        yield Candidate(
            where=str(file),
            problems=[
                "image: got none in any row, expected the path of an image in some; for labels without "
                "images, which serve statistics but no training, add --labels-only"
            ],
        )
        return
    drive = _drive(table, name, split)
    moments = _moments_of_grid if labels_only else _moments_of_images
    yield from drive.candidates(moments(file, name, table, options), options)


def _drive(table: _Table, name: str, split: str) -> Drive:
    columns = np.array(table.numbers).T
    track = Track(
        time_s=columns[0],
        x_m=columns[1],
        y_m=columns[2],
        speed_mps=columns[3],
        yaw_rad=columns[4] if len(columns) > len(REQUIRED) else None,
    )
    scene_id = f"{SOURCE}/{name}"
    return Drive(track=track, source=SOURCE, scene_id=scene_id, split=split, start_s=float(columns[0, 0]))


def _moments_of_images(file: Path, name: str, table: _Table, options: RowOptions) -> Iterator[Moment]:
    pace = Pace(options.every_s)
    for index, image in enumerate(table.image):
        time_s = table.numbers[index][0]
        if image and pace.takes(time_s):
            read_image = functools.partial(read_file_under, file.parent, image)
            yield _moment(file, name, table, index, time_s, read_image)


def _moments_of_grid(file: Path, name: str, table: _Table, options: RowOptions) -> Iterator[Moment]:
    times = np.array([numbers[0] for numbers in table.numbers])
    number, last = 0, int((times[-1] - times[0]) / options.every_s)
    while number <= last:
        time_s = float(times[0]) + number * options.every_s
        index = max(int(np.searchsorted(times, time_s, side="right")) - 1, 0)
        yield _moment(file, name, table, index, time_s, None)
        number += 1
        if index + 1 < len(times) and times[index + 1] - times[index] > _LONG_BREAK_S:
            number = max(number, math.ceil((times[index + 1] - times[0]) / options.every_s))


def _moment(
    file: Path,
    name: str,
    table: _Table,
    index: int,
    time_s: float,
    read_image: Callable[[], bytes] | None,
) -> Moment:
    return Moment(
        where=str(file),
        row=table.line[index],
        query_id=f"{SOURCE}/{name}/{time_s - table.numbers[0][0]:.3f}",
        time_s=time_s,
        read_image=read_image,
        navigation=table.navigation[index] or None,
        share_done=(index + 1) / len(table.line),
    )


def _read(file: Path, table: _Table) -> Iterator[Candidate]:
    """Fill a table with the good rows of a file; yields the bad ones. Raises DataError for a file that is
    no such table."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.DictReader(stream, strict=True)
            header = _checked_header(rows.fieldnames or [])
            for row in rows:
                problems: list[str] = []
                numbers = _numbers(row, header, table, problems)
                if problems:
                    yield Candidate(where=str(file), row=rows.line_num, problems=problems)
                    continue
                table.line.append(rows.line_num)
                table.numbers.append(numbers)
                table.image.append((row.get("image") or "").strip())
                table.navigation.append((row.get("navigation") or "").strip())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot be read as a CSV table in UTF-8: {error}") from error


def _checked_header(header: Sequence[str]) -> tuple[str, ...]:
    """The columns of numbers that a table has."""
    if missing := [name for name in REQUIRED if name not in header]:
        raise DataError(
            f"{missing[0]}: no such column; got {', '.join(header) or 'an empty file'}, expected a "
            f"first line with {', '.join(REQUIRED)} and, where there are any, image, yaw_rad, navigation"
        )
    for name in header:
        if name not in COLUMNS or header.count(name) > 1:
            raise DataError(
                f"{name}: unknown or repeated column; expected each of {', '.join(COLUMNS)} at most once"
            )
    return (*REQUIRED, *(name for name in ("yaw_rad",) if name in header))


def _numbers(
    row: dict[str, str], header: Sequence[str], table: _Table, problems: list[str]
) -> tuple[float, ...]:
    """The numbers of a row; what is wrong with them goes to `problems`."""
    values: dict[str, float] = {}
    for name in header:
        text = row.get(name)
        try:
            values[name] = float(text or "")
        except ValueError:
            values[name] = math.nan
        if not math.isfinite(values[name]):
            problems.append(f"{name}: got {text!r}, expected a finite number")
    if None in row:
        problems.append("row: got more fields than the header has columns")
    if problems:
        return ()
    if table.numbers and values["time_s"] <= table.numbers[-1][0]:
        problems.append(
            f"time_s: got {values['time_s']:.6f} after {table.numbers[-1][0]:.6f}, expected times to increase"
        )
    if not 0.0 <= values["speed_mps"] <= MAX_SPEED_MPS:
        problems.append(f"speed_mps: got {values['speed_mps']:g}, expected 0 to {MAX_SPEED_MPS:g} m/s")
    return tuple(values.values())
