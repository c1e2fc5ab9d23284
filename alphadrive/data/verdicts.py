"""Remembering that a dataset was found valid, so that a second start does not decode every image again.

A verdict is kept in the user's cache folder, never beside the data: a dataset from elsewhere must not
bring its own. Its key covers the shards (name, size, time of change, SHA-256 of the footer, which lists
the place and size of every page) and whatever else the caller checked against.
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alphadrive.atomic import write_json
from alphadrive.data.schema import shard_paths

logger = logging.getLogger(__name__)

_VERSION = 1
_FOOTER_BYTES = 1 << 18


def verdict_key(folder: Path, checked_against: Sequence[str]) -> str:
    """The key of a dataset as it is now, under what it was `checked_against`."""
    shards = [_fingerprint(path) for path in shard_paths(folder)]
    content = json.dumps([_VERSION, str(folder.resolve()), shards, list(checked_against)])
    return hashlib.sha256(content.encode()).hexdigest()


def _fingerprint(path: Path) -> list[object]:
    with path.open("rb") as stream:
        status = os.fstat(stream.fileno())
        stream.seek(max(0, status.st_size - _FOOTER_BYTES))
        footer = hashlib.sha256(stream.read()).hexdigest()
    return [path.name, status.st_size, status.st_mtime_ns, footer]


def recall_verdict(key: str) -> dict[str, Any] | None:
    """What was remembered under a key, or None."""
    try:
        verdict = json.loads(_path(key).read_text())
    except (OSError, ValueError):
        return None
    return verdict if isinstance(verdict, dict) else None


def remember_verdict(key: str, verdict: Mapping[str, object]) -> None:
    """Keep a verdict. A cache folder that cannot be written costs time at the next start, nothing else."""
    try:
        _path(key).parent.mkdir(parents=True, exist_ok=True)
        write_json(_path(key), verdict)
    except OSError as error:
        logger.warning("cannot remember that the dataset is valid (%s); the next start checks again", error)


def _path(key: str) -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "alphadrive" / "validated" / f"{key}.json"
