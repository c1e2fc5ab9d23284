"""The shard schema: columns and version, a row as values and as a record, the check of a folder.

`alphadrive.data.parquet` reads with it, `alphadrive.data.writing` writes with it.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from alphadrive.data.records import DrivingRecord, ImageRecord
from alphadrive.errors import DataError

SCHEMA_VERSION = "1"
VERSION_KEY = b"alphadrive_schema_version"

_IMAGE = pa.struct(
    [
        ("camera", pa.string()),
        ("dt_s", pa.float64()),
        ("bytes", pa.binary()),
        ("width", pa.int32()),
        ("height", pa.int32()),
    ]
)
SCHEMA = pa.schema(
    [
        ("query_id", pa.string()),
        ("scene_id", pa.string()),
        ("time_s", pa.float64()),
        ("split", pa.string()),
        ("images", pa.list_(_IMAGE)),
        ("speed_mps", pa.float32()),
        ("navigation", pa.string()),
        ("plans", pa.list_(pa.string())),
        ("reasoning", pa.string()),
        ("teacher_plan", pa.string()),
        ("waypoints", pa.list_(pa.list_(pa.float32()))),
        ("source", pa.string()),
        ("label_rule", pa.string()),
    ],
    metadata={VERSION_KEY: SCHEMA_VERSION.encode()},
)
IMPORT_FOLDER = ".import"
STATE_FILE = "state.json"
"""Where an import keeps what it has until it is complete, and the file there that says how far it is."""
MAX_GROUP_BYTES = 1 << 29
UNREADABLE = (pa.ArrowException, OSError, UnicodeDecodeError)
"""What pyarrow raises for damaged files."""
ALL_COLUMNS = tuple(SCHEMA.names)


def shard_name(number: int) -> str:
    """The file name of a shard, counted from 0."""
    return f"part-{number:05d}.parquet"


def shard_paths(folder: Path) -> list[Path]:
    """The shards of a dataset folder, in order."""
    return sorted(folder.glob("part-*.parquet"))


def row_of(record: DrivingRecord) -> dict[str, Any]:
    """The column values of a record."""
    row = {name: getattr(record, name) for name in ALL_COLUMNS if name != "images"}
    row["images"] = [
        {
            "camera": image.camera,
            "dt_s": image.dt_s,
            "bytes": image.data,
            "width": image.width,
            "height": image.height,
        }
        for image in record.images
    ]
    return row


def record_of(values: dict[str, Any]) -> DrivingRecord:
    """The record with these column values. Nulls of a foreign writer stay None, for the checks to find."""
    absent: dict[str, Any] = dict.fromkeys(("camera", "dt_s", "bytes", "width", "height"))
    images = tuple(
        ImageRecord(
            camera=image["camera"],
            dt_s=image["dt_s"],
            data=image["bytes"],
            width=image["width"],
            height=image["height"],
        )
        for image in (found or absent for found in values["images"] or ())
    )
    return DrivingRecord(
        **{
            **values,
            "images": images,
            "plans": tuple(values["plans"] or ()),
            "waypoints": waypoints_of(values),
        }
    )


def waypoints_of(values: dict[str, Any]) -> tuple[tuple[float, ...], ...] | None:
    """The waypoints among the column values of a row."""
    waypoints = values["waypoints"]
    return None if waypoints is None else tuple(tuple(point or ()) for point in waypoints)


def checked_shards(folder: Path) -> list[Path]:
    """The shards of a folder. Raises DataError when there are none, one is missing in between, or the
    import that makes them is not complete."""
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder; expected Parquet shards as `alphadrive data` writes them; "
            f"`alphadrive data synth --out {folder} --num 400` renders some"
        )
    if (folder / IMPORT_FOLDER / STATE_FILE).exists():
        raise DataError(
            f"{folder}: holds an import that is not complete; run the same `alphadrive data import` "
            f"again to finish it, or remove {folder / IMPORT_FOLDER}"
        )
    shards = shard_paths(folder)
    if not shards:
        raise DataError(
            f"{folder}: holds no shards; expected part-00000.parquet ... as `alphadrive data synth` or "
            "`alphadrive data import` writes them"
        )
    for number, path in enumerate(shards):
        expected = shard_name(number)
        if path.name != expected:
            raise DataError(f"{folder}: expected {expected} next, got {path.name}; a shard is missing")
    return shards


def checked_metadata(path: Path) -> pq.FileMetaData:
    """A shard's footer. Raises DataError for a file that is no complete Parquet, or of another schema."""
    try:
        metadata = pq.read_metadata(path)
        columns = metadata.schema.to_arrow_schema()
    except UNREADABLE as error:
        raise DataError(
            f"{path}: no complete Parquet file ({error}); truncated or something else: write it again"
        ) from error
    version = (metadata.metadata or {}).get(VERSION_KEY)
    if version is None or version.decode(errors="replace") != SCHEMA_VERSION:
        got = "none" if version is None else repr(version.decode(errors="replace"))
        raise DataError(
            f"{path}: {VERSION_KEY.decode()}: got {got}, expected {SCHEMA_VERSION!r}; "
            "write the dataset with this version of `alphadrive data`"
        )
    _check_columns(path, columns)
    for index in range(metadata.num_row_groups):
        num_bytes = metadata.row_group(index).total_byte_size
        if num_bytes > MAX_GROUP_BYTES:
            raise DataError(
                f"{path}: row group {index} takes {num_bytes} bytes, expected at most {MAX_GROUP_BYTES}; "
                "a row group is read as a whole: write the file with smaller ones"
            )
    return metadata


def _check_columns(path: Path, found: pa.Schema) -> None:
    for field in SCHEMA:
        index = found.get_field_index(field.name)
        if index < 0:
            raise DataError(f"{path}: {field.name}: no such column; expected {field.type}")
        if found.field(index).type != field.type:
            raise DataError(
                f"{path}: {field.name}: got type {found.field(index).type}, expected {field.type}"
            )
