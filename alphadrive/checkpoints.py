"""Checkpoints that are complete and proved, or not there at all.

    begin(step)        checkpoints/.tmp-step_000120/      the learner's ranks write into it
    commit(step)       fsync every file → manifest.json (SHA-256 of each) → fsync → rename to
                       checkpoints/step_000120/ → only now remove older ones
    latest()           the newest one whose every file matches its manifest; a damaged one is refused
                       in the log and the one before it is used

What the files hold is the learner's business. One process commits; ranks on other nodes need a shared
file system.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from alphadrive.atomic import fsync_path
from alphadrive.errors import CheckpointError

MANIFEST = "manifest.json"
MANIFEST_VERSION = 1

_TEMPORARY = ".tmp-"
_REPLACED = ".replaced-"
_NAME = re.compile(r"step_(\d{6,})")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A committed checkpoint: its `step` and its folder, with `model/` inside."""

    step: int
    path: Path

    @property
    def model_path(self) -> Path:
        """The model folder, loadable with `from_pretrained`."""
        return self.path / "model"


class CheckpointStore:
    """The `checkpoints/` folder of one run."""

    def __init__(self, folder: Path, keep_last: int = 2) -> None:
        self.folder = folder
        self.keep_last = keep_last

    def begin(self, step: int) -> Path:
        """An empty folder to write the checkpoint of `step` into; nothing is visible before `commit`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._recover_replaced()
        for leftover in self.folder.glob(f"{_TEMPORARY}*"):
            shutil.rmtree(leftover)
        temporary = self._temporary(step)
        temporary.mkdir()
        return temporary

    def commit(self, step: int) -> Checkpoint:
        """Make what was written since `begin(step)` the checkpoint of `step`, then prune older ones.

        A checkpoint of the same step, or of a later one (left by an attempt that was rolled back), is
        replaced. Raises CheckpointError when nothing was written.
        """
        temporary, final = self._temporary(step), self._final(step)
        files = _files_below(temporary) if temporary.is_dir() else []
        if not files:
            raise CheckpointError(
                f"{temporary}: nothing to commit; expected files written since begin({step})"
            )
        for file in files:
            fsync_path(file)
        _write_manifest(temporary, step, files)
        for folder in [path for path in temporary.rglob("*") if path.is_dir()]:
            fsync_path(folder)
        fsync_path(temporary)
        if final.exists():
            final.rename(self._replaced(step))
        temporary.rename(final)
        fsync_path(self.folder)
        log.info("checkpoint of step %d committed: %s", step, final)
        self._prune(step)
        return Checkpoint(step=step, path=final)

    def all(self) -> list[Checkpoint]:
        """Every committed checkpoint, oldest first, not verified."""
        if not self.folder.is_dir():
            return []
        self._recover_replaced()
        found = [(_NAME.fullmatch(path.name), path) for path in self.folder.iterdir() if path.is_dir()]
        checkpoints = [Checkpoint(step=int(match[1]), path=path) for match, path in found if match]
        return sorted(checkpoints, key=lambda checkpoint: checkpoint.step)

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that verifies; None when there is none at all.

        A damaged one is reported in the log as an error and passed over. Raises CheckpointError when
        there are checkpoints and every one is damaged: a run must not silently start over.
        """
        damaged: list[str] = []
        for checkpoint in reversed(self.all()):
            try:
                verify(checkpoint.path)
            except CheckpointError as error:
                log.error("refused checkpoint of step %d: %s", checkpoint.step, error)
                damaged.append(str(error))
                continue
            if damaged:
                log.error("going on from step %d, the newest undamaged checkpoint", checkpoint.step)
            return checkpoint
        if damaged:
            raise CheckpointError(
                "every checkpoint is damaged; restore one or start anew:\n" + "\n".join(damaged)
            )
        return None

    def _prune(self, committed_step: int) -> None:
        shutil.rmtree(self._replaced(committed_step), ignore_errors=True)
        checkpoints = self.all()
        for checkpoint in checkpoints:
            if checkpoint.step > committed_step:
                log.warning("removed checkpoint of step %d, of an abandoned attempt", checkpoint.step)
                shutil.rmtree(checkpoint.path)
        kept = [checkpoint for checkpoint in checkpoints if checkpoint.step <= committed_step]
        for checkpoint in kept[: -self.keep_last]:
            shutil.rmtree(checkpoint.path)

    def _recover_replaced(self) -> None:
        """Undo a replacement that a crash cut in half."""
        for replaced in self.folder.glob(f"{_REPLACED}*"):
            final = self.folder / replaced.name.removeprefix(_REPLACED)
            if final.exists():
                shutil.rmtree(replaced, ignore_errors=True)
            else:
                replaced.rename(final)

    def _final(self, step: int) -> Path:
        return self.folder / f"step_{step:06d}"

    def _temporary(self, step: int) -> Path:
        return self.folder / f"{_TEMPORARY}step_{step:06d}"

    def _replaced(self, step: int) -> Path:
        return self.folder / f"{_REPLACED}step_{step:06d}"


def verify(checkpoint: Path) -> None:
    """Check every file of a checkpoint folder against its manifest.

    Raises CheckpointError naming the file and what is wrong with it: no or unreadable manifest, a file
    missing, not listed, of another size, or of another SHA-256.
    """
    manifest = checkpoint / MANIFEST
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        listed = {
            name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in content["files"].items()
        }
    except FileNotFoundError:
        raise CheckpointError(f"{manifest}: missing; the checkpoint was never committed") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{manifest}: not readable: {error}") from error
    if not listed:
        raise CheckpointError(f"{manifest}: lists no files")
    present = {_relative(file, checkpoint) for file in _files_below(checkpoint)} - {MANIFEST}
    if present != set(listed):
        raise CheckpointError(
            f"{checkpoint}: files missing: {sorted(set(listed) - present)}, "
            f"not in the manifest: {sorted(present - set(listed))}"
        )
    for name, (num_bytes, digest) in listed.items():
        actual_bytes = (checkpoint / name).stat().st_size
        if actual_bytes != num_bytes:
            raise CheckpointError(f"{checkpoint / name}: {actual_bytes} bytes, expected {num_bytes}")
        if sha256_of(checkpoint / name) != digest:
            raise CheckpointError(f"{checkpoint / name}: SHA-256 differs from the manifest's")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in bounded memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_manifest(folder: Path, step: int, files: list[Path]) -> None:
    entries = {
        _relative(file, folder): {"bytes": file.stat().st_size, "sha256": sha256_of(file)} for file in files
    }
    content = {"version": MANIFEST_VERSION, "step": step, "files": entries}
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _relative(file: Path, folder: Path) -> str:
    return file.relative_to(folder).as_posix()
