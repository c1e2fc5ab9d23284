"""How a distillation shows itself: a bar on a terminal, a plain line every few seconds elsewhere."""

import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from alphadrive.teacher.outcome import Outcome

_LINE_EVERY_S = 10.0


class DistillProgress:
    """Use as a context manager; on the error stream unless a console is given."""

    def __init__(self, outcome: Outcome, console: Console | None = None) -> None:
        self._outcome = outcome
        self._console = console or Console(stderr=True)
        self._is_live = self._console.is_terminal
        self._bar = Progress(
            TextColumn("rows"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._is_live,
        )
        self._task = self._bar.add_task("rows", total=outcome.num_to_ask, figures="")
        self._last_line_s = time.monotonic()
        self._last_shown = -1

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """One line that stays."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def show(self, num_tokens: int, is_last: bool = False) -> None:
        """Show the outcome as it is; `num_tokens` are those of all runs on the folder."""
        acceptance = self._outcome.acceptance
        accepted = "-" if acceptance is None else f"{100 * acceptance:.1f} %"
        figures = f"accepted {accepted}  tokens {num_tokens:,}"
        done = self._outcome.num_done
        self._bar.update(self._task, completed=done, figures=figures)
        now = time.monotonic()
        if self._is_live or done == self._last_shown:
            return
        if is_last or now - self._last_line_s >= _LINE_EVERY_S:
            self.say(f"rows {done}/{self._outcome.num_to_ask}  {figures}")
            self._last_line_s, self._last_shown = now, done
