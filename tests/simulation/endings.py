"""Which error may end a life of the driver, and which fault it takes to justify it."""

import errno

from simulation.faults import Faults
from simulation.settings import AMPLE, Setting

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
from cluster.remote import ObjectGoneError

WRONG_WEIGHTS = (
    "weights do not arrive",
    "weights arrive damaged",
    "weights arrive and are not used",
    "engine refuses an update",
)
RANK_DIES = ("learner rank dies", "learner rank dies after its step", "idle learner rank dies")


def is_justified(error: BaseException, faults: Faults, config: Config, setting: Setting) -> bool:
    """Whether the faults that struck in this life explain that the run ended with this error."""
    if is_known(error, faults):
        return True
    if isinstance(error, NonFiniteError):
        return faults.struck["step is not finite"] >= 3
    if isinstance(error, LearnerError):
        is_disk = faults.any_of("disk is full") and "OSError" in str(error)
        return faults.any_of(*RANK_DIES) or is_disk
    if isinstance(error, EngineDiedError):
        return config.rollout.max_restarts < AMPLE and bool(faults.struck)
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


def is_known(error: BaseException, faults: Faults) -> bool:
    """Errors that a run should survive and does not yet; docs/parts-sim.md lists them."""
    is_node = faults.any_of("node is lost", "node is drained")
    is_odd = isinstance(error, ValueError) and faults.any_of("engine raises something odd")
    return is_odd or (isinstance(error, ObjectGoneError) and is_node)


def may_wedge(faults: Faults) -> bool:
    """Whether it is known that the run stands still: the learner is lost while nobody calls it."""
    return faults.any_of(*RANK_DIES)
