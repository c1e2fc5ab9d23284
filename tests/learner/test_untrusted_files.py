"""Files that run code when they are unpickled are refused by all that reads files, and run nothing."""

import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from alphadrive.checkpoints import CheckpointStore
from alphadrive.config import load_config
from alphadrive.data.parquet import DrivingDataset
from alphadrive.errors import CheckpointError, ConfigError, DataError, ModelError
from alphadrive.model_folder import check_model_folder
from alphadrive.teacher.answer_cache import AnswerCache
from learner.trainer import Trainer


class Trap:
    """Pickled, it makes a file wherever it is unpickled."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.sprung,)


@pytest.fixture
def sprung(tmp_path: Path) -> Path:
    """Is there once a trap was sprung."""
    return tmp_path / "sprung"


@pytest.fixture
def trap(sprung: Path) -> bytes:
    return pickle.dumps(Trap(sprung))


def test_the_trap_works(trap: bytes, sprung: Path) -> None:
    pickle.loads(trap)
    assert sprung.exists()


def test_random_states_of_a_checkpoint_are_read_as_data_only(tmp_path: Path, sprung: Path) -> None:
    torch.save({"python": Trap(sprung)}, tmp_path / "random_rank0.pt")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        Trainer.restore_random_states(SimpleNamespace(rank=0), tmp_path)
    assert not sprung.exists()


@pytest.mark.parametrize(
    "name", ["learner/states.pt", "random_rank0.pt", "ledger.json", "model/pytorch_model.bin"]
)
def test_a_file_of_a_checkpoint_that_was_replaced_or_added_is_never_handed_on(
    name: str, tmp_path: Path, trap: bytes, sprung: Path
) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", keep_last=2)
    folder = store.begin(1)
    (folder / "learner").mkdir()
    for file in ("learner/states.pt", "random_rank0.pt", "ledger.json"):
        (folder / file).write_bytes(b"as it was saved")
    committed = store.commit(1)
    target = committed.path / name
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(trap)
    with pytest.raises(CheckpointError):
        store.latest()
    assert not sprung.exists()


def _model(folder: Path, trap: bytes) -> None:
    for name in ("config.json", "pytorch_model.bin", "model.safetensors"):
        (folder / name).write_bytes(trap)
    check_model_folder(folder)


def _dataset(folder: Path, trap: bytes) -> None:
    (folder / "part-00000.parquet").write_bytes(trap)
    DrivingDataset(folder)


def _answers(folder: Path, trap: bytes) -> None:
    (folder / "answers.jsonl").write_bytes(trap + b"\n{}\n")
    AnswerCache(folder / "answers.jsonl")


def _array(folder: Path, trap: bytes) -> None:
    from alphadrive.data import comma2k19

    np.save(folder / "object.npy", np.array([None], dtype=object), allow_pickle=True)
    content = (folder / "object.npy").read_bytes()
    head = content[: content.index(b"\n") + 1]
    (folder / "frame_times").write_bytes(head + trap)
    comma2k19._array(folder, "frame_times", 1)


def _config(folder: Path, trap: bytes) -> None:
    call = f"!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{folder}/sprung]]"
    (folder / "c.yaml").write_text(f"seed: {call}\n")
    load_config(str(folder / "c.yaml"))


@pytest.mark.parametrize(
    ("read", "error"),
    [
        (_model, ModelError),
        (_dataset, DataError),
        (_answers, DataError),
        (_array, DataError),
        (_config, ConfigError),
    ],
)
def test_what_reads_files_runs_nothing_in_them(
    read: Callable[[Path, bytes], None], error: type[Exception], tmp_path: Path, trap: bytes, sprung: Path
) -> None:
    with pytest.raises(error):
        read(tmp_path, trap)
    assert not sprung.exists()
