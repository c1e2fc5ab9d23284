"""Import of the published MetaAD layout: JSON objects with image, problem, solution and thinking.

A file holds one object, a list of them, or one a line; a folder holds such files and the images.
Speed and navigation are read out of the problem text. Image bytes are stored as they are.
"""

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from alphadrive.actions import PATHS, SPEEDS, parse_answer
from alphadrive.data.checks import FRONT_CAMERA
from alphadrive.data.images import read_header
from alphadrive.data.paths import read_file_under
from alphadrive.data.records import DrivingRecord, ImageRecord
from alphadrive.data.validate import Candidate, write_valid_records
from alphadrive.errors import DataError

SOURCE = "metaad"
LABEL_RULE = "metaad/solution"
_SPEED = re.compile(r"current speed is\s+(\S+?)\s*m/s")
_NAVIGATION = re.compile(r"navigation command is\s+'(.*?)', based on", re.DOTALL)
_THINK_TAG = re.compile(r"</?think>")
_CHUNK = 1 << 16
_MAX_OBJECT_CHARS = 1 << 20
_BETWEEN = " \t\r\n,[]"


def import_metaad(path: Path, out: Path, split: str = "train", max_bad_rows: int = 0) -> tuple[int, int]:
    """Import a MetaAD file or folder into a new dataset folder; returns (written, rejected) rows.

    Raises DataError with every problem (file, object, field) when more than `max_bad_rows` objects
    are bad; nothing is written then.
    """
    return write_valid_records(metaad_candidates(Path(path), split), out, max_bad_rows)


def metaad_candidates(path: Path, split: str) -> Iterator[Candidate]:
    """Each JSON object under `path` as a record or as what is wrong with it, in a stream."""
    root = path if path.is_dir() else path.parent
    files = sorted([*path.glob("*.json"), *path.glob("*.jsonl")]) if path.is_dir() else [path]
    if not path.exists() or not files:
        raise DataError(f"{path}: expected a MetaAD JSON file, or a folder with *.json or *.jsonl files")
    uses: Counter[str] = Counter()
    for file in files:
        for number, row in enumerate(json_objects(file)):
            where = f"{file}: row {number}"
            problems: list[str] = []
            record = _record_of(row, root, split, problems)
            if record is None:
                yield Candidate(where=where, problems=problems)
                continue
            uses[record.query_id] += 1
            if uses[record.query_id] > 1:
                # The layout has no id and several rows may share an image.
                yield Candidate(where=where, record=_renamed(record, uses[record.query_id]))
            else:
                yield Candidate(where=where, record=record)


def json_objects(file: Path) -> Iterator[Any]:
    """The JSON values of a file that holds one object, a list, or one a line; one at a time in memory.

    Raises DataError where the text is no JSON.
    """
    decoder = json.JSONDecoder()
    text, num_read, ended = "", 0, False
    with file.open(encoding="utf-8-sig") as stream:
        while True:
            text = text.lstrip(_BETWEEN)
            if not text and ended:
                return
            try:
                value, end = decoder.raw_decode(text)
            except (json.JSONDecodeError, RecursionError) as error:
                if ended or len(text) > _MAX_OBJECT_CHARS:
                    raise DataError(
                        f"{file}: row {num_read}: no valid JSON ({error}) at {text[:60]!r}; "
                        "expected an object, a list of objects, or one a line"
                    ) from error
                more = _next_chunk(file, stream)
                ended, text = not more, text + more
            else:
                yield value
                num_read, text = num_read + 1, text[end:]


def _next_chunk(file: Path, stream: TextIO) -> str:
    try:
        return stream.read(_CHUNK)
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text: {error}") from error


def _record_of(row: Any, root: Path, split: str, problems: list[str]) -> DrivingRecord | None:
    """The record of one object, or None with what is wrong added to `problems`."""
    if not isinstance(row, dict):
        problems.append(f"got {type(row).__name__}, expected an object with image, problem and solution")
        return None
    texts = {name: row.get(name) for name in ("image", "problem", "solution")}
    for name, value in texts.items():
        if not isinstance(value, str) or not value.strip():
            problems.append(f"{name}: got {value!r}, expected a non-empty text")
            texts[name] = None
    speed, navigation = _situation(texts["problem"], problems)
    plan = _plan(texts["solution"], problems)
    image = _image(texts["image"], root, problems)
    thinking = row.get("thinking")
    if thinking is not None and not isinstance(thinking, str):
        problems.append(f"thinking: got {type(thinking).__name__}, expected a text")
    if problems or speed is None or navigation is None or plan is None or image is None:
        return None
    name = Path(str(texts["image"])).with_suffix("").as_posix()
    return DrivingRecord(
        query_id=f"{SOURCE}/{name}",
        scene_id=f"{SOURCE}/{name}",
        time_s=0.0,
        split=split,
        images=(image,),
        speed_mps=speed,
        navigation=navigation,
        plans=(plan,),
        reasoning=_THINK_TAG.sub("", thinking or "").strip() or None,
        source=SOURCE,
        label_rule=LABEL_RULE,
    )


def _renamed(record: DrivingRecord, use: int) -> DrivingRecord:
    return dataclasses.replace(record, query_id=f"{record.query_id}#{use}")


def _situation(problem: str | None, problems: list[str]) -> tuple[float | None, str | None]:
    if problem is None:
        return None, None
    speed, navigation = _SPEED.search(problem), _NAVIGATION.search(problem)
    if navigation is None:
        problems.append("problem: no navigation, expected \"navigation command is '...', based on\" in it")
    try:
        speed_mps = float(speed.group(1)) if speed else None
    except ValueError:
        speed_mps = None
    if speed_mps is None:
        problems.append("problem: no speed, expected 'current speed is 4.2m/s' in it")
    return speed_mps, navigation.group(1) if navigation else None


def _plan(solution: str | None, problems: list[str]) -> str | None:
    if solution is None:
        return None
    plan = parse_answer(solution)
    if plan is None:
        problems.append(
            f"solution: got {solution[:80]!r}, expected <answer> SPEED, PATH </answer> with SPEED one of "
            f"{', '.join(SPEEDS)} and PATH one of {', '.join(PATHS)}"
        )
    return str(plan) if plan else None


def _image(name: str | None, root: Path, problems: list[str]) -> ImageRecord | None:
    if name is None:
        return None
    try:
        data = read_file_under(root, name)
        header = read_header(data)
    except DataError as error:
        problems.append(f"image: {error}")
        return None
    return ImageRecord(camera=FRONT_CAMERA, dt_s=0.0, data=data, width=header.width, height=header.height)
