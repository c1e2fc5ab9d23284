"""A question that may hang or crash is asked in a process of its own, for a bounded time."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]


class ChildError(Exception):
    """The process gave no answer; the message says what became of it."""


def ask(
    module: str, arguments: Sequence[str], timeout_s: float, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run a module of this project; returns the JSON object on the last line of its output.

    Raises ChildError when it does not end in time, crashes, or answers something else.
    """
    paths = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | dict(environment or {})
    # -P: a folder that the command is run in must not hide our packages.
    command = [sys.executable, "-P", "-m", module, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env=variables)
    except subprocess.TimeoutExpired:
        raise ChildError(f"no answer in {timeout_s:g} s") from None
    lines = done.stdout.strip().splitlines()
    try:
        answer = json.loads(lines[-1])
    except (IndexError, ValueError):
        raise ChildError(_words(done)) from None
    if not isinstance(answer, dict):
        raise ChildError(_words(done))
    return answer


def _words(done: subprocess.CompletedProcess[str]) -> str:
    """How a process ended: an error's own line where there is one, else the last."""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    telling = [line for line in lines if "Check failed" in line or "Error" in line]
    return (telling or lines or [f"it ended with {done.returncode} and said nothing"])[-1][-400:]
