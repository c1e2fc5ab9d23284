"""What a user may name as a model: besides a model folder or a hub id, a run or one of its checkpoints."""

from pathlib import Path

from alphadrive.checkpoints import CheckpointStore
from alphadrive.errors import RunFolderError
from alphadrive.manifest import verify
from alphadrive.model_folder import resolve_model


def model_folder_of(model: str, revision: str | None = None) -> Path:
    """The checked model folder that a user means by a run (its newest undamaged checkpoint), a
    checkpoint (verified first), or anything `resolve_model` takes. Raises InputError when none."""
    path = Path(model)
    if (path / "checkpoints").is_dir():
        checkpoint = CheckpointStore(path / "checkpoints").latest()
        if checkpoint is None:
            raise RunFolderError(f"{path}: this run has no checkpoint yet; give a model folder")
        return resolve_model(str(checkpoint.model_path))
    if (path / "model").is_dir():
        verify(path)
        return resolve_model(str(path / "model"))
    return resolve_model(model, revision)
