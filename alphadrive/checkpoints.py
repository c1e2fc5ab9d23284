"""Checkpoints that are complete and proved, or not there at all.

    begin(step)        checkpoints/.tmp-step_000120/      the learner's ranks write into it
    commit(step)       fsync every file → manifest.json (SHA-256 of each) → fsync → rename to
                       checkpoints/step_000120/ → only now `best` is pointed anew and older ones removed
    latest()           the newest one whose every file matches its manifest; a damaged one is refused
                       in the log and the one before it is used

    checkpoints/best   link to the checkpoint whose policy was worth most when evaluated; it never names one
                       that is about to go: it is pointed anew first, in one step

What the files hold is the learner's business. One process commits; ranks on other nodes need a shared
file system. Others may read meanwhile.
"""

import logging
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from alphadrive.atomic import fsync_path
from alphadrive.errors import CheckpointError, CheckpointWriteError
from alphadrive.manifest import files_below, read_manifest, seal, verify

BEST = "best"

_TEMPORARY = ".tmp-"
_REPLACED = ".replaced-"
_ABANDONED = ".abandoned-"
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
    """The `checkpoints/` folder of one run.

    Kept are the `keep_last` newest and, of those that were evaluated, the `keep_best` worth most.
    """

    def __init__(self, folder: Path, keep_last: int = 2, keep_best: int = 0) -> None:
        self.folder = folder
        self.keep_last = keep_last
        self.keep_best = keep_best
        self._num_sealed = 0

    def progress(self) -> tuple[int, int]:
        """Files sealed by commits so far, and bytes in folders that are being written: while a checkpoint is
        being written one of the two grows."""
        return self._num_sealed, sum(map(bytes_below, self.folder.glob(f"{_TEMPORARY}*")))

    def begin(self, step: int) -> Path:
        """An empty folder to write the checkpoint of `step` into; nothing is visible before `commit`.

        Raises CheckpointWriteError when less room is left than the newest checkpoint takes.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._recover_replaced()
        for leftover in self.folder.glob(f"{_TEMPORARY}*"):
            _delete(leftover)
        self._check_room()
        temporary = self._temporary(step)
        temporary.mkdir()
        return temporary

    def commit(self, step: int, score: float | None = None) -> Checkpoint:
        """Make what was written since `begin(step)` the checkpoint of `step`, then prune older ones.

        `score` is what its policy is worth, where it was evaluated: higher is better. A checkpoint of the
        same step, or of a later one (left by an attempt that was rolled back), is replaced. Raises
        CheckpointError when nothing was written, OSError when it cannot be finished: then it is not there.
        """
        temporary, final = self._temporary(step), self._final(step)
        if not temporary.is_dir() or not files_below(temporary):
            raise CheckpointError(
                f"{temporary}: nothing to commit; expected files written since begin({step})"
            )
        seal(temporary, step, None if score is None else float(score), self._count_sealed)
        if final.exists():
            self._point_best([other for other in self.all() if other.step != step])
            final.rename(self._replaced(step))
        temporary.rename(final)
        fsync_path(self.folder)
        log.info("checkpoint of step %d committed: %s", step, final)
        try:
            self._prune(step)
        except OSError as error:
            log.warning("old checkpoints could not be removed, the next commit tries again: %s", error)
        return Checkpoint(step=step, path=final)

    def discard(self, step: int) -> None:
        """Remove what was written since `begin(step)`, as far as that is possible."""
        shutil.rmtree(self._temporary(step), ignore_errors=True)

    def abandon_later(self, step: int) -> None:
        """Put checkpoints later than `step` out of sight, for good: a run that goes on from `step` does not
        come back to them. The next commit deletes them."""
        # Again, for behind one there may be what it had replaced, which a crash has left.
        while later := [checkpoint for checkpoint in self.all() if checkpoint.step > step]:
            self._point_best([checkpoint for checkpoint in self.all() if checkpoint.step <= step])
            for checkpoint in later:
                aside = self.folder / f"{_ABANDONED}{checkpoint.path.name}"
                shutil.rmtree(aside, ignore_errors=True)
                checkpoint.path.rename(aside)
                log.warning(
                    "checkpoint of step %d put aside: the run goes on from step %d", checkpoint.step, step
                )

    def all(self) -> list[Checkpoint]:
        """Every committed checkpoint, oldest first, not verified. Changes nothing."""
        if not self.folder.is_dir():
            return []
        paths = {path.name: path for path in self.folder.iterdir() if path.is_dir() and not path.is_symlink()}
        for name in [name for name in paths if name.startswith(_REPLACED)]:
            paths.setdefault(name.removeprefix(_REPLACED), paths[name])
        found = [(match, path) for name, path in paths.items() if (match := _NAME.fullmatch(name))]
        checkpoints = [Checkpoint(step=int(match[1]), path=path) for match, path in found]
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

    def best(self) -> tuple[Checkpoint, float] | None:
        """The checkpoint worth most and its score; of two worth the same, the later. None where no
        checkpoint was evaluated."""
        ranked = _ranked(self.all())
        return ranked[0] if ranked else None

    def _count_sealed(self) -> None:
        self._num_sealed += 1

    def _prune(self, committed_step: int) -> None:
        checkpoints = self.all()
        earlier = [checkpoint for checkpoint in checkpoints if checkpoint.step <= committed_step]
        best = [checkpoint for checkpoint, _ in _ranked(earlier)[: self.keep_best]]
        kept = [checkpoint for checkpoint in earlier if checkpoint in earlier[-self.keep_last :] + best]
        self._point_best(kept)
        for checkpoint in checkpoints:
            if checkpoint not in kept:
                # A folder that a crash leaves half deleted must not have the name of a checkpoint.
                aside = self.folder / f"{_TEMPORARY}removed-{checkpoint.path.name}"
                checkpoint.path.rename(aside)
                _delete(aside)
        for pattern in (f"{_REPLACED}*", f"{_ABANDONED}*"):
            for leftover in self.folder.glob(pattern):
                _delete(leftover)

    def _point_best(self, candidates: list[Checkpoint]) -> None:
        """Point the link at the best of the candidates, or remove it; never at anything else on the way."""
        link = self.folder / BEST
        ranked = _ranked(candidates) if self.keep_best else []
        if not ranked:
            if link.is_symlink():
                link.unlink()
                fsync_path(self.folder)
            return
        target = ranked[0][0].path.name
        if link.is_symlink() and os.readlink(link) == target:
            return
        new = self.folder / f"{_TEMPORARY}{BEST}"
        try:
            new.unlink(missing_ok=True)
            new.symlink_to(target)
            new.replace(link)
            fsync_path(self.folder)
        except OSError as error:
            log.warning("%s could not be pointed at %s: %s", link, target, error)
            if link.is_symlink():
                link.unlink()

    def _check_room(self) -> None:
        """A full disk found before the learner's ranks write for minutes."""
        committed = self.all()
        if not committed:
            return
        try:
            needed = read_manifest(committed[-1].path).num_bytes
        except CheckpointError:
            return
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise CheckpointWriteError(
                f"{self.folder}: {free} bytes free, the newest checkpoint takes {needed}: make room"
            )

    def _recover_replaced(self) -> None:
        """Undo a replacement that a crash cut in half."""
        for replaced in self.folder.glob(f"{_REPLACED}*"):
            final = self.folder / replaced.name.removeprefix(_REPLACED)
            if final.exists():
                _delete(replaced)
            else:
                replaced.rename(final)

    def _final(self, step: int) -> Path:
        return self.folder / f"step_{step:06d}"

    def _temporary(self, step: int) -> Path:
        return self.folder / f"{_TEMPORARY}step_{step:06d}"

    def _replaced(self, step: int) -> Path:
        return self.folder / f"{_REPLACED}step_{step:06d}"


def bytes_below(folder: Path) -> int:
    """Bytes of all files in a folder that others are writing; 0 when it goes away meanwhile."""
    try:
        return sum(path.stat().st_size for path in folder.rglob("*"))
    except FileNotFoundError:
        return 0


def _ranked(checkpoints: list[Checkpoint]) -> list[tuple[Checkpoint, float]]:
    """Those that were evaluated and their scores, the best first; one whose manifest is damaged is none."""
    scored: list[tuple[Checkpoint, float]] = []
    for checkpoint in checkpoints:
        try:
            score = read_manifest(checkpoint.path).score
        except CheckpointError:
            continue
        if score is not None:
            scored.append((checkpoint, score))
    return sorted(scored, key=lambda pair: (pair[1], pair[0].step), reverse=True)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
