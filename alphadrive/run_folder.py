"""A run's folder: where everything a run leaves behind lies, and how it is written.

    runs/NAME/
      config.yaml          the resolved configuration
      status.json          the run's latest status, atomic
      summary.json         the result, atomic
      metrics.jsonl        one line a step; the same numbers go to TensorBoard, W&B if asked
      tensorboard/
      rollouts/*.parquet   see `alphadrive.rollout_writer`
      checkpoints/         see `alphadrive.checkpoints`
      nonfinite/*.json     see `cluster.nonfinite`
      spans.jsonl, timeline.json   see `alphadrive.profiling`
      report.html          see `alphadrive.report`
      .lock                held by the process that writes the run

One process (the driver) holds a `RunFolder`, and the lock in it; reward workers hold a `RolloutWriter`
on `rollouts`.
"""

import json
import logging
import math
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import IO, Self

from alphadrive.atomic import write_json
from alphadrive.capacity import unwritable
from alphadrive.checkpoints import Checkpoint, CheckpointStore
from alphadrive.config import Config, load_config, save_config
from alphadrive.errors import RunFolderError
from alphadrive.locks import LOCK_FILE, take_lock
from alphadrive.mirror import CheckpointMirror
from alphadrive.resume_checks import check_resumable
from alphadrive.rewind import (
    NO_TICKETS,
    EndedTickets,
    drop_metrics,
    drop_rollouts,
    drop_step_files,
    drop_unfinished,
)
from alphadrive.secrets import redacted
from alphadrive.trackers import Tracker, trackers_for

LEDGER_FILE = "ledger.json"
"""In a checkpoint: what the driver knows beside what the learner keeps."""

_BUSY = "another process is writing this run; wait for it, stop it, or choose another run.name"

log = logging.getLogger(__name__)


