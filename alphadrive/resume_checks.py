"""What `--resume` asks of a configuration: some keys must be what the run started with, others may change.

Checked before anything is started or written. Whether the data is the same is asked by `cluster.resuming`.
"""

import logging
from pathlib import Path

from alphadrive.config import Config, valid_keys
from alphadrive.config_checks import get_key
from alphadrive.errors import ConfigError

FIXED = {
    "seed": "the order of the data and the sampling follow from it",
    "model.dtype": "the optimizer's state is kept in it",
    "model.max_pixels": "prompts would be others",
    "data.sampling": "the ledger counts its draws",
    "data.trajectory": "prompts and answers would be others",
    "learner.freeze_vision": "the optimizer's state is of what is trained",
    "learner.lora_rank": "the optimizer's state is of what is trained",
    "learner.lora_alpha": "the adapters are scaled by it",
    "learner.lora_targets": "the optimizer's state is of what is trained",
}
"""Keys that must not change once there is a checkpoint, and why."""
FIXED_IN_STAGE = {
    "grpo": {"grpo.group_size": "rewards and advantages would not compare"},
    "sft": {"sft.batch_size": "the place in the data is counted in batches"},
}

log = logging.getLogger(__name__)


def check_resumable(
    path: Path,
    before: Config,
    now: Config,
    *,
    stage: str,
    stage_before: str | None,
    has_checkpoint: bool,
) -> None:
    """Compare a configuration with the one that the run in `path` has; says in the log what changed.

    Raises ConfigError for another stage and, where there is a checkpoint to go on from, for a key that must
    not change.
    """
    if has_checkpoint and stage_before is not None and stage != stage_before:
        raise ConfigError(
            f"{path}: holds a run of {stage_before}, which `alphadrive {stage}` cannot go on with; choose "
            f"another run.name (and model.path={path}, to start from its policy)"
        )
    fixed = FIXED | FIXED_IN_STAGE.get(stage, {}) if has_checkpoint else {}
    changed = [key for key in valid_keys() if get_key(before, key) != get_key(now, key)]
    problems = [
        f"{key}={get_key(now, key)}: the run in {path} has {get_key(before, key)}; {fixed[key]}"
        for key in changed
        if key in fixed
    ]
    if problems:
        raise ConfigError("\n".join([*problems, "set it back, or start a new run under another run.name"]))
    for key in changed:
        log.warning(
            "resuming with another %s: it was %r, now %r", key, get_key(before, key), get_key(now, key)
        )
