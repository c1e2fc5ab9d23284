"""Which learner wrote a checkpoint, whether another can go on from it, and the conversion that may need.

    learner.json   num_ranks, zero_stage, dtype, the shape of every parameter, which were frozen, and a
                   checksum of those (they are in no checkpoint)

DeepSpeed's files hold what each rank had: a learner of another number of ranks cannot read them. They are
then converted into a *universal* checkpoint (one file a parameter), which any number of ranks reads.
"""

import argparse
import contextlib
import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from alphadrive.errors import CheckpointError

SHAPE_FILE = "learner.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerShape:
    """What a learner must have in common with the one whose checkpoint it loads."""

    num_ranks: int
    zero_stage: int
    dtype: str
    parameters: dict[str, list[int]]
    frozen: list[str]
    frozen_sum: int = 0
    """Tells the frozen weights, which no checkpoint holds, from others."""

    def write(self, folder: Path) -> None:
        """Write it into a checkpoint."""
        (folder / SHAPE_FILE).write_text(json.dumps(dataclasses.asdict(self), indent=1), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read it from a checkpoint. Raises CheckpointError."""
        try:
            return cls(**json.loads((folder / SHAPE_FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"{folder / SHAPE_FILE}: not what the learner writes into its checkpoints: {error}"
            ) from error


def needs_conversion(saved: LearnerShape, now: LearnerShape, folder: Path) -> bool:
    """Whether the checkpoint in `folder` must be made universal before the learner `now` can load it.

    Raises CheckpointError when it cannot be loaded at all: another model (naming the first tensor that
    differs, and both shapes), another dtype, other frozen weights, or a ZeRO stage that DeepSpeed cannot
    convert to.
    """
    if problem := _tensor_problem(saved, now):
        raise CheckpointError(
            f"{folder}: the optimizer state of another model: {problem}; resume with the model.path and the "
            "learner.* keys that the run started with"
        )
    if saved.dtype != now.dtype:
        raise CheckpointError(
            f"{folder}: written with model.dtype={saved.dtype}, this run has {now.dtype}; resume with "
            "the first"
        )
    if saved.frozen_sum != now.frozen_sum:
        raise CheckpointError(
            f"{folder}: was trained beside frozen weights of checksum {saved.frozen_sum}, this run's have "
            f"{now.frozen_sum}; resume with the model.path that the run started from"
        )
    if saved.zero_stage != now.zero_stage and {saved.zero_stage, now.zero_stage} != {1, 2}:
        raise CheckpointError(
            f"{folder}: written with learner.zero_stage={saved.zero_stage}, this run has {now.zero_stage}; "
            "resume with the first (only 1 and 2 can be exchanged)"
        )
    if not now.zero_stage:
        return False
    return (saved.num_ranks, saved.zero_stage) != (now.num_ranks, now.zero_stage)


def _tensor_problem(saved: LearnerShape, now: LearnerShape) -> str | None:
    for name, shape in now.parameters.items():
        before = saved.parameters.get(name)
        if before is None:
            return f"{name} is {shape} here, the checkpoint has no such tensor"
        if before != shape:
            return f"{name} is {before} in the checkpoint, {shape} here"
        if (name in saved.frozen) != (name in now.frozen):
            states = ("trained", "frozen") if name in now.frozen else ("frozen", "trained")
            return f"{name} {shape} was {states[0]} by the checkpoint's learner, is {states[1]} here"
    for name in saved.parameters.keys() - now.parameters.keys():
        return f"{name} is {saved.parameters[name]} in the checkpoint, this model has no such tensor"
    return None


def make_universal(source: Path, target: Path) -> None:
    """Convert a folder of DeepSpeed's files. Takes as much disk again as the optimizer state, twice that
    while it works. Raises CheckpointError.

    In this process: DeepSpeed's own pools of workers would each import torch again.
    """
    from deepspeed.checkpoint import ds_to_universal

    arguments = argparse.Namespace(
        input_folder=str(source),
        output_folder=str(target),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    target.parent.mkdir(parents=True)
    try:
        with (
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            ds_to_universal.main(arguments)
    except Exception as error:
        raise CheckpointError(
            f"{source}: cannot be converted for another number of ranks: {type(error).__name__}: {error}"
        ) from error
