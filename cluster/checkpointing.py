"""Writing a run's checkpoints, whatever stage it is in.

A checkpoint that cannot be written (a full disk) costs that checkpoint, not the run: what was written of
it is removed, the log, `status.json` and the metrics say so, and training goes on to the next one. Three
in a row end the run, and so does the last one of a run, which nothing would follow. The same holds for its
copy in the run's mirror, where it has one: made while training goes on, it has until the next checkpoint.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from alphadrive.checkpoints import Checkpoint
from alphadrive.errors import CheckpointWriteError
from alphadrive.run_folder import LEDGER_FILE, RunFolder
from cluster.status import RunStatus

MAX_IN_A_ROW = 3

logger = logging.getLogger(__name__)


class CheckpointWriter:
    """Writes the checkpoints of one attempt. `last_step` is the step of the last one written, `num_failed`
    how many in a row could not be."""

    def __init__(self, run: RunFolder, status: RunStatus) -> None:
        self.last_step: int | None = None
        self.num_failed = 0
        self._run, self._status = run, status
        self._copy_problem: str | None = None

    async def write(
        self,
        step: int,
        save: Callable[[Path], Awaitable[None]],
        ledger: Callable[[], Mapping[str, object]],
        *,
        score: float | None = None,
        is_last: bool = False,
    ) -> Checkpoint | None:
        """Have `save` write the learner into a folder, add the ledger as it is then, commit.

        None when that could not be written. Raises CheckpointWriteError when it was the third in a row or
        the last of the run.
        """
        try:
            folder = self._run.begin_checkpoint(step)
            await save(folder)
            (folder / LEDGER_FILE).write_text(json.dumps(ledger()), encoding="utf-8")
            await self._copied()  # what is being copied must not be pruned
            committed = await _to_its_end(asyncio.to_thread(self._run.commit_checkpoint, step, score))
        except (OSError, CheckpointWriteError) as error:
            self._run.checkpoints.discard(step)
            self._note_failure(step, error, is_last)
            return None
        self.last_step, self.num_failed = step, 0
        self._status.write(checkpoint_step=step, checkpoint_problem=self._copy_problem)
        if self._run.mirror is not None:
            self._run.mirror.copy(self._run.path, committed)
        return committed

    async def end(self) -> None:
        """Wait for the last copy. Raises CheckpointWriteError when it, or one before it, failed."""
        await self._copied()
        if self._copy_problem is not None:
            raise CheckpointWriteError(
                f"{self._copy_problem} (it is the run's last); it is in {self._run.checkpoints.folder}"
            )

    def progress(self) -> object:
        """Something that changes as long as a checkpoint is being written."""
        mirror = self._run.mirror
        return self._run.checkpoints.progress(), mirror.num_bytes if mirror is not None else 0

    async def _copied(self) -> None:
        """Wait for the copy under way; what it could not do is told."""
        mirror = self._run.mirror
        if mirror is None or mirror.copying is None:
            return
        self._copy_problem = None
        try:
            await asyncio.wrap_future(mirror.copying)
        except CheckpointWriteError as error:
            self._copy_problem = str(error)
            self._status.write(checkpoint_problem=self._copy_problem)
            logger.error("%s; training goes on", error)

    def _note_failure(self, step: int, error: Exception, is_last: bool) -> None:
        self.num_failed += 1
        problem = f"the checkpoint of step {step} could not be written: {error}"
        self._status.write(checkpoint_problem=problem)
        if is_last or self.num_failed == MAX_IN_A_ROW:
            how = "it is the run's last" if is_last else f"the {MAX_IN_A_ROW}. in a row"
            raise CheckpointWriteError(
                f"{problem} ({how}). Make room and go on with --resume: what was done since the last "
                "checkpoint is done again"
            ) from error
        logger.error("%s; training goes on", problem)


async def _to_its_end(work: Coroutine[Any, Any, Checkpoint]) -> Checkpoint:
    """The result of what must not go on when nobody waits for it any more: a thread cannot be cancelled, and
    a commit that ends after the run went back to an older checkpoint would remove that."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        task.cancelled() or task.exception()
        raise
