"""How a run shows itself: a live display on a terminal, one plain line a step elsewhere."""

import logging
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table


class RunProgress:
    """Shows the steps of one stage. Use as a context manager."""

    def __init__(
        self, title: str, steps: int, *, console: Console | None = None, may_be_live: bool = True
    ) -> None:
        self._may_be_live = may_be_live
        self._log_streams: list[tuple[logging.StreamHandler[Any], Any]] = []
        self._console = console or Console(stderr=True)
        self._title = title
        self._steps = steps
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
        )
        self._task = self._bar.add_task(title, total=steps)
        self._live: Live | None = None

    def __enter__(self) -> "RunProgress":
        if self._console.is_terminal and self._may_be_live:
            before = sys.stderr
            self._live = Live(self._bar, console=self._console, refresh_per_second=4)
            self._live.start()
            self._redirect_logs(before)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            for handler, stream in self._log_streams:
                handler.setStream(stream)
            self._live.stop()
            self._live = None

    def _redirect_logs(self, stderr: Any) -> None:
        """Log lines go above the display; written past it, they would be drawn over."""
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is stderr:
                self._log_streams.append((handler, handler.setStream(sys.stderr)))

    def say(self, text: str) -> None:
        """One line that stays."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def step(self, step: int, figures: Mapping[str, str]) -> None:
        """Show a finished step; `figures` are names and values ready to print."""
        if self._live is None:
            words = "  ".join(f"{name} {value}" for name, value in figures.items())
            self.say(f"{self._title} {step}/{self._steps}  {words}")
            return
        table = Table.grid(padding=(0, 2))
        for name, value in figures.items():
            table.add_row(name, value)
        self._bar.update(self._task, completed=step)
        self._live.update(Group(self._bar, table))