class RunFolder:
    """One run's folder, open for writing. Close it (or use `with`) to flush TensorBoard."""

    def __init__(self, path: Path, config: Config) -> None:
        """Use `create`; this takes a folder as it is."""
        self.path = path
        self.config = config
        self.checkpoints = CheckpointStore(
            path / "checkpoints", config.checkpoint.keep_last, config.checkpoint.keep_best
        )
        self._trackers: list[Tracker] = []
        self._unwritten: list[str] = []
        self._lock: IO[str] | None = None
        self.mirror: CheckpointMirror | None = None
        """Where committed checkpoints are copied to."""

    @classmethod
    def create(
        cls, config: Config, resume: bool = False, overwrite: bool = False, stage: str = "grpo"
    ) -> Self:
        """Make (or reopen) `run.root/run.name` and write the resolved configuration into it.

        `resume` goes on in an existing folder, and starts one where there is none, so that a scheduler
        can repeat the same command. `overwrite` removes an existing run first. Raises RunFolderError
        when the folder exists and neither is given, when both are, when it is no run's folder, or when
        another process is writing this run; ConfigError when the run's checkpoint is of another stage or
        cannot go on with this configuration.
        """
        path = _free_or_run(config, resume=resume, overwrite=overwrite)
        lock = take_lock(path, _BUSY)
        mirror = None
        try:
            mirror = CheckpointMirror.of(config)
            if mirror is not None and resume:
                mirror.restore(path)
            _check_existing(path, config, stage, resume=resume, overwrite=overwrite)
            if overwrite:
                _clear(path)
            if mirror is not None and not resume:
                mirror.start_anew(overwrite=overwrite)
            # First, because it is what makes the folder a run's, whenever this process is killed.
            save_config(config, path / "config.yaml")
            for folder in (path / "rollouts", path / "checkpoints"):
                folder.mkdir(exist_ok=True)
            drop_unfinished(path / "rollouts")
            _end_last_line(path / "metrics.jsonl")
            if mirror is not None:
                mirror.write_beside(path)
        except BaseException as error:
            lock.close()
            if mirror is not None:
                mirror.close()
            if isinstance(error, OSError):
                raise RunFolderError(f"{path}: cannot write the run folder: {error}") from error
            raise
        run = cls(path, config)
        run._lock, run.mirror = lock, mirror
        run._trackers = trackers_for(config.run, path, config.run.name)
        return run

    @staticmethod
    def check(config: Config, resume: bool = False, overwrite: bool = False, stage: str = "grpo") -> None:
        """Raise what `create` would, and write nothing. What only a mirror has of the run is not compared."""
        path = _free_or_run(config, resume=resume, overwrite=overwrite)
        if parent := unwritable(path):
            raise RunFolderError(f"{path}: cannot write the run folder: {parent} is not ours to write in")
        if (path / LOCK_FILE).exists():
            take_lock(path, _BUSY).close()
        _check_existing(path, config, stage, resume=resume, overwrite=overwrite)
        mirror = CheckpointMirror.of(config)
        if mirror is not None:
            with closing(mirror):
                mirror.check_new(may_have_earlier=resume or overwrite)

    @property
    def metrics_path(self) -> Path:
        """`metrics.jsonl`."""
        return self.path / "metrics.jsonl"

    @property
    def rollouts_path(self) -> Path:
        """The folder of Parquet rollouts."""
        return self.path / "rollouts"

    @property
    def summary_path(self) -> Path:
        """`summary.json`."""
        return self.path / "summary.json"

    @property
    def status_path(self) -> Path:
        """`status.json`."""
        return self.path / "status.json"

    def write_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line to `metrics.jsonl` and send the same numbers to the trackers.

        A number that is not finite is written as null and sent to no tracker. May be called more than
        once a step (training, then evaluation); readers merge lines of one step, the last one wins.
        """
        finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        line: dict[str, object] = {"step": step, "time_s": round(time.time(), 3)}
        line |= {name: finite.get(name) for name in metrics}
        self._unwritten.append(json.dumps(line, allow_nan=False) + "\n")
        self._write_lines()
        for tracker in list(self._trackers):
            try:
                tracker.write(step, finite)
            except OSError as error:
                log.error("%s takes no more metrics: %s", type(tracker).__name__, error)
                self._trackers.remove(tracker)

    def _write_lines(self) -> None:
        """Append the lines not written yet; those that a full disk does not take wait for the next call."""
        before = self.metrics_path.stat().st_size if self.metrics_path.is_file() else 0
        try:
            with self.metrics_path.open("a", encoding="utf-8") as file:
                file.write("".join(self._unwritten))
        except OSError as error:
            log.error("%s: %d lines wait to be written: %s", self.metrics_path, len(self._unwritten), error)
            with suppress(OSError):
                os.truncate(self.metrics_path, before)
        else:
            self._unwritten.clear()

    def add_tracker(self, tracker: Tracker) -> None:
        """Send the metrics of steps to one more tracker."""
        self._trackers.append(tracker)

    def write_summary(self, summary: Mapping[str, object]) -> None:
        """Write `summary.json` atomically; a full disk must not hide how the run ended.

        Raises ValueError for a number that is not finite.
        """
        self._write_json(self.summary_path, summary)

    def write_status(self, status: Mapping[str, object]) -> None:
        """Write `status.json` atomically; a full disk leaves the one before."""
        self._write_json(self.status_path, status)

    def _write_json(self, path: Path, content: Mapping[str, object]) -> None:
        try:
            write_json(path, redacted(dict(content)))
        except OSError as error:
            log.error("%s: cannot be written: %s", path, error)

    def rewind(self, step: int) -> None:
        """Take the run's records back to the checkpoint of `step` (0: to the start), see
        `alphadrive.rewind`. Later checkpoints are put aside. Raises RunFolderError when the disk is full."""
        self._unwritten = [line for line in self._unwritten if json.loads(line)["step"] <= step]
        try:
            self.checkpoints.abandon_later(step)
            drop_metrics(self.metrics_path, step)
            drop_step_files(self.path / "nonfinite", step)
            drop_rollouts(self.rollouts_path, self._ended_tickets(step))
        except OSError as error:
            raise RunFolderError(
                f"{self.path}: its records cannot be taken back to step {step}: {error}. Make room and go on "
                "with --resume"
            ) from error
        for tracker in self._trackers:
            tracker.rewind(step)

    def _ended_tickets(self, step: int) -> EndedTickets:
        for checkpoint in self.checkpoints.all():
            if checkpoint.step == step:
                ledger = json.loads((checkpoint.path / LEDGER_FILE).read_text(encoding="utf-8"))
                return EndedTickets(ledger.get("next_ticket", 0), frozenset(ledger.get("open_tickets", ())))
        return NO_TICKETS

    def begin_checkpoint(self, step: int) -> Path:
        """A temporary folder for the learner's ranks to write the checkpoint of `step` into."""
        return self.checkpoints.begin(step)

    def commit_checkpoint(self, step: int, score: float | None = None) -> Checkpoint:
        """Prove and publish what was written since `begin_checkpoint(step)`; prune older ones."""
        return self.checkpoints.commit(step, score)

    def latest_checkpoint(self) -> Checkpoint | None:
        """The newest undamaged checkpoint (see `CheckpointStore.latest`)."""
        return self.checkpoints.latest()

    def close(self) -> None:
        """Flush and close the trackers, give up the lock. Safe to call twice."""
        if self._unwritten:
            self._write_lines()
        while self._trackers:
            tracker = self._trackers.pop()
            try:
                tracker.close()
            except OSError as error:
                log.error("%s could not be closed: %s", type(tracker).__name__, error)
        if self.mirror is not None:
            self.mirror.close()
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def read_metrics(path: Path) -> list[dict[str, float | None]]:
    """All lines of a `metrics.jsonl`, merged by step, in order of step; keys besides `step` and
    `time_s` as written. A last line cut off by a crash is left out."""
    merged: dict[int, dict[str, float | None]] = {}
    if not path.is_file():
        return []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        merged.setdefault(line["step"], {}).update(line)
    return [merged[step] for step in sorted(merged)]


