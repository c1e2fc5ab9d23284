"""Datasets at an address (`s3://BUCKET/PATH`, `gs://`, `file://`): copied to this machine once, read there.

    local_folder("s3://b/train")   the user's cache folder, alphadrive/data/KEY/part-00000.parquet ...

KEY covers the address and every file's name, size and time of change: a dataset that changes is another one.
A copy is complete or not there, and one that was cut off is gone on with, shard by shard; whatever processes
of a machine ask for it, one of them copies. Damage on the way shows when a row is read: Parquet pages carry
checksums. Driver, engines and learner ranks each ask for themselves, wherever they run; the driver tells the
others its KEY (`s3://b/train#KEY`), so that all of them read the same rows or none.
"""

import functools
import hashlib
import json
import logging
import os
import shutil
from pathlib import Path

from alphadrive.checkpoints import bytes_below
from alphadrive.data.schema import checked_metadata, checked_shards, shard_paths
from alphadrive.errors import DataError
from alphadrive.locks import wait_for_lock
from alphadrive.object_store import Store, address_problem, is_address

logger = logging.getLogger(__name__)


@functools.cache
def local_folder(place: str) -> Path:
    """The folder of a dataset on this machine: `place` itself, or the copy of what lies at that address, of
    the version that `place_for_others` gave where it comes from there.

    Raises DataError when the address cannot be read, holds no shards or another version, or the copy has no
    room.
    """
    if not is_address(place):
        return Path(place)
    address, folder = place.partition("#")[0], _copy_of(place)
    if folder.is_dir():
        return folder
    try:
        with wait_for_lock(folder.with_name(f"{folder.name}.lock")):
            if not folder.is_dir():
                _fetch(address, Store.at(address), folder)
    except OSError as error:
        raise DataError(_unreadable(address, error)) from error
    return folder


def place_for_others(place: str) -> str:
    """The same data, for a process that works in another folder or on another machine: `local_folder` there
    finds what it finds here. Raises as `local_folder`."""
    return f"{place}#{local_folder(place).name}" if is_address(place) else str(Path(place).resolve())


def access_problem(place: str) -> str | None:
    """What keeps this machine from copying the data that `place_for_others` gave, in a line; None when
    nothing does. Copies nothing."""
    try:
        _copy_of(place)
    except DataError as error:
        return str(error)
    return None


def num_bytes_here(place: str) -> int:
    """Bytes that this machine has of the data that `place_for_others` gave, a copy under way included."""
    folder = _cache() / place.partition("#")[2]
    return bytes_below(folder) or bytes_below(_partial(folder))


def _partial(folder: Path) -> Path:
    return folder.with_name(f".tmp-{folder.name}")


def _copy_of(place: str) -> Path:
    """Where the copy of an address is, or is to be. Raises DataError when there is none and the address
    cannot be read, or holds another version."""
    address, _, expected = place.partition("#")
    if problem := address_problem(address):
        raise DataError(f"dataset: {problem}")
    if expected and (_cache() / expected).is_dir():
        return _cache() / expected
    try:
        listing = json.dumps([address, Store.at(address).versions()])
    except OSError as error:
        raise DataError(_unreadable(address, error)) from error
    key = hashlib.sha256(listing.encode()).hexdigest()[:32]
    if expected and key != expected:
        raise DataError(
            f"{address}: is not what the driver found there: {key}, expected {expected}; data must not "
            "change while a run goes on; put it back, or write changed data to another address"
        )
    return _cache() / key


def _unreadable(address: str, error: OSError) -> str:
    return (
        f"{address}: cannot be copied to {_cache()}: {error}; credentials, region and endpoint are taken "
        "from the environment (docs/submitting.md)"
    )


def _fetch(place: str, store: Store, folder: Path) -> None:
    sizes = {name: size for name, size in store.files().items() if "/" not in name}
    shards = {name: size for name, size in sizes.items() if Path(name).match("part-*.parquet")}
    if not shards:
        raise DataError(
            f"{place}: holds no shards; expected part-00000.parquet ... as `alphadrive data` writes"
        )
    temporary = _partial(folder)
    temporary.mkdir(exist_ok=True)
    for path in temporary.iterdir():  # of a copy that was cut off: whole shards stay
        if path.stat().st_size != shards.get(path.name):
            path.unlink()
    missing = {name: size for name, size in shards.items() if not (temporary / name).exists()}
    total = sum(missing.values())
    logger.info("%s: copying %d shards, %.1f MB, to %s", place, len(missing), total / 1e6, folder)
    if (free := shutil.disk_usage(folder.parent).free) < total:
        raise OSError(f"{total} bytes needed, {free} free")
    for name, size in missing.items():
        store.fetch(name, temporary / name)
        if (got := (temporary / name).stat().st_size) != size:
            raise OSError(f"{name}: got {got} bytes, expected {size}")
    for shard in shard_paths(temporary):
        checked_metadata(shard)
    checked_shards(temporary)
    temporary.rename(folder)


def _cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "alphadrive" / "data"
