"""A disk in memory that can be full, torn and cut off: what is not synced may not survive a power cut.

    file     content, and the content of the last fsync
    folder   entries, the entries that are surely on the disk, and the changes since, in order

After `power_cut` every folder keeps some beginning of its unsynced changes, as a journal does, and every
file that was not synced is old, whole or torn. A process that is killed loses nothing but what it
had not yet written. The calls of `os`, `io` and `shutil` are sent here by `simulation.os_calls`.
"""

import errno
import io
import os
import random
import stat
from collections.abc import Callable
from typing import Any

ROOT = "/sim"
Change = dict[str, Any]
"""Names and their new nodes (File, Folder or Link); None for those that go."""


class File:
    """A file's content, and what of it is surely on the disk."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.synced: bytes | None = None
        self.mode = 0o644

    def after_power_cut(self, chance: random.Random) -> None:
        old = self.synced or b""
        if bytes(self.data) != old:
            torn = self.data[: chance.randrange(len(self.data) + 1)]
            self.data = bytearray(chance.choice([old, bytes(torn), bytes(self.data)]))
        self.synced = bytes(self.data)


class Link:
    """A symbolic link to an entry of its own folder."""

    def __init__(self, target: str) -> None:
        self.target = target

    def after_power_cut(self, chance: random.Random) -> None:
        """It is there or not, by its folder."""


class Folder:
    """A folder's entries, and what of them is surely on the disk. A change is {name: node or None}."""

    def __init__(self) -> None:
        self.entries: dict[str, Any] = {}
        self.mode = 0o755
        self._synced: dict[str, Any] = {}
        self._changes: list[Change] = []

    def change(self, change: Change) -> None:
        """Make a change, whole or not at all."""
        self._changes.append(change)
        self.entries = _changed(self.entries, change)

    def sync(self) -> None:
        self._synced, self._changes = dict(self.entries), []

    def after_power_cut(self, chance: random.Random) -> None:
        kept = chance.randrange(len(self._changes) + 1)
        self.entries = self._synced
        for change in self._changes[:kept]:
            self.entries = _changed(self.entries, change)
        self.sync()
        for node in self.entries.values():
            node.after_power_cut(chance)


def _changed(entries: dict[str, Any], change: Change) -> dict[str, Any]:
    after = dict(entries)
    for name, node in change.items():
        if node is None:
            after.pop(name, None)
        else:
            after[name] = node
    return after