def _entries(path: Path) -> list[Path]:
    """What lies in a run folder, the lock aside."""
    return [entry for entry in path.iterdir() if entry.name != LOCK_FILE]


def _is_run_or_empty(path: Path) -> bool:
    if not path.is_dir() or (path / "config.yaml").is_file():
        return path.is_dir()
    return all(entry.name.startswith(".config.yaml.") for entry in _entries(path))


def _free_or_run(config: Config, *, resume: bool, overwrite: bool) -> Path:
    """Where a run's folder is or is to be. Raises RunFolderError when something else is there."""
    path = Path(config.run.root) / config.run.name
    if resume and overwrite:
        raise RunFolderError(f"{path}: --resume and --overwrite exclude each other; give one")
    if path.exists() and not _is_run_or_empty(path):
        raise RunFolderError(
            f"{path}: exists, but is no run folder (no config.yaml in it); choose another run.name"
        )
    return path


def _check_existing(path: Path, config: Config, stage: str, *, resume: bool, overwrite: bool) -> None:
    """Check that an earlier run in the folder, if there is one, may be gone on with or replaced."""
    if not (path / "config.yaml").is_file() or overwrite:
        return
    if not resume:
        raise RunFolderError(
            f"{path}: this run folder exists; go on with it by --resume, replace it by --overwrite, "
            "or choose another run.name"
        )
    checkpoints = CheckpointStore(path / "checkpoints").all()
    check_resumable(
        path,
        load_config(str(path / "config.yaml")),
        config,
        stage=stage,
        stage_before=_stage_of(path),
        has_checkpoint=bool(checkpoints),
    )


def _clear(path: Path) -> None:
    for entry in _entries(path):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _stage_of(path: Path) -> str | None:
    """The stage of the run in a folder, as far as its status says."""
    try:
        return str(json.loads((path / "status.json").read_text(encoding="utf-8"))["stage"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _end_last_line(path: Path) -> None:
    """Complete a line that a crash cut off, so that the next one starts on its own."""
    if not path.is_file() or path.stat().st_size == 0:
        return
    with path.open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")
