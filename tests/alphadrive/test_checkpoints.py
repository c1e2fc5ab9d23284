"""The commit protocol: a checkpoint is complete and proved, or it is not used."""

import json
import os
import shutil
from pathlib import Path

import pytest

from alphadrive.checkpoints import MANIFEST, CheckpointStore, verify
from alphadrive.errors import CheckpointError


def save(store, step, content=b"weights"):
    folder = store.begin(step)
    (folder / "model").mkdir()
    (folder / "model" / "model.safetensors").write_bytes(content * 100)
    (folder / "ledger.json").write_text(json.dumps({"step": step}))
    return store.commit(step)


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints", keep_last=2)


def test_committed_checkpoint_is_found_and_verifies(store):
    committed = save(store, 5)
    assert committed.path.name == "step_000005"
    assert committed.model_path.is_dir()
    assert store.latest() == committed
    manifest = json.loads((committed.path / MANIFEST).read_text())
    assert sorted(manifest["files"]) == ["ledger.json", "model/model.safetensors"]
    assert manifest["files"]["model/model.safetensors"]["bytes"] == 700


def test_no_checkpoint_is_none(store):
    assert store.latest() is None


def test_uncommitted_files_are_invisible_and_removed_by_the_next_begin(store):
    (store.begin(1) / "half").write_text("x")
    assert store.latest() is None
    save(store, 2)
    assert sorted(path.name for path in store.folder.iterdir()) == ["step_000002"]


def test_empty_commit_is_an_error(store):
    store.begin(1)
    with pytest.raises(CheckpointError, match="nothing to commit"):
        store.commit(1)


def test_old_ones_are_pruned_after_the_commit(store):
    for step in (1, 2, 3, 4):
        save(store, step)
    assert [checkpoint.step for checkpoint in store.all()] == [3, 4]


def test_failed_write_prunes_nothing(store):
    save(store, 1)
    save(store, 2)
    store.begin(3)
    with pytest.raises(CheckpointError):
        store.commit(3)
    assert [checkpoint.step for checkpoint in store.all()] == [1, 2]


def _flip_a_bit(path):
    content = bytearray((path / "model/model.safetensors").read_bytes())
    content[350] ^= 1
    (path / "model/model.safetensors").write_bytes(content)


def _truncate(path):
    os.truncate(path / "model/model.safetensors", 699)


def _lose_a_file(path):
    (path / "ledger.json").unlink()


def _add_a_file(path):
    (path / "model/extra.bin").write_text("x")


def _lose_the_manifest(path):
    (path / MANIFEST).unlink()


def _cut_the_manifest(path):
    os.truncate(path / MANIFEST, 20)


def _empty_manifest(path):
    (path / MANIFEST).write_text("{}")


DAMAGES = {
    _flip_a_bit: "SHA-256 differs",
    _truncate: "699 bytes, expected 700",
    _lose_a_file: r"files missing: \['ledger.json'\]",
    _add_a_file: r"not in the manifest: \['model/extra.bin'\]",
    _lose_the_manifest: "never committed",
    _cut_the_manifest: "not readable",
    _empty_manifest: "not readable",
}


@pytest.mark.parametrize(
    ("damage", "message"), DAMAGES.items(), ids=lambda value: getattr(value, "__name__", "")
)
def test_damaged_newest_is_refused_aloud_and_the_one_before_used(store, caplog, damage, message):
    save(store, 1)
    damage(save(store, 2).path)
    with pytest.raises(CheckpointError, match=message):
        verify(store.folder / "step_000002")
    assert store.latest().step == 1
    assert "refused checkpoint of step 2" in caplog.text
    assert "going on from step 1" in caplog.text


def test_all_damaged_is_an_error_and_not_a_fresh_start(store):
    _flip_a_bit(save(store, 1).path)
    with pytest.raises(CheckpointError, match="every checkpoint is damaged"):
        store.latest()


def test_commit_after_a_rollback_replaces_the_damaged_later_one(store):
    store.keep_last = 1
    save(store, 50)
    store.keep_last = 2
    _truncate(save(store, 100).path)
    assert store.latest().step == 50
    store.keep_last = 1
    save(store, 60)
    assert [checkpoint.step for checkpoint in store.all()] == [60]
    assert store.latest().step == 60


def test_same_step_again_replaces_it(store):
    _flip_a_bit(save(store, 7).path)
    again = save(store, 7, content=b"WEIGHTS")
    assert store.latest() == again
    assert (again.path / "model/model.safetensors").read_bytes().startswith(b"WEIGHTS")
    assert [path.name for path in store.folder.iterdir()] == ["step_000007"]


class Killed(BaseException):
    """Stands for the process ending at this very call."""


@pytest.fixture
def kill_at(monkeypatch):
    """`kill_at(n)` ends the process at the n-th call that touches the disk during a save."""
    calls = {"left": None}

    def guard(owner, name):
        original = getattr(owner, name)

        def guarded(*args, **kwargs):
            if calls["left"] is not None:
                calls["left"] -= 1
                if calls["left"] < 0:
                    raise Killed
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, guarded)

    disk_calls = [(Path, name) for name in ("rename", "mkdir", "open", "write_bytes")]
    for owner, name in [(os, "fsync"), (shutil, "rmtree"), *disk_calls]:
        guard(owner, name)

    def set_kill(number):
        calls["left"] = number

    return set_kill


@pytest.mark.parametrize("new_step", [3, 2], ids=["new step", "same step again"])
def test_killed_at_any_step_of_a_save_leaves_an_undamaged_checkpoint(tmp_path, kill_at, new_step):
    outcomes = []
    for kill_point in range(60):
        folder = tmp_path / str(kill_point)
        store = CheckpointStore(folder, keep_last=1)
        kill_at(None)
        save(store, 2, content=b"old")
        kill_at(kill_point)
        try:
            save(store, new_step, content=b"new")
            killed = False
        except Killed:
            killed = True
        kill_at(None)
        found = CheckpointStore(folder, keep_last=1).latest()
        assert found is not None
        outcomes.append((found.model_path / "model.safetensors").read_bytes()[:3])
        save(CheckpointStore(folder, keep_last=1), 4)
        assert [checkpoint.step for checkpoint in store.all()] == [4]
        if not killed:
            break
    assert not killed, "the sweep must reach the end of the save"
    assert kill_point > 12
    assert outcomes[0] == b"old" and outcomes[-1] == b"new"
    assert outcomes == sorted(outcomes, reverse=True), "old up to the rename, new after it"
