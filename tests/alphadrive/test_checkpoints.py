"""The commit protocol: a checkpoint is complete and proved, or it is not used."""

import errno
import json
import os
import shutil
from contextlib import suppress
from types import SimpleNamespace

import pytest
from file_faults import Killed, fault_at

from alphadrive.checkpoints import CheckpointStore
from alphadrive.errors import CheckpointError, CheckpointWriteError
from alphadrive.manifest import MANIFEST, check_owner, sha256_of, verify


def save(store, step, content=b"weights", score=None):
    folder = store.begin(step)
    (folder / "model").mkdir()
    (folder / "model" / "model.safetensors").write_bytes(content * 100)
    (folder / "ledger.json").write_text(json.dumps({"step": step}))
    return store.commit(step, score)


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


def all_files(path):
    return sorted(file for file in path.rglob("*") if file.is_file())


def test_progress_changes_with_every_file_written_and_sealed(store, monkeypatch):
    seen = [store.progress()]
    folder = store.begin(1)
    for name in ("a", "b"):
        (folder / name).write_text("x")
        seen.append(store.progress())

    def noted(path):
        seen.append(store.progress())
        return sha256_of(path)

    monkeypatch.setattr("alphadrive.manifest.sha256_of", noted)
    store.commit(1)
    assert seen == sorted(set(seen)) and len(seen) == 5


def test_one_bit_anywhere_in_any_file_is_found(store):
    path = save(store, 1).path
    for file in all_files(path):
        content = file.read_bytes()
        for place in range(len(content)):
            damaged = bytearray(content)
            damaged[place] ^= 1 << (place % 8)
            file.write_bytes(damaged)
            with pytest.raises(CheckpointError):
                verify(path)
        file.write_bytes(content)
    verify(path)


def test_every_file_cut_anywhere_is_found(store):
    path = save(store, 1).path
    for file in all_files(path):
        content = file.read_bytes()
        for length in range(len(content)):
            file.write_bytes(content[:length])
            with pytest.raises(CheckpointError):
                verify(path)
        file.write_bytes(content)
    verify(path)


def test_a_file_that_the_disk_does_not_give_back_is_damage(store, caplog, monkeypatch):
    save(store, 1)
    lost = save(store, 2).path / "model/model.safetensors"

    def read(path):
        if path == lost:
            raise OSError(errno.EIO, "Input/output error")
        return sha256_of(path)

    monkeypatch.setattr("alphadrive.manifest.sha256_of", read)
    assert store.latest().step == 1
    assert "refused checkpoint of step 2" in caplog.text and "Input/output error" in caplog.text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_best_survive_beside_the_last_and_are_pointed_at(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=2, keep_best=2)
    scores = {1: 0.5, 2: 0.9, 3: None, 4: 0.7, 5: 0.6, 6: None, 7: 0.1}
    best = []
    for step, score in scores.items():
        save(store, step, score=score)
        best.append(os.readlink(tmp_path / "best"))
    assert names(tmp_path) == ["best", *(f"step_00000{step}" for step in (2, 4, 6, 7))]
    assert best == ["step_000001"] + ["step_000002"] * 6
    checkpoint, score = store.best()
    assert (checkpoint.step, score) == (2, 0.9)
    assert (tmp_path / "best" / "model" / "model.safetensors").is_file()
    verify(tmp_path / "best")


def test_of_two_worth_the_same_the_later_is_best(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=1, keep_best=1)
    for step in (1, 2, 3):
        save(store, step, score=0.5 if step < 3 else 0.4)
    assert store.best()[0].step == 2
    assert names(tmp_path) == ["best", "step_000002", "step_000003"]


def test_without_evaluations_or_without_keep_best_there_is_no_link(tmp_path):
    store = CheckpointStore(tmp_path, keep_best=1)
    save(store, 1)
    assert (store.best(), names(tmp_path)) == (None, ["step_000001"])
    save(store, 2, score=0.5)
    assert names(tmp_path) == ["best", "step_000001", "step_000002"]
    store = CheckpointStore(tmp_path, keep_best=0)
    save(store, 3, score=0.4)
    assert names(tmp_path) == ["step_000002", "step_000003"]


def test_checkpoints_put_aside_do_not_come_back(tmp_path, caplog):
    store = CheckpointStore(tmp_path, keep_last=3, keep_best=1)
    for step in (1, 2, 3):
        save(store, step, score=step / 10)
    store.abandon_later(1)
    assert [checkpoint.step for checkpoint in store.all()] == [1]
    assert os.readlink(tmp_path / "best") == "step_000001"
    assert "checkpoint of step 3 put aside" in caplog.text
    save(store, 2)
    assert names(tmp_path) == ["best", "step_000001", "step_000002"]


def test_what_a_checkpoint_that_is_put_aside_had_replaced_does_not_come_back(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=3)
    for step in (1, 2):
        save(store, step)
    shutil.copytree(tmp_path / "step_000002", tmp_path / ".replaced-step_000002")  # a crash in a second save
    store.abandon_later(1)
    assert [checkpoint.step for checkpoint in store.all()] == [1]


