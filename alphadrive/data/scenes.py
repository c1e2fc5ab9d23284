"""Scenes in splits: a scene that stands in two would be trained on and tested with.

Only ids are read. `alphadrive data validate` asks about the `split` column of one or several folders,
the checks before training about the folders that a configuration names.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from alphadrive.data.scan import ScannedRow, scan
from alphadrive.errors import DataError

_REMEDY = "a scene belongs to one split as a whole: use `alphadrive data split`"


def split_problems(folders: Sequence[Path]) -> Iterator[str]:
    """Each scene whose rows are of two splits, named once, with the two rows where that shows.

    Memory: some 300 bytes a scene. A folder that cannot be read is left out; validation names it.
    """
    seen: dict[bytes, tuple[str, str]] = {}
    named: set[bytes] = set()
    for folder in dict.fromkeys(folders):
        try:
            for row in scan(folder, ("scene_id", "split")):
                key, split = _scene_key(row), str(row.values["split"])
                first_split, first_where = seen.setdefault(key, (split, row.where))
                if split != first_split and key not in named:
                    named.add(key)
                    yield (
                        f"{row.where}: scene_id: {row.values['scene_id']!r} is of split {split!r} here and "
                        f"of {first_split!r} in {first_where}; {_REMEDY}"
                    )
        except DataError:
            continue


def check_apart(
    train: Path, evaluation: Path, num_train: int | None = None, num_evaluation: int | None = None
) -> None:
    """Raise DataError when a scene of the training rows is in the evaluation rows too.

    Only the first rows count where a number is given. One folder named for both is taken as meant.
    """
    if train.resolve() == evaluation.resolve():
        return
    trained = {_scene_key(row): row.where for row in scan(train, ("scene_id",), num_train)}
    shared: set[bytes] = set()
    first = ""
    for row in scan(evaluation, ("scene_id",), num_evaluation):
        key = _scene_key(row)
        if key in trained and key not in shared:
            shared.add(key)
            first = first or (
                f"{row.where}: scene_id: {row.values['scene_id']!r} is in data.eval here and in "
                f"data.train in {trained[key]}"
            )
    if shared:
        raise DataError(f"{first}; {len(shared)} scenes are in both; {_REMEDY}")


def _scene_key(row: ScannedRow) -> bytes:
    return hashlib.blake2b(str(row.values["scene_id"]).encode(), digest_size=8).digest()
