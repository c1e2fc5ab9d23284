"""Which error may end a life of the driver, and which fault it takes to justify it."""

from simulation.faults import Faults
from simulation.settings import AMPLE, Setting

from alphadrive.config import Config
from alphadrive.errors import (
    CheckpointError,
    CheckpointWriteError,
    DeadLetterError,
    EngineDiedError,
    LearnerDiedError,
    LearnerError,
    NonFiniteError,
    ResourceError,
    RunFolderError,
    StalledError,
    WeightSyncError,
)

WRONG_WEIGHTS = (
    "weights do not arrive",
    "weights arrive damaged",
    "weights arrive and are not used",
    "engine refuses an update",
)
LOSES_LEARNER = (
    "learner rank dies",
    "learner rank dies exporting",
    "learner rank dies after its step",
    "learner rank hangs",
    "idle learner rank dies",
    "idle learner rank hangs",
    "node is lost",
    "node is drained",
)
"""Each of them may cost one restart of the learner, and no more."""

STARTING = ("rendezvous", "start", "load")
"""Calls of the learner before the run has begun: it is not restarted then."""


def is_justified(error: BaseException, faults: Faults, config: Config, setting: Setting) -> bool:
    """Whether the faults that struck in this life explain that the run ended with this error."""
    is_full = faults.any_of("disk is full")
    if isinstance(error, NonFiniteError):
        return faults.any_of("step is not finite", "query whose step is not finite")
    if isinstance(error, LearnerDiedError) and "is used up" not in str(error):
        is_start = any(
            f"{method} did not" in str(error) or f"in {method}" in str(error) for method in STARTING
        )
        return is_start and faults.any_of(*LOSES_LEARNER)
    if isinstance(error, LearnerDiedError):
        num_losses = sum(faults.struck[name] for name in LOSES_LEARNER)
        return num_losses > config.learner.max_restarts
    if isinstance(error, LearnerError):
        return faults.any_of("learner rank raises")
    if isinstance(error, ResourceError):
        return faults.any_of("no room for the learner")
    if isinstance(error, EngineDiedError):
        return config.rollout.max_restarts < AMPLE and bool(faults.struck)
    if isinstance(error, WeightSyncError):
        return faults.any_of(*WRONG_WEIGHTS)
    if isinstance(error, DeadLetterError):
        bad = setting.poison_rows | setting.failing_rows | setting.raising_rows | setting.hanging_rows
        return bool(faults.struck) or bool(bad)
    if isinstance(error, CheckpointWriteError):
        return is_full and ("it is the run's last" in str(error) or "3. in a row" in str(error))
    if isinstance(error, CheckpointError):
        return "every checkpoint is damaged" in str(error)
    if isinstance(error, RunFolderError):
        return is_full and "No space left" in str(error)
    if isinstance(error, StalledError):
        is_start = "is STARTING" in str(error) or "up so far: engines 0" in str(error)
        return (is_start and faults.any_of("idle engine hangs")) or faults.any_of("engine hangs starting")
    if isinstance(error, ValueError):
        return faults.any_of("engine raises something odd")
    return False