def test_what_others_may_write_is_sealed_by_the_commit(store):
    before = os.umask(0)
    try:
        path = save(store, 1).path
    finally:
        os.umask(before)
    assert {oct(inner.stat().st_mode & 0o022) for inner in [path, *path.rglob("*")]} == {"0o0"}
    check_owner(path)


@pytest.mark.parametrize("name", ["", "model", "model/model.safetensors", MANIFEST])
def test_a_checkpoint_that_others_may_write_is_not_loaded(store, name):
    path = save(store, 1).path
    (path / name).chmod(0o775)
    with pytest.raises(CheckpointError, match=r"may be written by others.*chmod -R go-w"):
        check_owner(path)


def test_a_checkpoint_of_another_user_is_not_loaded(store, monkeypatch):
    path = save(store, 1).path
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(CheckpointError, match="belongs to user"):
        check_owner(path)


def test_a_link_in_a_checkpoint_is_not_loaded(store, tmp_path):
    path = save(store, 1).path
    (path / "optimizer.pt").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"optimizer\.pt: is a link"):
        check_owner(path)


def test_a_disk_without_room_is_found_before_anything_is_written(store, monkeypatch):
    save(store, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=700))
    with pytest.raises(CheckpointWriteError, match="700 bytes free, the newest checkpoint takes 711"):
        store.begin(2)
    assert names(store.folder) == ["step_000001"]


def test_a_save_given_up_leaves_nothing(store):
    save(store, 1)
    (store.begin(2) / "half").write_text("x")
    store.discard(2)
    store.discard(3)
    assert names(store.folder) == ["step_000001"]


SAVES = {
    "new step": dict(step=3, score=0.5, keep_best=1),
    "same step again": dict(step=2, score=0.5, keep_best=1),
    "new best": dict(step=3, score=0.9, keep_best=1),
    "same step no longer best": dict(step=2, score=0.1, keep_best=1),
    "no best": dict(step=3, score=None, keep_best=0),
    "after a rollback": dict(step=1, score=0.2, keep_best=1),
}


def prepared(folder, keep_best):
    """A store with checkpoints 0 and 2, the second the best."""
    store = CheckpointStore(folder, keep_last=1, keep_best=keep_best)
    save(store, 0, content=b"older", score=0.3)
    store.keep_last = 2
    save(store, 2, content=b"old", score=0.8)
    store.keep_last = 1
    return store


def check_whole(folder):
    """What must hold after any fault: an undamaged checkpoint is found, nothing named so is half there,
    and the link names one of them. Gives the content found."""
    found = CheckpointStore(folder).latest()
    assert found is not None
    for checkpoint in CheckpointStore(folder).all():
        verify(checkpoint.path)
    link = folder / "best"
    assert not link.is_symlink() or link.is_dir(), "the link dangles"
    return (found.model_path / "model.safetensors").read_bytes().rstrip(b"0")[:3]


def sweep(tmp_path, case, fault, allowed):
    """Save with a fault at every operation in turn; gives what was found after each."""
    outcomes = []
    for number in range(200):
        folder = tmp_path / str(number)
        store = prepared(folder, case["keep_best"])
        with fault_at(number, fault) as state, suppress(allowed):
            save(store, case["step"], content=b"new", score=case["score"])
        if allowed is OSError:
            store.discard(case["step"])
        outcomes.append(check_whole(folder))
        after = CheckpointStore(folder, keep_last=1, keep_best=case["keep_best"])
        save(after, 4, content=b"next", score=0.95)
        assert names(folder) == ["best", "step_000004"][not case["keep_best"] :], number
        if not state.was_hit:
            assert number > 30
            return outcomes
    raise AssertionError("the sweep must reach the end of the save")


@pytest.mark.parametrize("case", SAVES.values(), ids=SAVES)
def test_killed_at_any_operation_of_a_save_leaves_undamaged_checkpoints(tmp_path, case):
    outcomes = sweep(tmp_path, case, Killed, Killed)
    assert outcomes[0] == b"old" and outcomes[-1] == b"new"
    if case["step"] != 1:
        assert outcomes == sorted(outcomes, reverse=True), "old up to the rename, new after it"


@pytest.mark.parametrize("case", SAVES.values(), ids=SAVES)
def test_a_disk_that_fails_at_any_operation_of_a_save_leaves_undamaged_checkpoints(tmp_path, case):
    def full():
        return OSError(errno.ENOSPC, "No space left on device")

    outcomes = sweep(tmp_path, case, full, OSError)
    assert outcomes[-1] == b"new" and set(outcomes) == {b"old", b"new"}


def test_killed_at_any_operation_of_putting_aside_leaves_undamaged_checkpoints(tmp_path):
    for number in range(100):
        folder = tmp_path / str(number)
        store = prepared(folder, keep_best=1)
        store.keep_last = 3
        save(store, 5, score=0.9)
        with fault_at(number) as state, suppress(Killed):
            store.abandon_later(0)
        check_whole(folder)
        store.abandon_later(0)
        assert [checkpoint.step for checkpoint in store.all()] == [0]
        if not state.was_hit:
            break
    assert 3 < number < 99
