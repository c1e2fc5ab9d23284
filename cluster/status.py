"""`status.json`: what a run is doing, for anybody who looks into its folder."""

import os
import time
from typing import Any

from alphadrive.run_folder import RunFolder


class RunStatus:
    """The latest status of one attempt of a run; every `write` replaces the file."""

    def __init__(self, run: RunFolder, stage: str, steps: int, attempt: int) -> None:
        self.attempt = attempt
        self._run = run
        self._fields: dict[str, Any] = {
            "status": "starting",
            "stage": stage,
            "step": 0,
            "steps": steps,
            "attempt": attempt,
            "pid": os.getpid(),
            "started_s": round(time.time(), 3),
        }

    def write(self, **changes: Any) -> None:
        """Change some fields and write all. `status` is one of starting, running, finished, no_signal,
        interrupted, failed; `reason` says why it ended."""
        self._fields |= changes | {"updated_s": round(time.time(), 3)}
        self._run.write_status(self._fields)

    @property
    def state(self) -> str:
        """The `status` field."""
        return str(self._fields["status"])
