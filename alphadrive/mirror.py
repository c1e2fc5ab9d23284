"""A second copy of a run's checkpoints, at an address: what is left when the machine or its disk is not.

    ADDRESS/RUN/config.yaml, status.json           as they were at the newest copy
    ADDRESS/RUN/checkpoints/step_000120/...        every file, then, when all are there, manifest.json

Copied in the background after each commit, one at a time; one without its manifest is none. As many are
kept as in the run's folder. `restore` brings the newest whole one to a folder that has none as new. A
`RunFolder` holds one. A learner's checkpoint runs code when it is loaded: who may write at the address must
be trusted.
"""

import logging
import re
import shutil
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path, PurePosixPath

from alphadrive.checkpoints import Checkpoint, CheckpointStore
from alphadrive.config import Config
from alphadrive.errors import CheckpointError, CheckpointWriteError, RunFolderError
from alphadrive.manifest import MANIFEST, parse_manifest, verify
from alphadrive.object_store import Store

BESIDE = ("config.yaml", "status.json")
"""What of a run's folder goes with its checkpoints: what `--resume` compares with."""

_STEP = re.compile(r"step_(\d{6,})")

log = logging.getLogger(__name__)


class CheckpointMirror:
    """The mirror of one run. `num_bytes` grows while something is copied; `copying` is the copy under way or
    the last one. Close it, so that a copy that nobody waits for ends."""

    def __init__(self, address: str, run_name: str, keep_last: int, keep_best: int) -> None:
        self.place = f"{address.rstrip('/')}/{run_name}"
        self.num_bytes = 0
        self.copying: Future[None] | None = None
        self._keep_last, self._keep_best = keep_last, keep_best
        self._is_over = threading.Event()
        self._copier = ThreadPoolExecutor(1, thread_name_prefix="mirror")
        try:
            self._store = Store.at(self.place)
        except OSError as error:
            raise RunFolderError(self._problem("cannot be reached", error)) from error

    @classmethod
    def of(cls, config: Config) -> "CheckpointMirror | None":
        """The mirror that a configuration asks for. Raises RunFolderError when its address cannot be used."""
        checkpoint = config.checkpoint
        if checkpoint.mirror is None:
            return None
        return cls(checkpoint.mirror, config.run.name, checkpoint.keep_last, checkpoint.keep_best)

    def check_new(self, *, may_have_earlier: bool) -> None:
        """Raises RunFolderError where checkpoints of an earlier run are and may not be, or the address cannot
        be used."""
        try:
            steps = self.steps()
        except OSError as error:
            raise RunFolderError(self._problem("cannot be used", error)) from error
        if steps and not may_have_earlier:
            raise RunFolderError(
                f"{self.place}: holds a checkpoint of step {steps[-1]} of an earlier run; go on from it "
                "by --resume, replace it by --overwrite, or choose another run.name or checkpoint.mirror"
            )

    def start_anew(self, *, overwrite: bool) -> None:
        """Make sure that a new run finds no checkpoints of another one; removes them with `overwrite`.

        Raises RunFolderError where there are some, or the address cannot be used.
        """
        self.check_new(may_have_earlier=overwrite)
        try:
            self._store.delete_folder("checkpoints")
        except OSError as error:
            raise RunFolderError(self._problem("cannot be used", error)) from error

    def restore(self, run: Path) -> None:
        """Bring the newest whole checkpoint to a run's folder that has none as new, with what goes beside it.

        One that is damaged is reported in the log and passed over. Raises CheckpointError when there is
        then none at all, RunFolderError when the address cannot be read.
        """
        here = [checkpoint.step for checkpoint in CheckpointStore(run / "checkpoints").all()]
        damaged: list[str] = []
        try:
            for step in reversed([step for step in self.steps() if step > max(here, default=-1)]):
                problem = self._fetched(run, step)
                if problem is None:
                    return
                damaged.append(problem)
        except OSError as error:
            raise RunFolderError(self._problem("cannot be read", error)) from error
        if damaged and not here:
            raise CheckpointError("every checkpoint of the mirror is damaged:\n" + "\n".join(damaged))

    def write_beside(self, run: Path) -> None:
        """Copy what goes beside the checkpoints, now. Raises RunFolderError when that cannot be written."""
        try:
            for name in BESIDE:
                if (run / name).is_file():
                    self._store.put(run / name, name)
        except OSError as error:
            raise RunFolderError(self._problem("cannot be written", error)) from error

    def copy(self, run: Path, checkpoint: Checkpoint) -> None:
        """Begin to copy a committed checkpoint, when the one before has been copied: see `copying`."""
        self.copying = self._copier.submit(self._copy, run, checkpoint)

    def steps(self) -> list[int]:
        """Steps of the whole checkpoints, in order. Raises OSError."""
        names = map(PurePosixPath, self._store.files("checkpoints"))
        sealed = [name.parts[0] for name in names if len(name.parts) == 2 and name.name == MANIFEST]
        return sorted(int(match[1]) for name in sealed if (match := _STEP.fullmatch(name)))

    def close(self) -> None:
        """End the copy under way, if there is one, at its next part."""
        self._is_over.set()
        self._copier.shutdown()

    def _copy(self, run: Path, checkpoint: Checkpoint) -> None:
        folder = _folder(checkpoint.step)
        try:
            for step in self.steps():
                if step > checkpoint.step:  # of an attempt that was taken back
                    self._remove(_folder(step))
            self._remove(folder)
            manifest = parse_manifest((checkpoint.path / MANIFEST).read_bytes(), checkpoint.path / MANIFEST)
            for name in manifest.files:
                self._store.put(checkpoint.path / name, f"{folder}/{name}", self._note_bytes)
            self._compare(folder, {name: size for name, (size, _) in manifest.files.items()})
            self._store.put(checkpoint.path / MANIFEST, f"{folder}/{MANIFEST}")
            self.write_beside(run)
            self._prune()
        except (OSError, CheckpointError, RunFolderError) as error:
            raise CheckpointWriteError(
                f"the checkpoint of step {checkpoint.step} could not be copied to {self.place}: {error}"
            ) from error
        log.info("checkpoint of step %d copied: %s/%s", checkpoint.step, self.place, folder)

    def _compare(self, folder: str, expected: dict[str, int]) -> None:
        got = self._store.files(folder)
        wrong = sorted(name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name))
        if wrong:
            raise CheckpointError(
                f"{wrong[0]}: {got.get(wrong[0])} bytes there, {expected.get(wrong[0])} here"
            )

    def _prune(self) -> None:
        steps = self.steps()
        scores = [(self._score(step), step) for step in steps]
        ranked = sorted((score, step) for score, step in scores if score is not None)
        kept = {step for _, step in ranked[max(0, len(ranked) - self._keep_best) :]}
        kept |= set(steps[-self._keep_last :])
        there = {f"checkpoints/{name.partition('/')[0]}" for name in self._store.files("checkpoints")}
        for folder in there - set(map(_folder, kept)):
            self._remove(folder)

    def _score(self, step: int) -> float | None:
        name = f"{_folder(step)}/{MANIFEST}"
        try:
            return parse_manifest(self._store.read(name), PurePosixPath(self.place) / name).score
        except CheckpointError:
            return None

    def _remove(self, folder: str) -> None:
        self._store.delete(f"{folder}/{MANIFEST}")
        self._store.delete_folder(folder)

    def _fetched(self, run: Path, step: int) -> str | None:
        """Bring one checkpoint to a run's folder; returns what is wrong with it, if anything is."""
        for name in BESIDE:  # config.yaml first: with it the folder is a run's, wherever this is cut off
            if not (run / name).exists():
                with suppress(FileNotFoundError):
                    self._store.fetch(name, run / f".{name}.tmp")
                    (run / f".{name}.tmp").replace(run / name)
        final = run / _folder(step)
        temporary = final.with_name(f".tmp-{final.name}")
        shutil.rmtree(temporary, ignore_errors=True)
        for name in self._store.files(_folder(step)):
            self._store.fetch(f"{_folder(step)}/{name}", temporary / name)
        for path in [temporary, *temporary.rglob("*")]:
            path.chmod(path.stat().st_mode & ~0o022)
        try:
            verify(temporary)
        except CheckpointError as error:
            shutil.rmtree(temporary)
            log.error("refused checkpoint of step %d from %s: %s", step, self.place, error)
            return str(error)
        temporary.rename(final)
        log.info("checkpoint of step %d fetched from %s", step, self.place)
        return None

    def _note_bytes(self, count: int) -> None:
        self.num_bytes += count
        if self._is_over.is_set():
            raise OSError("the run has ended")

    def _problem(self, what: str, error: OSError) -> str:
        return (
            f"checkpoint.mirror: {self.place} {what}: {error}; credentials, region and endpoint are taken "
            "from the environment (docs/submitting.md)"
        )


def _folder(step: int) -> str:
    return f"checkpoints/step_{step:06d}"
