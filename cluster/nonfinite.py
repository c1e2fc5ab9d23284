"""Steps whose loss or gradient was not finite: written down, counted, and the end of the run after three.

    runs/NAME/nonfinite/step_000012.json     what the step was to train on, and what was not finite

The learner leaves such an update out and goes on with the next batch; the queries of a GRPO step without any
update are asked once more (see `cluster.queries`). Used by GRPO, SFT and the debug mode.
"""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from alphadrive.atomic import write_json
from alphadrive.errors import NonFiniteError
from alphadrive.types import StepResult

MAX_IN_A_ROW = 3

logger = logging.getLogger(__name__)


class NonFiniteSteps:
    """Watches the steps of a run. `count` is how many were not finite; `state` is what `state()` gave at a
    checkpoint."""

    def __init__(self, run_folder: Path, state: Mapping[str, Any] | None = None) -> None:
        self.folder = run_folder / "nonfinite"
        self.count: int = state["count"] if state else 0
        self._last: list[str] = list(state["last"]) if state else []

    def state(self) -> dict[str, object]:
        """What a checkpoint keeps, as JSON."""
        return {"count": self.count, "last": list(self._last)}

    def note(self, result: StepResult, batch: Iterable[dict[str, object]]) -> None:
        """Take a step; write down what it was to train on when it was not finite."""
        if result.problem is None:
            self._last.clear()
            return
        self.count += 1
        self._last.append(f"step {result.step}: {result.problem}")
        path = self.folder / f"step_{result.step:06d}.json"
        logger.error("step %d: %s; an update was left out, see %s", result.step, result.problem, path)
        try:
            self.folder.mkdir(exist_ok=True)
            write_json(path, {"step": result.step, "problem": result.problem, "batch": list(batch)})
        except OSError as error:
            logger.error("%s: cannot be written: %s", path, error)

    def raise_if_too_many(self) -> None:
        """Raises NonFiniteError when the last three steps were not finite."""
        if len(self._last) == MAX_IN_A_ROW:
            raise NonFiniteError(
                f"{MAX_IN_A_ROW} steps in a row were not finite ({'; '.join(self._last)}); their updates "
                f"were left out. {self.folder} lists what they were to train on: look for a learning rate "
                "too high or damaged rows, then go on with --resume"
            )
