"""Import of the published MetaAD layout: JSON objects with image, problem, solution and thinking.

A file holds one object, a list of them, or one a line; a folder holds such files and the images.
Speed and navigation are read out of the problem text. Image bytes are stored as they are.
"""

import dataclasses
import functools
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from alphadrive.actions import PATHS, SPEEDS, parse_answer
from alphadrive.data.candidates import Candidate
from alphadrive.data.drive_rows import front_image
from alphadrive.data.importing import ImportSource, SourceUnit
from alphadrive.data.paths import read_file_under
from alphadrive.data.records import DrivingRecord, ImageRecord
from alphadrive.errors import DataError

SOURCE = "metaad"
LABEL_RULE = "metaad/solution"
_SPEED = re.compile(r"current speed is\s+(\S+?)\s*m/s")
_NAVIGATION = re.compile(r"navigation command is\s+'(.*?)', based on", re.DOTALL)
_THINK_TAG = re.compile(r"</?think>")
_CHUNK = 1 << 16
_MAX_OBJECT_CHARS = 1 << 20
_BETWEEN = " \t\r\n,[]"


def metaad_source(path: Path, split: str) -> ImportSource:
    """The JSON objects of a MetaAD file or folder. Raises DataError when there is none."""
    files = sorted([*path.glob("*.json"), *path.glob("*.jsonl")]) if path.is_dir() else [path]
    if not path.exists() or not files:
        raise DataError(f"{path}: expected a MetaAD JSON file, or a folder with *.json or *.jsonl files")
    root = path if path.is_dir() else path.parent
    # One unit: how a row is named depends on all before it.
    unit = SourceUnit(name=path.name, candidates=functools.partial(_candidates, files, root, split))
    return ImportSource(layout=SOURCE, path=path, units=[unit], files=files, options={"split": split})


def _candidates(files: Sequence[Path], root: Path, split: str) -> Iterator[Candidate]:
    uses: Counter[str] = Counter()
    for number, file in enumerate(files):
        try:
            for row, (value, share_read) in enumerate(json_objects(file)):
                problems: list[str] = []
                record = _record_of(value, root, split, problems)
                if record is not None:
                    uses[record.query_id] += 1
                    if uses[record.query_id] > 1:
                        # The layout has no id and several rows may share an image.
                        record = _renamed(record, uses[record.query_id])
                yield Candidate(
                    where=str(file),
                    row=row,
                    record=record,
                    problems=problems,
                    share_done=(number + share_read) / len(files),
                )
        except DataError as error:
            yield Candidate(where=str(file), problems=[str(error).removeprefix(f"{file}: ")])


def json_objects(file: Path) -> Iterator[tuple[Any, float]]:
    """The JSON values of a file that holds one object, a list, or one a line; one at a time in memory,
    each with the share of the file that is read.

    Raises DataError where the text is no JSON.
    """
    num_bytes = max(file.stat().st_size, 1)
    decoder = json.JSONDecoder()
    text, num_read, num_open, ended = "", 0, 0, False
    with file.open("rb") as raw, io.TextIOWrapper(raw, encoding="utf-8-sig") as stream:
        while True:
            rest = text.lstrip(_BETWEEN)
            between, text = text[: len(text) - len(rest)], rest
            num_open += between.count("[") - between.count("]")
            if not text and ended:
                if num_open > 0:
                    raise DataError(f"{file}: ends within its list, after {num_read} objects; fetch it again")
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
                yield value, min(raw.tell() / num_bytes, 1.0)
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
        return front_image(read_file_under(root, name))
    except DataError as error:
        problems.append(f"image: {error}")
        return None
