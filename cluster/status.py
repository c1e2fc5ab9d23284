"""`status.json`: what a run is doing, for anybody who looks into its folder."""

import json
import logging
import os
import time
from typing import Any

from alphadrive.run_folder import RunFolder

logger = logging.getLogger(__name__)


class RunStatus:
    """The latest status of a run; every `write` replaces the file.

    `attempt` is the attempt under way, `attempts` all there were: from which step, since when and why. A run
    that is resumed goes on with the list of the file that is there.
    """

    def __init__(self, run: RunFolder, stage: str, steps: int, attempt: int) -> None:
        self.attempt = attempt
        self.attempts = _earlier_attempts(run)
        self._run = run
        self._fields: dict[str, Any] = {
            "status": "starting",
            "stage": stage,
            "step": 0,
            "steps": steps,
            "attempt": attempt,
            "attempts": self.attempts,
            "pid": os.getpid(),
            "started_s": round(time.time(), 3),
        }

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
        self._fields |= changes | {"updated_s": round(time.time(), 3)}
        self._run.write_status(self._fields)

    @property
    def state(self) -> str:
        """The `status` field."""
        return str(self._fields["status"])


def _earlier_attempts(run: RunFolder) -> list[dict[str, Any]]:
    try:
        return list(json.loads(run.status_path.read_text(encoding="utf-8"))["attempts"])
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError):
        logger.warning("%s does not tell of earlier attempts", run.status_path)
        return []
