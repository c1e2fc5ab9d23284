"""`alphadrive data split`: one dataset into several, every scene whole on one side.

The side of a scene is decided by a hash of its name and the seed alone: the same scene falls to the same
side whatever else the dataset holds, so a dataset that grows keeps its splits.
"""

import dataclasses
import hashlib
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from alphadrive.data.parquet import DrivingDataset, write_records
from alphadrive.data.records import DrivingRecord
from alphadrive.data.scan import scan
from alphadrive.data.writing import check_writable
from alphadrive.errors import ConfigError, DataError
from alphadrive.locks import LOCK_FILE, take_lock

REST = "train"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def parse_shares(texts: list[str]) -> dict[str, float]:
    """Read `["eval=0.1", "test=0.05"]`; what is left over is `train`. Raises ConfigError."""
    shares: dict[str, float] = {}
    for text in texts:
        name, _, number = text.partition("=")
        try:
            share = float(number)
        except ValueError:
            share = 0.0
        if not _NAME.fullmatch(name) or name == REST or name in shares or not 0 < share < 1:
            raise ConfigError(
                f"--share {text!r}: expected NAME=SHARE, the share between 0 and 1, each name once and not "
                f"{REST!r}, which takes the rest; for example --share eval=0.1"
            )
        shares[name] = share
    if sum(shares.values()) >= 1:
        raise ConfigError(
            f"--share: {sum(shares.values()):g} in all, expected below 1; {REST!r} takes the rest"
        )
    return shares


def split_of(scene_id: str, shares: Mapping[str, float], seed: int) -> str:
    """The side of a scene, by the hash of its name.

    >>> {split_of(f"drive-{number}", {"eval": 0.5}, 0) for number in range(9)} == {"train", "eval"}
    True
    """
    digest = hashlib.blake2b(f"{seed}/{scene_id}".encode(), digest_size=8).digest()
    left = int.from_bytes(digest) / 2**64
    for name, share in shares.items():
        if left < share:
            return name
        left -= share
    return REST


@dataclasses.dataclass(frozen=True, slots=True)
class Side:
    """One split that was made: its folder, and how many rows and scenes it holds."""

    folder: Path
    num_rows: int
    num_scenes: int


def split_dataset(folder: Path, out: Path, shares: Mapping[str, float], seed: int = 0) -> list[Side]:
    """Write `out/NAME` for every share and `out/train` for the rest, the `split` column set accordingly.

    Streams; the folders get their names once all are complete. Raises as `planned_sides`, RunFolderError
    when another process is writing there.
    """
    sides = planned_sides(folder, out, shares, seed)
    names = [side.folder.name for side in sides]
    dataset = DrivingDataset(folder)
    with take_lock(out, "another process is splitting a dataset into this folder; wait, or choose another"):
        try:
            _write_sides(dataset, out, names, shares, seed)
        finally:
            (out / LOCK_FILE).unlink(missing_ok=True)
    return sides


def planned_sides(folder: Path, out: Path, shares: Mapping[str, float], seed: int = 0) -> list[Side]:
    """What `split_dataset` would make. Raises DataError when a side would be empty, a folder is there
    already, or none can be made."""
    check_writable(out)
    names = [REST, *shares]
    rows, scenes = _counted(folder, shares, seed)
    for name in names:
        if (out / name).exists():
            raise DataError(f"{out / name}: is there already; choose another --out or remove it first")
        if not rows[name]:
            raise DataError(
                f"{folder}: none of its {sum(scenes.values())} scenes falls to {name!r}; a scene stays "
                "whole, so choose larger shares, another --seed, or more scenes"
            )
    return [Side(out / name, rows[name], scenes[name]) for name in names]


def _write_sides(
    dataset: DrivingDataset, out: Path, names: Sequence[str], shares: Mapping[str, float], seed: int
) -> None:
    parts = {name: out / f".{name}.part" for name in names}
    try:
        for name, part in parts.items():
            shutil.rmtree(part, ignore_errors=True)
            write_records(_side(dataset, name, shares, seed), part)
        for name, part in parts.items():
            part.rename(out / name)
    except OSError as error:
        raise DataError(f"{out}: cannot be written: {error}; choose another --out") from error
    finally:
        for part in parts.values():
            shutil.rmtree(part, ignore_errors=True)


def _counted(folder: Path, shares: Mapping[str, float], seed: int) -> tuple[Counter[str], Counter[str]]:
    """Rows and scenes of each side."""
    rows: Counter[str] = Counter()
    seen: dict[bytes, str] = {}
    for row in scan(folder, ("scene_id",)):
        scene_id = row.values["scene_id"]
        if not scene_id:
            raise DataError(f"{row.where}: scene_id: got {scene_id!r}, expected the name of a scene")
        side = split_of(scene_id, shares, seed)
        rows[side] += 1
        seen[hashlib.blake2b(scene_id.encode(), digest_size=8).digest()] = side
    return rows, Counter(seen.values())


def _side(
    dataset: DrivingDataset, name: str, shares: Mapping[str, float], seed: int
) -> Iterator[DrivingRecord]:
    for record in dataset.records():
        if split_of(record.scene_id, shares, seed) == name:
            yield dataclasses.replace(record, split=name)
