"""Addresses, and files at them."""

import boto3
import pytest

from alphadrive.config import default_config
from alphadrive.errors import ConfigError
from alphadrive.object_store import Store, address_problem, is_address


def test_what_is_put_is_listed_read_fetched_and_deleted(address, tmp_path):
    store = Store.at(address)
    assert store.files() == {}
    source = tmp_path / "source"
    source.write_bytes(b"0123456789" * 2_000_000)
    parts = []
    store.put(source, "a/b/large.bin", parts.append)
    store.put(source, "a/other.bin")
    assert sum(parts) == 20_000_000 and len(parts) == 3
    assert store.files() == {"a/b/large.bin": 20_000_000, "a/other.bin": 20_000_000}
    assert store.files("a/b") == {"large.bin": 20_000_000}
    assert store.read("a/other.bin") == source.read_bytes()
    store.fetch("a/b/large.bin", tmp_path / "new" / "copy")
    assert (tmp_path / "new" / "copy").read_bytes() == source.read_bytes()
    store.delete("a/other.bin")
    store.delete("a/other.bin")
    assert store.files() == {"a/b/large.bin": 20_000_000}
    store.delete_folder("a")
    store.delete_folder("a")
    assert store.files() == {}


def test_a_change_of_a_file_shows(address, tmp_path):
    store, source = Store.at(address), tmp_path / "source"
    source.write_text("one")
    store.put(source, "x")
    before = store.versions()
    assert before == Store.at(address).versions()
    source.write_text("three")
    store.put(source, "x")
    assert store.versions() != before


def test_a_bucket_that_is_not_there_takes_nothing(s3, tmp_path):
    (tmp_path / "source").write_text("x")
    with pytest.raises(OSError, match="NO_SUCH_BUCKET"):
        Store.at("s3://nobody-s/place").put(tmp_path / "source", "x")


@pytest.mark.parametrize("name", ["../../evil", "a/../../../evil", "/etc/evil", "./evil"])
def test_names_in_a_bucket_that_would_lead_out_of_a_folder_are_refused(s3, s3_environment, name):
    bucket, _, folder = s3.removeprefix("s3://").partition("/")
    client = boto3.client("s3", endpoint_url=s3_environment["AWS_ENDPOINT_URL"])
    for key in ("fine", name):
        client.put_object(Bucket=bucket, Key=f"{folder}/checkpoints/{key}", Body=b"x")
    with pytest.raises(OSError, match="no name of a file in a folder"):
        Store.at(s3).files("checkpoints")


@pytest.mark.parametrize("address", ["s3://bucket/path", "gs://bucket/a/b", "file:///shared/train"])
def test_an_address_that_is_fine(address):
    assert is_address(address) and address_problem(address) is None


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://host/x", "got http://"),
        ("s3:///path", "expected s3://BUCKET/PATH"),
        ("s3://bucket", "expected s3://BUCKET/PATH"),
        ("file://host/x", "expected file:///PATH"),
        ("s3://AKIA:hush@bucket/x", "no credentials"),
        ("s3://bucket/x?secret_key=hush", "no credentials"),
    ],
)
def test_an_address_that_is_wrong_or_holds_a_secret_is_refused_without_repeating_it(address, words):
    problem = address_problem(address)
    assert words in problem and "hush" not in problem
    with pytest.raises(ConfigError) as caught:
        default_config([f"checkpoint.mirror={address}", f"data.train={address}"])
    assert str(caught.value).count(words) == 2 and "hush" not in str(caught.value)


def test_folders_are_no_addresses_and_a_mirror_is_no_folder():
    assert not is_address("data/train") and not is_address("/shared/train")
    with pytest.raises(ConfigError, match=r"run\.root: expected a folder"):
        default_config(["run.root=s3://bucket/runs"])
    with pytest.raises(ConfigError, match=r"model\.path: expected a folder"):
        default_config(["model.path=s3://bucket/model"])
    with pytest.raises(ConfigError, match=r"checkpoint\.mirror: expected s3://"):
        default_config(["checkpoint.mirror=/shared/mirror"])
