"""Every error this project raises on purpose.

    AlphaDriveError
    ├── InputError            exit code 2: the user's input is wrong, nothing expensive was started
    │   ├── ConfigError       a configuration key, value or combination
    │   ├── DataError         a dataset, an image, a row
    │   ├── ModelError        a model folder
    │   ├── RunFolderError    a run folder that exists, is missing or is damaged
    │   ├── NodeError         a node of the cluster does not see the files that the others see
    │   └── ResourceError     more asked for than this machine or cluster has
    ├── TeacherError          the teacher's endpoint refused, failed, or gave too few usable answers
    ├── ClusterError          Ray could not be started or joined
    ├── RunNotLiveError       a run was asked something, and nothing of it runs or can be reached
    ├── RolloutError          an engine failed to answer
    │   ├── EngineDiedError   the engine's process is gone
    │   │   └── TransferCutError   a transfer of weights to it broke off or stood still
    │   ├── GarbageError      an engine returned something that is not what it was asked for
    │   └── GroupLostError    a drawn group is gone with the node that held it
    ├── RewardError           a reward raised, hung or returned something that is no finite number
    │   └── RewardWorkerDiedError   no reward worker can be had any more
    ├── LearnerError          the learner failed
    │   ├── NonFiniteError    a loss or a gradient that is not finite
    │   └── LearnerDiedError  a rank's process is gone or hangs: the learner restarts from a checkpoint
    ├── WeightSyncError       an engine does not hold the weights it claims
    ├── PolicyLagError        a group older than the configured bound reached the learner
    ├── DeadLetterError       more groups were dead-lettered than the configuration allows
    ├── StalledError          a run in which nothing was done for too long
    └── CheckpointError       a checkpoint that is incomplete or fails its hashes
        └── CheckpointWriteError  one that could not be written: the disk is full or fails

Each class takes one positional message, so that it survives pickling through Ray. A message says
what, got, expected and what to do.
"""


class AlphaDriveError(Exception):
    """Base of all errors this project raises on purpose."""

    exit_code = 1


class InputError(AlphaDriveError):
    """The user's input is wrong; found before anything expensive started."""

    exit_code = 2


class ConfigError(InputError):
    """A configuration key, value or combination of values is wrong."""


class DataError(InputError):
    """A dataset, an image or a row is wrong; the message names file, row and field."""


class ModelError(InputError):
    """A model folder cannot be used."""


class RunFolderError(InputError):
    """A run folder already exists, is missing or is damaged."""


class NodeError(InputError):
    """A node of the cluster does not see a file or folder, or another one than the driver."""


class ResourceError(InputError):
    """More workers, memory or disk asked for than there is."""


class TeacherError(AlphaDriveError):
    """The teacher's endpoint refused or failed, or too few of its answers passed the checks."""


class ClusterError(AlphaDriveError):
    """Ray could not be started or joined."""


class RunNotLiveError(AlphaDriveError):
    """A run was asked something, and nothing of it runs or can be reached."""


class RolloutError(AlphaDriveError):
    """A rollout engine failed to answer."""


class EngineDiedError(RolloutError):
    """A rollout engine's process is gone."""


class TransferCutError(EngineDiedError):
    """A transfer of weights broke off or stood still: the engine may hold parts of two versions."""

    MARK = "transfer cut: "
    """How its messages start: of an error in an engine's own processes the message is all that comes out."""


class GarbageError(RolloutError):
    """A rollout engine returned something that is not what it was asked for."""


class GroupLostError(RolloutError):
    """A group that was drawn is gone with the node that held it."""


class RewardError(AlphaDriveError):
    """A reward raised, hung or returned something that is not a finite number."""


class RewardWorkerDiedError(RewardError):
    """No reward worker can be had any more."""


class LearnerError(AlphaDriveError):
    """The learner failed."""


class NonFiniteError(LearnerError):
    """A loss or a gradient is not finite."""


class LearnerDiedError(LearnerError):
    """A learner rank's process is gone, or hangs; what is left of the learner can only be ended."""


class LearnerMovesError(LearnerDiedError):
    """The learner is given up because a node of it goes away."""


class WeightSyncError(AlphaDriveError):
    """An engine does not hold the weights it claims to hold."""


class PolicyLagError(AlphaDriveError):
    """A group older than the configured bound reached the learner."""


class DeadLetterError(AlphaDriveError):
    """More groups were dead-lettered than the configuration allows."""


class StalledError(AlphaDriveError):
    """Nothing was done for too long; the message names what waits for what."""


class CheckpointError(AlphaDriveError):
    """A checkpoint is incomplete or fails its hashes."""


class CheckpointWriteError(CheckpointError):
    """A checkpoint could not be written: the disk is full, or fails."""
