"""What a check says, and the table of all that were made."""

import dataclasses
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARN = "warn"
    """A run works, or most do; the remedy tells what is lost."""
    FAIL = "fail"
    ABSENT = "absent"
    """Not on this machine, and not needed here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One row of the table; `remedy` is empty for what is fine."""

    name: str
    status: Status
    found: str
    expected: str = ""
    remedy: str = ""

    def as_fields(self) -> dict[str, str]:
        """The row for machines."""
        return dataclasses.asdict(self) | {"status": self.status.value}


_COLUMNS = ("check", "status", "found", "expected")
_NARROWEST = 100


def table_text(checks: Sequence[Check], width: int | None = None) -> str:
    """All checks as a table, each remedy in lines below its row; `width` is the terminal's."""
    width = max(_NARROWEST, width or shutil.get_terminal_size((_NARROWEST, 24)).columns)
    rows = [(check.name, check.status.value, check.found, check.expected) for check in checks]
    first, second = (max(len(row[column]) for row in [_COLUMNS, *rows]) for column in (0, 1))
    rest = width - first - second - 6
    found, expected = rest * 3 // 5, rest - rest * 3 // 5
    lines = [_row(_COLUMNS, (first, second, found, expected))]
    for row, check in zip(rows, checks, strict=True):
        lines.append(_row(row, (first, second, found, expected)))
        if check.remedy:
            indent = " " * (first + 2)
            lines += textwrap.wrap(
                f"-> {check.remedy}", width, initial_indent=indent, subsequent_indent=f"{indent}   "
            )
    return "\n".join(lines)


def summary_text(checks: Sequence[Check]) -> str:
    """One line with how many came out how."""
    counts = {status: sum(check.status is status for check in checks) for status in Status}
    return ", ".join(f"{number} {status.value}" for status, number in counts.items() if number)


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    columns = [textwrap.wrap(cell, width) or [""] for cell, width in zip(cells, widths, strict=True)]
    height = max(map(len, columns))
    lines = zip(*(column + [""] * (height - len(column)) for column in columns), strict=True)
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
