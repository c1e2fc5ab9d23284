"""Datasets at an address: copied once, whole, and again when they change."""

import pytest

from alphadrive.data import fetching
from alphadrive.data.fetching import access_problem, local_folder, place_for_others
from alphadrive.data.parquet import DrivingDataset, write_records
from alphadrive.errors import DataError
from alphadrive.object_store import Store


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own; `again()` is another process that looks."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    local_folder.cache_clear()
    yield tmp_path / "cache" / "alphadrive" / "data"
    local_folder.cache_clear()


def again(place):
    local_folder.cache_clear()
    return local_folder(place)


@pytest.fixture
def upload(tmp_path, make_record, address):
    def upload(num_rows):
        folder = tmp_path / f"rows-{num_rows}"
        write_records((make_record(index) for index in range(num_rows)), folder, 2)
        store = Store.at(address)
        for path in folder.iterdir():
            store.put(path, path.name)
        return list(DrivingDataset(folder).records())

    return upload


def test_a_path_is_itself(tmp_path, monkeypatch):
    assert local_folder("data/train").as_posix() == "data/train"
    monkeypatch.chdir(tmp_path)
    assert place_for_others("data/train") == str(tmp_path / "data" / "train")


def test_a_dataset_is_copied_once_and_again_when_it_has_changed(address, upload, monkeypatch):
    records = upload(5)
    folder = local_folder(address)
    assert list(DrivingDataset(folder).records()) == records
    copied = []
    monkeypatch.setattr(
        fetching, "_fetch", lambda *arguments, fetch=fetching._fetch: copied.append(fetch(*arguments))
    )
    assert again(address) == folder and not copied
    more = upload(7)
    assert again(address) != folder and copied
    assert list(DrivingDataset(local_folder(address)).records()) == more


def test_workers_read_the_data_that_the_driver_read_or_none(address, upload, cache, monkeypatch):
    records = upload(5)
    place = place_for_others(address)
    another_machine = cache.parent / "on another machine"
    with monkeypatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(another_machine))
        assert access_problem(place) is None and not another_machine.exists()
    upload(7)
    assert list(DrivingDataset(again(place)).records()) == records
    monkeypatch.setenv("XDG_CACHE_HOME", str(another_machine))
    assert "is not what the driver found there" in access_problem(place)
    with pytest.raises(DataError, match=r"is not what the driver found there.*must not change"):
        again(place)
    assert len(DrivingDataset(again(place_for_others(address)))) == 7


def test_half_a_copy_is_none_and_is_gone_on_with(address, upload, cache, monkeypatch):
    records, fetched = upload(5), []
    fetch = Store.fetch

    def cut(self, name, path, *more):
        fetched.append(name)
        fetch(self, name, path, *more)
        if name == "part-00001.parquet":
            path.write_bytes(path.read_bytes()[:100])
            raise OSError("the network is down")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "fetch", cut)
        with pytest.raises(DataError, match=r"cannot be copied.*the network is down.*environment"):
            local_folder(address)
    assert fetched == ["part-00000.parquet", "part-00001.parquet"]
    assert not [path for path in cache.iterdir() if path.is_dir() and not path.name.startswith(".tmp-")]
    monkeypatch.setattr(Store, "fetch", lambda *asked: fetched.append(asked[1]) or fetch(*asked))
    assert list(DrivingDataset(local_folder(address)).records()) == records
    assert fetched[2:] == ["part-00001.parquet", "part-00002.parquet"]


def test_only_what_is_missing_of_a_copy_needs_room(address, upload, cache, monkeypatch):
    records = upload(5)
    half = cache / f".tmp-{fetching._copy_of(address).name}"
    half.mkdir(parents=True)
    sizes = Store.at(address).files()
    Store.at(address).fetch("part-00000.parquet", half / "part-00000.parquet")
    (half / "part-00001.parquet").write_bytes(b"cut off")
    usage, free = fetching.shutil.disk_usage(cache), sizes["part-00001.parquet"] + sizes["part-00002.parquet"]
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: usage._replace(free=free - 1))
    with pytest.raises(DataError, match=rf"cannot be copied.*{free} bytes needed, {free - 1} free"):
        local_folder(address)
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: usage._replace(free=free))
    assert list(DrivingDataset(local_folder(address)).records()) == records


def test_an_address_without_shards_or_with_one_that_is_no_parquet_is_refused(address, upload, tmp_path):
    with pytest.raises(DataError, match="holds no shards"):
        local_folder(address)
    upload(5)
    (tmp_path / "bad").write_text("no parquet")
    Store.at(address).put(tmp_path / "bad", "part-00002.parquet")
    with pytest.raises(DataError, match="no complete Parquet file"):
        local_folder(address)
