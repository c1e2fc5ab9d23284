"""Where an attempt starts: at the beginning, or at the newest undamaged checkpoint of the run.

    newest undamaged checkpoint ─▶ nobody else can have written it ─▶ its ledger: same data? ─▶ records
                                                                                               taken back

Called by `cluster.launch` before anything is started, and whenever a lost learner goes back.
"""

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alphadrive.checkpoints import Checkpoint
from alphadrive.data.fetching import local_folder
from alphadrive.data.scan import queries_sha256
from alphadrive.errors import CheckpointError, DataError
from alphadrive.manifest import check_owner
from alphadrive.metric_names import VAL_PLANNING_ACCURACY
from alphadrive.run_folder import LEDGER_FILE, RunFolder
from alphadrive.types import WeightVersion
from cluster.status import RunStatus

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where an attempt starts: `saved` is what the checkpoint's ledger file holds, empty at the beginning;
    `data_sha256` tells the data from other data."""

    version: WeightVersion
    data_sha256: str
    checkpoint: Checkpoint | None = None
    saved: dict[str, Any] = field(default_factory=dict)


def start_of(run: RunFolder, *, resume: bool) -> Start:
    """Where an attempt at this run starts; with `resume`, its records are taken back to there.

    Raises CheckpointError when there are checkpoints and none can be used, DataError when the data is not
    what the run started with. The run folder is closed then.
    """
    try:
        data = run.config.data
        data_sha256 = queries_sha256(local_folder(data.train), data.num_rows)
        if not resume:
            return Start(version=WeightVersion(0, 0), data_sha256=data_sha256)
        return newest_start(run, data_sha256)
    except BaseException:
        run.close()
        raise


def newest_start(run: RunFolder, data_sha256: str) -> Start:
    """The next attempt's start at the newest undamaged checkpoint; the run's records are taken back to there.

    Raises as `start_of`, and leaves the run folder open.
    """
    checkpoint = run.latest_checkpoint()
    saved = _ledger_of(checkpoint, data_sha256, run) if checkpoint else {}
    step = checkpoint.step if checkpoint else 0
    run.rewind(step)
    return Start(
        version=WeightVersion(_next_attempt(run, saved), step),
        data_sha256=data_sha256,
        checkpoint=checkpoint,
        saved=saved,
    )


def end_of_finished(run: RunFolder, stage: str, steps: int, start: Start) -> dict[str, Any]:
    """The summary of a run with no step left to make; written, where the process was killed before it was."""
    logger.warning(
        "%s: its checkpoint is of step %d and %s.steps=%d: nothing is left to do; raise that to train on",
        run.path,
        start.version.step,
        stage,
        steps,
    )
    summary = _read_json(run.summary_path)
    if not _is_of_finished(summary, last_status(run)):
        status = RunStatus(run, stage, steps, start.saved["attempt"])
        status.write(status="finished", step=start.version.step)
        summary = start.saved["summary"] | {
            "status": "finished",
            "stage": stage,
            "attempt": start.saved["attempt"],
            "seconds": {},
            "checkpoints": kept_checkpoints(run),
        }
        run.write_summary(summary)
    return summary


def kept_checkpoints(run: RunFolder) -> dict[str, Any]:
    """The run's checkpoints, for its summary: which there are and which one is best."""
    kept: dict[str, Any] = {"steps": [checkpoint.step for checkpoint in run.checkpoints.all()]}
    best = run.checkpoints.best()
    if best is not None:
        checkpoint, score = best
        place = checkpoint.path.relative_to(run.path).as_posix()
        kept["best"] = {"step": checkpoint.step, "path": place, VAL_PLANNING_ACCURACY: score}
    return kept


def last_status(run: RunFolder) -> dict[str, Any]:
    """The run's status as it was left; empty when there is none, or none that can be read."""
    return _read_json(run.status_path)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        logger.warning("%s is not readable, and passed over", path)
        return {}


def _is_of_finished(summary: dict[str, Any], status: dict[str, Any]) -> bool:
    """Whether a summary is that of the attempt which finished the run, and not left by one before it."""
    is_finished = summary.get("status") == status.get("status") == "finished"
    return is_finished and summary.get("attempt") == status.get("attempt")


def _ledger_of(checkpoint: Checkpoint, data_sha256: str, run: RunFolder) -> dict[str, Any]:
    check_owner(checkpoint.path)
    path = checkpoint.path / LEDGER_FILE
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable: {error}") from error
    if saved["data_sha256"] != data_sha256:
        raise DataError(
            f"{run.config.data.train}: query ids and plans of the rows used are not those that the run in "
            f"{run.path} started with; resume with the data that it had, or start a new run"
        )
    return saved


def _next_attempt(run: RunFolder, saved: dict[str, Any]) -> int:
    """One more than any attempt before, whether it reached a checkpoint or not."""
    before = [saved["attempt"]] if saved else []
    status = last_status(run)
    if "attempt" in status:
        before.append(status["attempt"])
    return max(before, default=-1) + 1
