"""What a node says of files that are not the driver's; as the task that runs on it."""

import pytest

pytest.importorskip("ray")

from cluster import node_paths
from cluster.node_paths import EDGE_BYTES, Seen, differences, fingerprints


@pytest.fixture
def mark(tmp_path):
    """The file that the driver writes into the run's folder."""
    mark = tmp_path / "run" / ".seen-abc"
    mark.parent.mkdir()
    mark.write_text(mark.name)
    return mark


@pytest.fixture
def seen(tmp_path):
    """Data and model as the driver sees them."""
    data, model = tmp_path / "data", tmp_path / "model"
    for folder in (data, model):
        folder.mkdir()
    for number in range(2):
        (data / f"part-0000{number}.parquet").write_bytes(bytes(3 * EDGE_BYTES))
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(bytes(10))
    keys = {"data.train": data, "model.path": model}
    return [Seen(key, folder, fingerprints(key, folder)) for key, folder in keys.items()]


def test_a_node_that_sees_the_same_says_nothing_and_leaves_nothing(seen, mark):
    data, model = (each.folder for each in seen)
    (data / "notes.txt").write_text("read by nobody")
    (model / "README.md").write_text("read by nobody")
    assert differences(seen, {}, mark) == []
    assert list(mark.parent.iterdir()) == [mark]


def test_a_folder_that_is_not_there_is_named_with_its_key(seen, mark):
    elsewhere = seen[0]._replace(folder=seen[0].folder / "none")
    assert differences([elsewhere], {}, mark) == [f"data.train: {elsewhere.folder} is missing"]


def change_the_end(data, model):
    with (data / "part-00001.parquet").open("r+b") as stream:
        stream.seek(-5, 2)
        stream.write(b"x")
    return "data.train", data / "part-00001.parquet", "is another file than the driver's"


def cut_short(data, model):
    (model / "model.safetensors").write_bytes(bytes(9))
    return "model.path", model / "model.safetensors", "is another file than the driver's"


def remove(data, model):
    (model / "config.json").unlink()
    return "model.path", model / "config.json", "is missing or cannot be read"


def add_a_shard(data, model):
    (data / "part-00002.parquet").write_bytes(b"")
    return "data.train", data / "part-00002.parquet", "is there and not for the driver"


def add_and_remove(data, model):
    add_a_shard(data, model)
    (data / "part-00000.parquet").unlink()
    return "data.train", data / "part-00000.parquet", "is missing or cannot be read, and 1 other files differ"


@pytest.mark.parametrize("change", [change_the_end, cut_short, remove, add_a_shard, add_and_remove])
def test_a_file_that_differs_is_named_with_its_key(seen, mark, change):
    key, file, words = change(*(each.folder for each in seen))
    assert differences(seen, {}, mark) == [f"{key}: {file} {words}"]


def test_data_at_an_address_that_is_not_what_the_driver_found_is_named(tmp_path, seen, mark, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    remote = {"data.train": f"{seen[0].folder.as_uri()}#0123"}
    (line,) = differences([], remote, mark)
    assert line.startswith("data.train: file:///") and "is not what the driver found there" in line
    (tmp_path / "cache" / "alphadrive" / "data" / "0123").mkdir(parents=True)
    assert differences([], remote, mark) == []


def test_another_run_folder_is_told_from_a_missing_one(mark, monkeypatch):
    monkeypatch.setattr(node_paths, "LOOKS", 1)
    monkeypatch.setattr(node_paths.time, "sleep", lambda seconds: None)
    mark.unlink()
    assert differences([], {}, mark) == [f"run.root: {mark.parent} is another folder than the driver's"]
    mark.parent.rmdir()
    assert differences([], {}, mark) == [f"run.root: {mark.parent} is missing"]


def test_a_run_folder_that_shows_the_file_late_is_waited_for(mark, monkeypatch):
    mark.unlink()
    monkeypatch.setattr(node_paths.time, "sleep", lambda seconds: mark.write_text(mark.name))
    assert differences([], {}, mark) == []


def test_a_run_folder_that_cannot_be_written_is_found_out(mark, monkeypatch):
    monkeypatch.setattr(node_paths, "LOOKS", 1)
    monkeypatch.setattr(node_paths.time, "sleep", lambda seconds: None)

    def refuse(path, text):
        raise PermissionError("read-only")

    monkeypatch.setattr(node_paths.Path, "write_text", refuse)
    assert differences([], {}, mark) == [f"run.root: {mark.parent} cannot be written: read-only"]
