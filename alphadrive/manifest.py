"""What proves a checkpoint: a manifest with the size and SHA-256 of every file, and one of itself.

    manifest.json   {"version", "step", "score", "files": {name: {"bytes", "sha256"}}, "sha256"}

A hash tells a damaged file, not one that somebody else wrote. DeepSpeed's files are pickles, and whoever
can write them runs code in the process that loads them: `check_owner` goes before that.
"""

import hashlib
import json
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from alphadrive.atomic import fsync_path
from alphadrive.errors import CheckpointError

MANIFEST = "manifest.json"
MANIFEST_VERSION = 2

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A manifest as it was read: `files` by name, each with its bytes and SHA-256; `score` is what the
    policy was worth when it was evaluated at this very step, None when it was not."""

    step: int
    score: float | None
    files: dict[str, tuple[int, str]]

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        return sum(num_bytes for num_bytes, _ in self.files.values())


def seal(folder: Path, step: int, score: float | None, note_file: Callable[[], None] = lambda: None) -> None:
    """Bring everything in a folder to disk, take write access from others, write the manifest.

    `note_file` is called whenever a file is on disk or hashed: of a large checkpoint that may take minutes.
    """
    files = files_below(folder)
    for path in [*files, *(path for path in folder.rglob("*") if path.is_dir()), folder]:
        path.chmod(path.stat().st_mode & ~_OTHERS_WRITE)
    for file in files:
        fsync_path(file)
        note_file()
    entries: dict[str, dict[str, int | str]] = {}
    for file in files:
        entries[_relative(file, folder)] = {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
        note_file()
    content = {"version": MANIFEST_VERSION, "step": step, "score": score, "files": entries}
    with (folder / MANIFEST).open("w", encoding="utf-8") as stream:
        json.dump(content | {"sha256": _own_digest(content)}, stream, indent=1, allow_nan=False)
        stream.flush()
        os.fchmod(stream.fileno(), os.fstat(stream.fileno()).st_mode & ~_OTHERS_WRITE)
        os.fsync(stream.fileno())
    for inner in [path for path in folder.rglob("*") if path.is_dir()]:
        fsync_path(inner)
    fsync_path(folder)


def read_manifest(checkpoint: Path) -> Manifest:
    """The manifest of a checkpoint folder. Raises CheckpointError when it is missing or damaged."""
    path = checkpoint / MANIFEST
    try:
        return parse_manifest(path.read_bytes(), path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; the checkpoint was never committed") from None
    except OSError as error:
        raise CheckpointError(f"{path}: not readable: {type(error).__name__}: {error}") from error


def parse_manifest(text: bytes, path: PurePath) -> Manifest:
    """The manifest in a file's content; `path` says in messages where it is from. Raises CheckpointError."""
    try:
        content = json.loads(text)
        if content["version"] != MANIFEST_VERSION:
            raise CheckpointError(
                f"{path}: format {content['version']!r}, expected {MANIFEST_VERSION}: another version of "
                "alphadrive wrote this checkpoint (its `model` folder can be used as `model.path`)"
            )
        digest = content.pop("sha256")
        if digest != _own_digest(content):
            raise CheckpointError(f"{path}: damaged: its content differs from its own SHA-256")
        files = {
            name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in content["files"].items()
        }
        return Manifest(step=int(content["step"]), score=content["score"], files=files)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: not readable: {type(error).__name__}: {error}") from error


def verify(checkpoint: Path) -> None:
    """Check every file of a checkpoint folder against its manifest.

    Raises CheckpointError naming the file and what is wrong with it: no or damaged manifest, a file
    missing, not listed, not readable, of another size, or of another SHA-256.
    """
    try:
        _compare(checkpoint, read_manifest(checkpoint).files)
    except OSError as error:
        raise CheckpointError(f"{checkpoint}: not readable: {error}") from error


def _compare(checkpoint: Path, listed: dict[str, tuple[int, str]]) -> None:
    if not listed:
        raise CheckpointError(f"{checkpoint / MANIFEST}: lists no files")
    present = {_relative(file, checkpoint) for file in files_below(checkpoint)} - {MANIFEST}
    if present != set(listed):
        raise CheckpointError(
            f"{checkpoint}: files missing: {sorted(set(listed) - present)}, "
            f"not in the manifest: {sorted(present - set(listed))}"
        )
    for name, (num_bytes, digest) in listed.items():
        actual_bytes = (checkpoint / name).stat().st_size
        if actual_bytes != num_bytes:
            raise CheckpointError(f"{checkpoint / name}: {actual_bytes} bytes, expected {num_bytes}")
        if sha256_of(checkpoint / name) != digest:
            raise CheckpointError(f"{checkpoint / name}: SHA-256 differs from the manifest's")


def check_owner(folder: Path) -> None:
    """Refuse what somebody else could have written: loading a learner's files runs what is in them.

    Raises CheckpointError for a file or folder that is another user's, that its group or everybody may
    write, or that is a link.
    """
    for path in [folder, *sorted(folder.rglob("*"))]:
        status = path.lstat()
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            problem = "is a link or no plain file"
        elif status.st_uid != os.geteuid():
            problem = f"belongs to user {status.st_uid}, this process runs as {os.geteuid()}"
        elif status.st_mode & _OTHERS_WRITE:
            problem = f"may be written by others (mode {stat.filemode(status.st_mode)})"
        else:
            continue
        raise CheckpointError(
            f"{path}: {problem}. A learner's checkpoint runs code when it is loaded; if you trust what is "
            f"in it, copy it and make it yours alone: chmod -R go-w {folder}"
        )


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in bounded memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_below(folder: Path) -> list[Path]:
    """Every file in a folder and its folders, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _own_digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _relative(file: Path, folder: Path) -> str:
    return file.relative_to(folder).as_posix()
