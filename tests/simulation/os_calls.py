"""The calls of `os`, `io` and `shutil` for paths of the simulated disk are answered by it; all others
go where they always went. So `pathlib`, and with it the shipped code, runs on the disk unchanged."""

import builtins
import io
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from simulation.disk import ROOT, Disk, File, Folder, Link, OpenFile
from simulation.replacing import replaced

FIRST_DESCRIPTOR = 1 << 20


@contextmanager
def routed_to(disk: Disk) -> Iterator[None]:
    """Send file system calls below `ROOT` to `disk`, while in the block."""
    calls = _Calls(disk)
    open_file = _route(io.open, calls.open)
    routes = [
        (os, "stat", calls.stat),
        (os, "lstat", calls.lstat),
        (os, "chmod", lambda path, mode, **ignored: disk.chmod(path, mode)),
        (os, "readlink", disk.readlink),
        (os, "truncate", calls.truncate),
        (os, "fchmod", calls.chmod_descriptor),
        (os, "fstat", calls.stat_descriptor),
        (os, "mkdir", lambda path, mode=0o777: disk.mkdir(path)),
        (os, "rmdir", disk.rmdir),
        (os, "unlink", disk.unlink),
        (os, "remove", disk.unlink),
        (os, "rename", calls.rename),
        (os, "replace", calls.rename),
        (os, "listdir", lambda path: list(disk.folder(path).entries)),
        (os, "scandir", calls.scandir),
        (os, "open", calls.open_descriptor),
        (os, "fsync", calls.sync_descriptor),
        (os, "close", calls.close_descriptor),
        (shutil, "rmtree", calls.rmtree),
        (shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 40)),
    ]
    changes = [(module, name, _route(getattr(module, name), simulated)) for module, name, simulated in routes]
    changes += [(io, "open", open_file), (builtins, "open", open_file)]
    changes += [(os, "symlink", _second_routed(os.symlink, disk.symlink))]
    with replaced(changes):
        yield


def _route(real: Callable[..., Any], simulated: Callable[..., Any]) -> Callable[..., Any]:
    def call(target: Any = ".", *args: Any, **options: Any) -> Any:
        if isinstance(target, int):
            if target >= FIRST_DESCRIPTOR:
                return simulated(target, *args, **options)
        elif _is_simulated(path := os.fspath(target)):
            return simulated(path, *args, **options)
        return real(target, *args, **options)

    return call


def _second_routed(real: Callable[..., Any], simulated: Callable[..., Any]) -> Callable[..., Any]:
    """The same for a call whose second argument is the path."""

    def call(source: Any, target: Any, *args: Any, **options: Any) -> Any:
        if _is_simulated(path := os.fspath(target)):
            return simulated(os.fspath(source), path)
        return real(source, target, *args, **options)

    return call


def _is_simulated(path: Any) -> bool:
    return isinstance(path, str) and path.startswith(ROOT) and path[len(ROOT) :][:1] in ("", "/")


class _Entry:
    """What `os.scandir` gives."""

    def __init__(self, folder: str, name: str, node: Any) -> None:
        self.name, self.path, self._node = name, f"{folder}/{name}", node

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        if self.is_symlink():
            return follow_symlinks and os.path.isdir(self.path)
        return isinstance(self._node, Folder)

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        if self.is_symlink():
            return follow_symlinks and os.path.isfile(self.path)
        return isinstance(self._node, File)

    def is_symlink(self) -> bool:
        return isinstance(self._node, Link)


class _Calls:
    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._open: dict[int, str] = {}
        self._next = FIRST_DESCRIPTOR

    def stat(self, path: str, *, dir_fd: None = None, follow_symlinks: bool = True) -> os.stat_result:
        return self._disk.stat(path, follows=follow_symlinks)

    def lstat(self, path: str, *, dir_fd: None = None) -> os.stat_result:
        return self._disk.stat(path, follows=False)

    def truncate(self, path: str, length: int) -> None:
        self._disk.before_change("write", path)
        del self._disk.find(path).data[length:]

    def rename(self, source: str, target: Any) -> None:
        self._disk.rename(source, os.fspath(target))

    def rmtree(self, path: str, ignore_errors: bool = False) -> None:
        try:
            self._disk.rmtree(path)
        except OSError:
            if not ignore_errors:
                raise

    @contextmanager
    def scandir(self, path: str) -> Iterator[Iterator[_Entry]]:
        entries = self._disk.folder(path).entries
        yield iter([_Entry(path, name, node) for name, node in entries.items()])

    def open_descriptor(self, path: str, flags: int, mode: int = 0o777, *, dir_fd: None = None) -> int:
        if flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
            raise NotImplementedError(f"os.open({path!r}, {flags:#o}) for writing: use open()")
        self._disk.find(path)
        return self._describe(path)

    def sync_descriptor(self, descriptor: int) -> None:
        self._disk.sync(self._open[descriptor])

    def chmod_descriptor(self, descriptor: int, mode: int) -> None:
        self._disk.chmod(self._open[descriptor], mode)

    def stat_descriptor(self, descriptor: int) -> os.stat_result:
        return self._disk.stat(self._open[descriptor])

    def close_descriptor(self, descriptor: int) -> None:
        del self._open[descriptor]

    def open(
        self,
        path: str,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> Any:
        file = self._file(path, mode)
        raw = OpenFile(self._disk, path, file, mode, self._describe(path))
        return raw if "b" in mode else io.TextIOWrapper(raw, encoding or "utf-8", errors, newline)  # type: ignore[arg-type]

    def _file(self, path: str, mode: str) -> Any:
        if "w" in mode:
            return self._disk.create(path)
        if "x" in mode and os.path.exists(path):
            raise FileExistsError(path)
        if ("a" in mode or "x" in mode) and not os.path.exists(path):
            return self._disk.create(path)
        node = self._disk.find(path)
        if isinstance(node, Folder):
            raise IsADirectoryError(path)
        return node

    def _describe(self, path: str) -> int:
        self._next += 1
        self._open[self._next] = path
        return self._next
