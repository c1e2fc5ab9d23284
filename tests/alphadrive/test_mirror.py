"""A run's checkpoints at a second place: whole or none, as many as kept, and back on another machine."""

import json
import shutil
import threading

import pytest

from alphadrive.config import Config
from alphadrive.errors import CheckpointError, CheckpointWriteError, RunFolderError
from alphadrive.manifest import MANIFEST, check_owner, verify
from alphadrive.object_store import Store
from alphadrive.run_folder import RunFolder


@pytest.fixture
def config(tmp_path, address):
    config = Config()
    config.run.root, config.run.name, config.run.tensorboard = str(tmp_path / "here"), "r", False
    config.checkpoint.mirror, config.checkpoint.keep_last, config.checkpoint.keep_best = address, 2, 1
    return config


def elsewhere(config, tmp_path):
    """The same run on a machine that has nothing of it."""
    config.run.root = str(tmp_path / "there")
    return config


def save(run, step, score=None):
    folder = run.begin_checkpoint(step)
    (folder / "model").mkdir()
    (folder / "model" / "model.safetensors").write_bytes(b"weights %d" % step * 1000)
    (folder / "ledger.json").write_text(json.dumps({"step": step}))
    run.mirror.copy(run.path, run.commit_checkpoint(step, score))
    run.mirror.copying.result()


def test_the_newest_checkpoint_is_back_on_another_machine_and_is_the_same(config, tmp_path):
    with RunFolder.create(config) as run:
        run.write_status({"status": "running", "stage": "grpo", "attempt": 0})
        save(run, 2)
        save(run, 4)
        original = run.latest_checkpoint()
    with RunFolder.create(elsewhere(config, tmp_path), resume=True) as run:
        checkpoint = run.latest_checkpoint()
        assert checkpoint.step == 4 and checkpoint.path.is_relative_to(tmp_path / "there")
        verify(checkpoint.path)
        check_owner(checkpoint.path)
        files = {path.relative_to(original.path) for path in original.path.rglob("*")}
        assert {path.relative_to(checkpoint.path) for path in checkpoint.path.rglob("*")} == files
        assert [each.step for each in run.checkpoints.all()] == [4]
        assert json.loads(run.status_path.read_text())["stage"] == "grpo"
    config.seed = 1
    shutil.rmtree(tmp_path / "there")
    with pytest.raises(Exception, match="seed=1: the run in"):
        RunFolder.create(config, resume=True)


def test_as_many_are_kept_as_in_the_run_s_folder(config):
    with RunFolder.create(config) as run:
        for step, score in ((1, 0.2), (2, 0.9), (3, 0.3), (4, None), (5, None)):
            save(run, step, score)
        assert run.mirror.steps() == [2, 4, 5] == [each.step for each in run.checkpoints.all()]


def test_one_that_was_cut_off_is_none_and_goes_with_the_next(config, tmp_path, address):
    with RunFolder.create(config) as run:
        save(run, 1)
        (tmp_path / "x").write_text("half")
        Store.at(address).put(tmp_path / "x", "r/checkpoints/step_000002/model/model.safetensors")
        assert run.mirror.steps() == [1]
        save(run, 3)
        assert {name[:11] for name in Store.at(address).files("r/checkpoints")} == {
            "step_000001",
            "step_000003",
        }


def test_what_was_cut_off_is_no_part_of_the_same_step_made_again(config, tmp_path, address):
    with RunFolder.create(config) as run:
        (tmp_path / "x").write_text("half")
        Store.at(address).put(tmp_path / "x", "r/checkpoints/step_000002/model/of-another-world-size.bin")
        save(run, 2)
        assert run.mirror.steps() == [2]
        assert not [name for name in Store.at(address).files("r") if "of-another" in name]


def test_a_copy_is_given_up_when_the_run_is_closed(config, monkeypatch):
    has_begun, may_go_on = threading.Event(), threading.Event()
    put = Store.put

    def slow(self, path, name, note_bytes=lambda _: None):
        if name.endswith("ledger.json"):
            has_begun.set()
            assert may_go_on.wait(30)
        put(self, path, name, note_bytes)

    run = RunFolder.create(config)
    monkeypatch.setattr(Store, "put", slow)
    folder = run.begin_checkpoint(1)
    (folder / "ledger.json").write_text("{}")
    run.mirror.copy(run.path, run.commit_checkpoint(1))
    assert has_begun.wait(30)
    closing = threading.Thread(target=run.close)
    closing.start()
    while not run.mirror._is_over.is_set():
        pass
    may_go_on.set()
    closing.join(30)
    with pytest.raises(CheckpointWriteError, match=r"step 1 could not be copied.*the run has ended"):
        run.mirror.copying.result()
    assert run.mirror.steps() == []


