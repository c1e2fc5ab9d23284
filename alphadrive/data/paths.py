"""Files that a dataset names, read only when they truly lie under the dataset's folder."""

import os
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath

from alphadrive.errors import DataError

MAX_FILE_BYTES = 256 << 20


def resolve_under(root: Path, name: str) -> Path:
    """The regular file `name` under `root`.

    Raises DataError for an absolute path, one with `..`, one that leaves `root` through a link, and
    anything that is no regular file.
    """
    relative = PurePosixPath(name)
    windows = PureWindowsPath(name)
    if not name or "\0" in name or relative.is_absolute() or windows.drive or windows.root or "\\" in name:
        raise DataError(f"path {name!r}: expected a relative path under {root}")
    if ".." in relative.parts:
        raise DataError(f"path {name!r}: contains '..'; expected a path under {root}")
    try:
        resolved = (root / relative).resolve(strict=True)
        is_regular = stat.S_ISREG(resolved.stat().st_mode)
    except (OSError, RuntimeError, UnicodeEncodeError) as error:
        raise DataError(f"path {name!r}: no such file under {root}") from error
    if not resolved.is_relative_to(root.resolve()):
        raise DataError(f"path {name!r}: leads out of {root} through a link")
    if not is_regular:
        raise DataError(f"path {name!r}: no regular file")
    return resolved


def read_file_under(root: Path, name: str) -> bytes:
    """The bytes of a file under `root`, of at most 256 MiB. Raises DataError."""
    path = resolve_under(root, name)
    try:
        with path.open("rb") as stream:
            num_bytes = os.fstat(stream.fileno()).st_size
            if num_bytes > MAX_FILE_BYTES:
                raise DataError(f"path {name!r}: got {num_bytes} bytes, expected at most {MAX_FILE_BYTES}")
            return stream.read(MAX_FILE_BYTES)
    except OSError as error:
        raise DataError(f"path {name!r}: cannot be read: {error}") from error
