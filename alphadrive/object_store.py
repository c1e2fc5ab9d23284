"""Files at `s3://`, `gs://` and `file://` addresses, by way of `pyarrow.fs`.

Credentials, region and endpoint are taken from the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, an
instance's role, GOOGLE_APPLICATION_CREDENTIALS ...), never from the address: that stands in files and logs.
Every method raises OSError for what the store refuses.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

SCHEMES = ("s3", "gs", "file")

_CHUNK_BYTES = 8 << 20


def is_address(place: str) -> bool:
    """Whether a place in a configuration is an address, and no path of this machine."""
    return "://" in place


def address_problem(address: str) -> str | None:
    """What is wrong with an address, in words that do not repeat a secret in it; None when nothing is."""
    parts = urlsplit(address)
    if parts.scheme not in SCHEMES:
        got = f"{parts.scheme}://" if parts.scheme else "no address"
        return f"expected s3://BUCKET/PATH, gs://BUCKET/PATH or file:///PATH, got {got}"
    if "@" in parts.netloc or parts.query or parts.fragment:
        return (
            "an address holds no credentials and no options: they are taken from the environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS ...)"
        )
    if bool(parts.netloc) == (parts.scheme == "file") or not parts.path.strip("/"):
        return f"expected {parts.scheme}://{'' if parts.scheme == 'file' else 'BUCKET'}/PATH, got {address}"
    return None


class Store:
    """What lies below one address. Make one with `at`; names are relative, with `/` between parts."""

    def __init__(self, filesystem: Any, root: str) -> None:
        self._filesystem, self._root = filesystem, root.rstrip("/")

    @classmethod
    def at(cls, address: str) -> Self:
        """The files below an address that `address_problem` finds nothing wrong with."""
        import pyarrow
        from pyarrow import fs

        try:
            return cls(*fs.FileSystem.from_uri(address))
        except pyarrow.ArrowInvalid as error:
            raise OSError(f"{address}: {error}") from error

    def files(self, folder: str = "") -> dict[str, int]:
        """Bytes of every file in a folder of the store and its folders, by name within the folder, sorted;
        empty where there is no such folder. Raises OSError for a name that would lead out of a folder."""
        from pyarrow import fs

        below = self._path(folder)
        selector = fs.FileSelector(below, recursive=True, allow_not_found=True)
        found = [entry for entry in self._filesystem.get_file_info(selector) if entry.is_file]
        sizes = {
            entry.path[len(below) + 1 :]: entry.size for entry in sorted(found, key=lambda each: each.path)
        }
        for name in sizes:
            if any(part in ("", ".", "..") for part in name.split("/")):
                raise OSError(f"{below}: holds {name!r}, which is no name of a file in a folder; remove it")
        return sizes

    def versions(self, folder: str = "") -> list[list[object]]:
        """What changes when a file in a folder does: name, bytes and time of change of each, sorted."""
        from pyarrow import fs

        selector = fs.FileSelector(self._path(folder), recursive=True, allow_not_found=True)
        found = self._filesystem.get_file_info(selector)
        return sorted([entry.path, entry.size, entry.mtime_ns] for entry in found if entry.is_file)

    def read(self, name: str) -> bytes:
        """A small file. Raises FileNotFoundError where there is none."""
        with self._filesystem.open_input_stream(self._path(name)) as stream:
            return bytes(stream.read())

    def fetch(self, name: str, path: Path, note_bytes: Callable[[int], None] = lambda _: None) -> None:
        """Copy a file of the store to a path of this machine."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._filesystem.open_input_stream(self._path(name)) as source, path.open("wb") as copy:
            while chunk := source.read(_CHUNK_BYTES):
                copy.write(chunk)
                note_bytes(len(chunk))

    def put(self, path: Path, name: str, note_bytes: Callable[[int], None] = lambda _: None) -> None:
        """Copy a file of this machine into the store. `note_bytes` is called between parts and may raise."""
        if self._filesystem.type_name == "local":
            self._filesystem.create_dir(self._path(name).rpartition("/")[0])
        with path.open("rb") as source, self._filesystem.open_output_stream(self._path(name)) as copy:
            while chunk := source.read(_CHUNK_BYTES):
                copy.write(chunk)
                note_bytes(len(chunk))

    def delete(self, name: str) -> None:
        """Remove one file, if it is there."""
        with suppress(FileNotFoundError):
            self._filesystem.delete_file(self._path(name))

    def delete_folder(self, folder: str) -> None:
        """Remove a folder of the store with everything in it, if it is there."""
        if self._filesystem.type_name == "gcs":  # its delete_dir asks for a marker that nobody has made
            for name in self.files(folder):
                self.delete(f"{folder}/{name}")
            return
        with suppress(FileNotFoundError):
            self._filesystem.delete_dir(self._path(folder))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root
