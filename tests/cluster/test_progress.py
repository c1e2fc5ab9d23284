"""The progress display, on a terminal and without one."""

import io
import logging
import sys

from rich.console import Console

from cluster.progress import RunProgress


def test_without_a_terminal_a_step_is_one_plain_line():
    out = io.StringIO()
    with RunProgress("grpo", 10, console=Console(file=out, force_terminal=False)) as progress:
        progress.step(3, {"reward": "1.25", "lag": "1"})
    assert out.getvalue() == "grpo 3/10  reward 1.25  lag 1\n"


def test_on_a_terminal_log_lines_go_through_the_display_and_back_to_stderr_afterwards(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    handler = logging.StreamHandler()
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        with RunProgress("grpo", 10, console=Console(file=out, force_terminal=True, width=80)) as progress:
            progress.step(3, {"reward": "1.25"})
            assert handler.stream is not out
            logging.getLogger("x").warning("a warning")
        assert handler.stream is out
    finally:
        root.removeHandler(handler)
    shown = out.getvalue()
    assert "a warning" in shown and "1.25" in shown and "3/10" in shown