@pytest.mark.parametrize("last", ["config.yaml", "status.json", "checkpoints/step_000001/ledger.json"])
def test_what_was_cut_off_on_its_way_back_is_fetched_again(config, tmp_path, monkeypatch, last):
    with RunFolder.create(config) as run:
        run.write_status({"status": "running", "stage": "grpo", "attempt": 0})
        save(run, 1)
        status, config_text = run.status_path.read_bytes(), (run.path / "config.yaml").read_text()
    fetch = Store.fetch

    def cut(self, name, path, *more):
        fetch(self, name, path, *more)
        if name == last:
            path.write_bytes(path.read_bytes()[:10])
            raise OSError("the network is down")

    elsewhere(config, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "fetch", cut)
        with pytest.raises(RunFolderError, match=r"cannot be read: the network is down"):
            RunFolder.create(config, resume=True)
    with RunFolder.create(config, resume=True) as run:
        assert run.latest_checkpoint().step == 1
        assert run.status_path.read_bytes() == status
        assert (run.path / "config.yaml").read_text() == config_text.replace("/here", "/there")
        assert not list(run.path.rglob("*tmp*"))


def damage(address, step, tmp_path):
    (tmp_path / "x").write_bytes(b"weights X" * 1000)
    Store.at(address).put(tmp_path / "x", f"r/checkpoints/step_{step:06d}/model/model.safetensors")


def test_a_damaged_one_is_refused_for_the_one_before_it(config, tmp_path, address, caplog):
    with RunFolder.create(config) as run:
        save(run, 1)
        save(run, 2)
    damage(address, 2, tmp_path)
    elsewhere(config, tmp_path)
    with RunFolder.create(config, resume=True) as run:
        assert run.latest_checkpoint().step == 1
    assert "refused checkpoint of step 2" in caplog.text and "SHA-256 differs" in caplog.text
    shutil.rmtree(tmp_path / "there")
    damage(address, 1, tmp_path)
    with pytest.raises(CheckpointError, match="every checkpoint of the mirror is damaged"):
        RunFolder.create(config, resume=True)


def test_a_folder_with_an_older_checkpoint_takes_the_newer_one_and_a_newer_one_stays(config, tmp_path):
    with RunFolder.create(config) as run:
        save(run, 1)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    with RunFolder.create(config, resume=True) as run:
        save(run, 2)
    with RunFolder.create(elsewhere(config, tmp_path), resume=True) as run:
        assert run.latest_checkpoint().step == 2
        run.begin_checkpoint(3).joinpath("ledger.json").write_text("{}")
        run.commit_checkpoint(3)
    with RunFolder.create(config, resume=True) as run:
        assert run.latest_checkpoint().step == 3


def test_a_run_that_was_taken_back_takes_its_mirror_back(config):
    with RunFolder.create(config) as run:
        save(run, 2)
        save(run, 4)
        run.checkpoints.abandon_later(2)
        save(run, 3)
        assert run.mirror.steps() == [2, 3]


def test_a_new_run_does_not_mix_with_an_earlier_one(config, tmp_path):
    with RunFolder.create(config) as run:
        save(run, 2)
    elsewhere(config, tmp_path)
    with pytest.raises(RunFolderError, match=r"holds a checkpoint of step 2.*--resume.*--overwrite"):
        RunFolder.create(config)
    with RunFolder.create(config, overwrite=True) as run:
        assert run.mirror.steps() == []


def test_a_place_that_cannot_be_written_is_found_before_anything_starts(config, s3):
    config.checkpoint.mirror = "s3://nobody-s/place"
    with pytest.raises(
        RunFolderError, match=r"checkpoint.mirror: s3://nobody-s/place/r cannot be used.*BUCKET"
    ):
        RunFolder.create(config)
    config.checkpoint.mirror = s3
    RunFolder.create(config, resume=True).close()


def test_a_manifest_is_the_last_file_of_a_copy(config, monkeypatch):
    names = []
    put = Store.put
    with RunFolder.create(config) as run:
        monkeypatch.setattr(
            Store, "put", lambda self, path, name, *more: (names.append(name), put(self, path, name, *more))
        )
        save(run, 1)
    of_checkpoint = [name for name in names if name.startswith("checkpoints/")]
    assert len(of_checkpoint) == 3 and of_checkpoint[-1] == f"checkpoints/step_000001/{MANIFEST}"
