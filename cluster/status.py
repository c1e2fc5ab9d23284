"""`status.json`: what a run is doing, for anybody who looks into its folder.

A live run tells the same through its control actor (`cluster.control_room`).
"""

import json
import logging
import time
from pathlib import Path
from typing import Any

from alphadrive.errors import RunFolderError
from alphadrive.run_folder import RunFolder
from alphadrive.secrets import redacted
from cluster.cluster_file import this_process

ENDED = ("finished", "no_signal", "interrupted", "failed")
"""Values of `status` that are the last ones of an attempt."""

_ALWAYS = {"status", "stage", "pid", "started_s", "updated_s"}

logger = logging.getLogger(__name__)


class RunStatus:
    """The latest status of a run; every `write` replaces the file.

    `attempt` is the attempt under way, `attempts` all there were: from which step, since when and why. A run
    that is resumed goes on with the list of the file that is there.
    """

    def __init__(self, run: RunFolder, stage: str, steps: int, attempt: int) -> None:
        self.attempt = attempt
        self.attempts, reached = _earlier(run)
        self._run = run
        self._fields: dict[str, Any] = {
            "status": "starting",
            "stage": stage,
            "step": reached,
            "steps": steps,
            "attempt": attempt,
            "attempts": self.attempts,
            "run": run.config.run.name,
            "folder": str(run.path.resolve()),
            **this_process(),
            "started_s": round(time.time(), 3),
        }
        self._written_s = 0.0

    def begin_attempt(self, attempt: int, from_step: int, cause: str) -> None:
        """A new attempt goes on from the checkpoint of `from_step`, 0 for the start."""
        self.attempt = attempt
        reached = self._fields["step"]
        self.attempts.append(
            {"attempt": attempt, "from_step": from_step, "since_s": round(time.time(), 3), "cause": cause}
        )
        if reached > from_step:
            self.attempts[-1]["lost_steps"] = reached - from_step
        self.write(status="starting", attempt=attempt, step=from_step)

    def write(self, **changes: Any) -> None:
        """Change some fields and write all. `status` is one of starting, running, finished, no_signal,
        interrupted, failed; `reason` says why it ended."""
        self.note(**changes)
        self._run.write_status(self._fields)
        self._written_s = time.monotonic()

    def note(self, **changes: Any) -> None:
        """Change some fields; the file gets them with the next `write`."""
        self._fields |= redacted(changes) | {"updated_s": round(time.time(), 3)}

    @property
    def fields(self) -> dict[str, Any]:
        """All fields as they are now."""
        return dict(self._fields)

    @property
    def file_age_s(self) -> float:
        """Seconds since the file was written."""
        return time.monotonic() - self._written_s

    @property
    def state(self) -> str:
        """The `status` field."""
        return str(self._fields["status"])


def _earlier(run: RunFolder) -> tuple[list[dict[str, Any]], int]:
    """The attempts that the file tells of, and the step that the last of them has reached."""
    try:
        status = json.loads(run.status_path.read_text(encoding="utf-8"))
        return list(status["attempts"]), int(status["step"])
    except FileNotFoundError:
        return [], 0
    except (ValueError, KeyError, TypeError):
        logger.warning("%s does not tell of earlier attempts", run.status_path)
        return [], 0


def read_status(run_folder: Path) -> dict[str, Any]:
    """The status that a run last wrote. Raises RunFolderError when there is none."""
    path = run_folder / "status.json"
    try:
        status = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunFolderError(f"{path}: missing; this run has never started") from None
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path}: not readable: {error}") from error
    missing = _ALWAYS - status.keys() if isinstance(status, dict) else _ALWAYS
    if missing:
        raise RunFolderError(f"{path}: not the status of a run: it has no {', '.join(sorted(missing))}")
    return dict(status)
