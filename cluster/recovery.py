"""A lost learner goes back to the last checkpoint, and the run goes on with it.

    train ──▶ the end
      │ LearnerDiedError                 the engines and reward workers stay up; groups under way are given up
      ▼
    end the ranks ─▶ rewind ledger, metrics, rollouts ─▶ start ranks from the checkpoint ─▶ train, attempt + 1

What else goes wrong (a bad batch, loss that is not finite, input) would go wrong again: it ends the run.
Used by GRPO and SFT.
"""

import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from alphadrive.errors import LearnerDiedError, LearnerMovesError
from cluster.launch import Attempt
from cluster.learner_group import LearnerGroup
from cluster.stall import guarded

logger = logging.getLogger(__name__)


async def train_with_restarts(
    attempt: Attempt,
    learner: LearnerGroup,
    train: Callable[[], Coroutine[Any, Any, None]],
    settle: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Run `train` to its end, from the last checkpoint again whenever the learner is lost.

    `settle` has other workers write what they hold of the attempt that ends. Raises what `train` raises,
    LearnerDiedError after `learner.max_restarts` restarts without a new checkpoint.
    """
    max_restarts = attempt.config.learner.max_restarts
    num_restarts, checkpoint_step = 0, attempt.version.step
    lost: LearnerDiedError | None = None
    while True:
        try:
            if lost is not None:
                await _go_back(attempt, learner, settle, lost)
                lost = None
            return await guarded(train(), learner.watch())
        except LearnerDiedError as error:
            if attempt.stop.was_asked:
                logger.warning("the learner was lost while the run was stopping: %s", error)
                return
            committed = attempt.run.checkpoints.all()
            step = committed[-1].step if committed else 0
            if not isinstance(error, LearnerMovesError):
                num_restarts = 1 if step > checkpoint_step else num_restarts + 1
            checkpoint_step = step
            if num_restarts > max_restarts:
                raise LearnerDiedError(
                    f"the learner was lost {num_restarts} times without a new checkpoint in between, "
                    f"learner.max_restarts={max_restarts} is used up; the last time: {error}"
                ) from error
            lost = error
            attempt.progress.say(
                f"learner lost: {error}; restart {num_restarts} of {max_restarts} from step {step}"
            )


async def _go_back(
    attempt: Attempt,
    learner: LearnerGroup,
    settle: Callable[[], Awaitable[None]] | None,
    lost: LearnerDiedError,
) -> None:
    attempt.stop.on_stop = None
    learner.end()
    if settle is not None:
        await settle()
    await attempt.begin_again(f"{type(lost).__name__}: {lost}")
    checkpoint = attempt.checkpoint
    await learner.restart(attempt.version, checkpoint.path if checkpoint else None)