class Disk:
    """The file system below `ROOT`. `before_change(kind, path)` is called before anything is changed or
    synced (`write`, `create`, `mkdir`, `rename`, `remove`, `sync`); what it raises (OSError, a death) is
    what the caller sees."""

    def __init__(self, before_change: Callable[[str, str], None]) -> None:
        self.root = Folder()
        self.before_change = before_change

    def find(self, path: str, *, follows: bool = True) -> Any:
        """The node at a path; what a link at its end names, if `follows`. Raises FileNotFoundError,
        NotADirectoryError."""
        node: Any = self.root
        parts = _parts(path)
        for depth, name in enumerate(parts, 1):
            if not isinstance(node, Folder):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
            found = node.entries.get(name)
            if isinstance(found, Link) and (follows or depth < len(parts)):
                found = node.entries.get(found.target)
            if found is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            node = found
        return node

    def folder(self, path: str) -> Folder:
        node = self.find(path)
        if not isinstance(node, Folder):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        return node

    def stat(self, path: str, *, follows: bool = True) -> os.stat_result:
        node = self.find(path, follows=follows)
        if isinstance(node, Link):
            mode, size = stat.S_IFLNK | 0o777, len(node.target)
        elif isinstance(node, Folder):
            mode, size = stat.S_IFDIR | node.mode, 0
        else:
            mode, size = stat.S_IFREG | node.mode, len(node.data)
        return os.stat_result((mode, id(node), 1, 1, os.geteuid(), 0, size, 0, 0, 0))

    def chmod(self, path: str, mode: int) -> None:
        node = self.find(path)
        self.before_change("chmod", path)
        node.mode = mode & 0o777

    def symlink(self, target: str, path: str) -> None:
        parent, name = self._place(path)
        if name in parent.entries:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        self.before_change("create", path)
        parent.change({name: Link(target)})

    def readlink(self, path: str) -> str:
        node = self.find(path, follows=False)
        if not isinstance(node, Link):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
        return node.target

    def create(self, path: str) -> File:
        """A new, empty file in place of what was there."""
        parent, name = self._place(path)
        if isinstance(parent.entries.get(name), Folder):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        file = File()
        self.before_change("create", path)
        parent.change({name: file})
        return file

    def mkdir(self, path: str) -> None:
        parent, name = self._place(path)
        if name in parent.entries:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        self.before_change("mkdir", path)
        parent.change({name: Folder()})

    def rename(self, source: str, target: str) -> None:
        """As rename(2): replaces a file or an empty folder."""
        node = self.find(source, follows=False)
        (before, old_name), (after, name) = self._place(source), self._place(target)
        there = after.entries.get(name)
        if isinstance(there, Folder) and there.entries:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), target)
        self.before_change("rename", target)
        if before is after:
            before.change({old_name: None, name: node} if old_name != name else {})
        else:
            after.change({name: node})
            before.change({old_name: None})

    def unlink(self, path: str) -> None:
        if isinstance(self.find(path, follows=False), Folder):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        parent, name = self._place(path)
        self.before_change("remove", path)
        parent.change({name: None})

    def rmdir(self, path: str) -> None:
        if self.folder(path).entries:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)
        parent, name = self._place(path)
        self.before_change("remove", path)
        parent.change({name: None})

    def rmtree(self, path: str) -> None:
        """Entry by entry, as shutil does: a death in between leaves the rest."""
        for name, node in sorted(self.folder(path).entries.items()):
            if isinstance(node, Folder):
                self.rmtree(f"{path}/{name}")
            else:
                self.unlink(f"{path}/{name}")
        self.rmdir(path)

    def sync(self, path: str) -> None:
        """fsync: the file's content or the folder's entries, and the way to it from the root."""
        self.before_change("sync", path)
        node = self.find(path)
        if isinstance(node, File):
            node.synced = bytes(node.data)
        else:
            node.sync()
        parts = _parts(path)
        for depth in range(len(parts)):
            self.folder("/".join([ROOT, *parts[:depth]])).sync()

    def power_cut(self, chance: random.Random) -> None:
        """The machine stops and starts again."""
        self.root.after_power_cut(chance)

    def files(self, path: str = ROOT) -> list[str]:
        """The paths of all files below a folder, in order."""
        found: list[str] = []
        for name, node in sorted(self.folder(path).entries.items()):
            below = f"{path}/{name}"
            if isinstance(node, Folder):
                found += self.files(below)
            elif isinstance(node, File):
                found.append(below)
        return found

    def _place(self, path: str) -> tuple[Folder, str]:
        parts = _parts(path)
        return self.folder("/".join([ROOT, *parts[:-1]])), parts[-1]


class OpenFile(io.RawIOBase):
    """A file that is open; writes reach the disk at once."""

    def __init__(self, disk: Disk, path: str, file: File, mode: str, descriptor: int) -> None:
        self._disk, self._path, self._file, self._mode = disk, path, file, mode
        self._descriptor = descriptor
        self._at = len(file.data) if "a" in mode else 0

    def fileno(self) -> int:
        return self._descriptor

    def readable(self) -> bool:
        return "r" in self._mode or "+" in self._mode

    def writable(self) -> bool:
        return self._mode.strip("bt") != "r"

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: len(self._file.data)}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def getbuffer(self) -> memoryview:
        """The whole content, for `hashlib.file_digest`."""
        return memoryview(bytes(self._file.data))

    def read(self, size: int | None = -1) -> bytes:
        end = len(self._file.data) if size is None or size < 0 else self._at + size
        content = bytes(self._file.data[self._at : end])
        self._at += len(content)
        return content

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def write(self, content: "bytes | bytearray | memoryview") -> int:  # type: ignore[override]
        middle = len(content) // 2
        for part in (content[:middle], content[middle:]):
            self._disk.before_change("write", self._path)
            start = len(self._file.data) if "a" in self._mode else self._at
            self._file.data[start : start + len(part)] = part
            self._at = start + len(part)
        return len(content)

    def truncate(self, size: int | None = None) -> int:
        self._disk.before_change("write", self._path)
        kept = self._at if size is None else size
        del self._file.data[kept:]
        return kept


def _parts(path: str) -> list[str]:
    return [part for part in path[len(ROOT) :].split("/") if part]
