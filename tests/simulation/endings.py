"""Which error may end a life of the driver, and which fault it takes to justify it."""

import errno

from alphadrive.config import Config
from alphadrive.errors import (
    CheckpointError,
    DeadLetterError,
    EngineDiedError,
    LearnerError,
    NonFiniteError,
    RolloutError,
    WeightSyncError,
)
from simulation.faults import Faults
from simulation.settings import AMPLE, Setting

WRONG_WEIGHTS = (
    "weights do not arrive",
    "weights arrive damaged",
    "weights arrive and are not used",
    "engine refuses an update",
)
RANK_DIES = ("learner rank dies", "learner rank dies after its step", "idle learner rank dies")


def is_justified(error: BaseException, faults: Faults, config: Config, setting: Setting) -> bool:
    """Whether the faults that struck in this life explain that the run ended with this error."""
    if is_gap(error, faults):
        return True
    if isinstance(error, NonFiniteError):
        return faults.struck["step is not finite"] >= 3
    if isinstance(error, LearnerError):
        return faults.any_of(*RANK_DIES) or (faults.any_of("disk is full") and "OSError" in str(error))
    if isinstance(error, EngineDiedError):
        is_starting = "did not start" in str(error) and bool(faults.struck)
        return is_starting or (config.rollout.max_restarts < AMPLE and bool(faults.struck))
    if isinstance(error, RolloutError):
        return str(error).startswith("evaluation of") and bool(faults.struck)
    if isinstance(error, WeightSyncError):
        return faults.any_of(*WRONG_WEIGHTS)
    if isinstance(error, DeadLetterError):
        bad = setting.poison_rows | setting.failing_rows | setting.raising_rows | setting.hanging_rows
        return bool(faults.struck) or bool(bad)
    if isinstance(error, CheckpointError):
        return "every checkpoint is damaged" in str(error)
    if isinstance(error, OSError):
        return error.errno == errno.ENOSPC and faults.any_of("disk is full")
    return False


def is_gap(error: BaseException, faults: Faults) -> bool:
    """TEMPORARY: errors of the code as it was before pools and learner supervise themselves."""
    name = type(error).__name__
    return (
        (name == "ActorGoneError" and bool(faults.struck))
        or (name == "TimeoutError" and bool(faults.struck))
        or (name == "RolloutError" and "always fails" in str(error))
    )
