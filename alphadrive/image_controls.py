"""The images of an ablation (`alphadrive.ablations`): a grey copy of a dataset, a reordering of its rows."""

import dataclasses
import io
import random
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from PIL import Image

from alphadrive.data.parquet import DrivingDataset, write_records
from alphadrive.data.records import DrivingRecord
from alphadrive.errors import DataError


def derangement(num_rows: int, seed: int = 0) -> list[int]:
    """A fixed reordering of `range(num_rows)` in which no row keeps its place (one cycle through all).

    Raises DataError for fewer than two rows.
    """
    if num_rows < 2:
        raise DataError(f"shuffling the images of {num_rows} row: expected at least 2 rows")
    order = list(range(num_rows))
    random.Random(seed).shuffle(order)
    images = [0] * num_rows
    for here, following in zip(order, order[1:] + order[:1], strict=True):
        images[here] = following
    return images


def write_blank_copy(dataset: DrivingDataset, folder: Path, num_rows: int) -> None:
    """Write the first rows of a dataset to `folder` with every image replaced by a grey one of its size."""

    def blanked() -> Iterator[DrivingRecord]:
        for row in range(num_rows):
            record = dataset.record(row)
            images = tuple(
                dataclasses.replace(image, data=_grey_png(image.width, image.height))
                for image in record.images
            )
            yield dataclasses.replace(record, images=images)

    write_records(blanked(), folder)


@lru_cache(maxsize=8)
def _grey_png(width: int, height: int) -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", (width, height), (128, 128, 128)).save(encoded, format="PNG")
    return encoded.getvalue()
