"""Where step metrics go besides `metrics.jsonl`: TensorBoard event files, and W&B when asked.

Neither needs torch: TensorBoard's own event writer is used.
"""

import importlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from alphadrive.config import RunConfig
from alphadrive.errors import ConfigError


class Tracker(Protocol):
    """Takes the metrics of a step."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record finite numbers for one step."""

    def rewind(self, step: int) -> None:
        """Forget what was recorded of later steps, as far as that can be done."""

    def close(self) -> None:
        """Flush and let go."""


def trackers_for(run: RunConfig, folder: Path, name: str) -> list[Tracker]:
    """The trackers a configuration asks for. Raises ConfigError when one is not installed."""
    trackers: list[Tracker] = []
    if run.tensorboard:
        trackers.append(TensorBoardTracker(folder / "tensorboard"))
    if run.wandb_project is not None:
        trackers.append(WandbTracker(run.wandb_project, folder, name))
    return trackers


class TensorBoardTracker:
    """Scalars in an event file, flushed every few seconds."""

    def __init__(self, folder: Path, flush_s: int = 5) -> None:
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError as error:
            raise ConfigError(
                f"run.tensorboard=true, but tensorboard does not import ({error}); install it or set "
                "run.tensorboard=false"
            ) from error
        self._new_event: Any = event_pb2.Event
        self._restarted: Any = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._new_summary: Any = summary_pb2.Summary
        self._writer: Any = EventFileWriter(str(folder), flush_secs=flush_s)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record finite numbers for one step."""
        values = [self._new_summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        summary = self._new_summary(value=values)
        self._writer.add_event(self._new_event(wall_time=time.time(), step=step, summary=summary))

    def rewind(self, step: int) -> None:
        """Have TensorBoard leave out what earlier files hold of later steps (its own mark of a restart)."""
        self._writer.add_event(
            self._new_event(wall_time=time.time(), step=step + 1, session_log=self._restarted)
        )

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class WandbTracker:
    """A Weights & Biases run; what it may reach is set by W&B's own environment variables."""

    def __init__(self, project: str, folder: Path, name: str) -> None:
        try:
            wandb: Any = importlib.import_module("wandb")
        except ImportError as error:
            raise ConfigError(
                f"run.wandb_project={project!r}, but wandb is not installed; `pip install wandb` or leave "
                "run.wandb_project out"
            ) from error
        self._run = wandb.init(project=project, name=name, dir=str(folder), resume="allow")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record finite numbers for one step."""
        self._run.log(dict(metrics), step=step)

    def rewind(self, step: int) -> None:
        """W&B takes no step back: it keeps what it has, and refuses steps until they are new to it."""

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()
