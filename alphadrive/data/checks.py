"""What a valid row is: every check of one record, each problem as `field: got, expected`.

Pure: no file is read. `alphadrive.data.validate` walks a dataset with these, imports and synthesis
apply them before anything is written.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence

from alphadrive.actions import PATHS, SPEEDS, parse_plan
from alphadrive.data.images import MAX_ASPECT_RATIO, decode_image
from alphadrive.data.records import NUM_WAYPOINTS, WAYPOINT_STEP_S, DrivingRecord, ImageRecord
from alphadrive.errors import DataError

FRONT_CAMERA = "front"
MAX_SPEED_MPS = 70.0
MARKUP = re.compile(r"<\|[^<>|\s]{1,40}\|>|</?(?:think|trajectory|answer)>", re.IGNORECASE)
"""Chat markup and answer tags: never part of what a dataset says, whatever the tokenizer."""

RecordCheck = Callable[[str, DrivingRecord], Sequence[str]]
"""Takes where a record is (file and row) and the record; returns its problems."""


def record_problems(
    record: DrivingRecord, special_tokens: Sequence[str] = (), *, needs_image: bool = True
) -> list[str]:
    """Every problem of one record, as `field: what is wrong, what was expected`; empty when valid.

    Decodes every image fully. `special_tokens` are the tokenizer's, refused in text beside the
    markup that is always refused. Without `needs_image` a record with no image at all passes.
    """
    check_images = needs_image or bool(record.images)
    return [
        *_text_problems(record, special_tokens),
        *_number_problems(record),
        *_plan_problems(record),
        *(_images_problems(record.images) if check_images else ()),
    ]


def _text_problems(record: DrivingRecord, special_tokens: Sequence[str]) -> Iterator[str]:
    for name in ("query_id", "scene_id", "split", "source", "label_rule"):
        value = getattr(record, name)
        if not value:
            yield f"{name}: got {value!r}, expected a non-empty text"
    for name in ("query_id", "scene_id", "split", "source", "label_rule", "navigation", "reasoning"):
        if _is_broken_text(getattr(record, name) or ""):
            yield f"{name}: has half of a surrogate pair, expected Unicode text: its JSON is damaged"
    if record.navigation is None:
        yield "navigation: got null, expected a text"
    if record.reasoning is not None and not record.reasoning.strip():
        yield "reasoning: got an empty text, expected the teacher's words or null"
    for name, text in (("navigation", record.navigation), ("reasoning", record.reasoning)):
        for token in _tokens_in(text or "", special_tokens):
            yield f"{name}: contains {token!r}, a special token or tag; expected plain words: remove it"


def _is_broken_text(text: str) -> bool:
    """Whether a text cannot be written as UTF-8: JSON may hold such ones, Parquet may not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _tokens_in(text: str, special_tokens: Sequence[str]) -> list[str]:
    found = [match.group() for match in MARKUP.finditer(text)]
    found += [token for token in special_tokens if token in text]
    return list(dict.fromkeys(found))


def _number_problems(record: DrivingRecord) -> Iterator[str]:
    if record.time_s is None or not math.isfinite(record.time_s):
        yield f"time_s: got {record.time_s}, expected a finite number of seconds"
    speed = record.speed_mps
    if speed is None or not 0.0 <= speed <= MAX_SPEED_MPS:
        yield f"speed_mps: got {speed}, expected 0 to {MAX_SPEED_MPS:g} m/s"
    yield from _waypoint_problems(record)


def _waypoint_problems(record: DrivingRecord) -> Iterator[str]:
    if record.waypoints is None:
        return
    if len(record.waypoints) != NUM_WAYPOINTS:
        yield (
            f"waypoints: got {len(record.waypoints)} points, expected {NUM_WAYPOINTS}: one every "
            f"{WAYPOINT_STEP_S:g} s up to {NUM_WAYPOINTS * WAYPOINT_STEP_S:g} s"
        )
    for index, point in enumerate(record.waypoints):
        reach_m = MAX_SPEED_MPS * WAYPOINT_STEP_S * (index + 1)
        if len(point) != 2 or any(value is None or not math.isfinite(value) for value in point):
            yield f"waypoints[{index}]: got {list(point)}, expected finite x and y in metres"
        elif math.hypot(*point) > reach_m:
            yield (
                f"waypoints[{index}]: got {list(point)}, expected at most {reach_m:g} m away, as far as "
                f"{MAX_SPEED_MPS:g} m/s lead"
            )


def _plan_problems(record: DrivingRecord) -> Iterator[str]:
    if not record.plans:
        yield "plans: empty, expected at least one acceptable plan, the recorded one first"
    for index, text in enumerate(record.plans):
        if problem := plan_problem(text):
            yield f"plans[{index}]: {problem}"
        elif text in record.plans[:index]:
            yield f"plans[{index}]: {text!r} is there twice"
    if record.teacher_plan is not None and (problem := plan_problem(record.teacher_plan)):
        yield f"teacher_plan: {problem}"


def plan_problem(text: str | None) -> str | None:
    """What is wrong with a plan as a dataset writes it (`"KEEP, STRAIGHT"`), or None."""
    plan = parse_plan(text or "")
    if plan is None:
        return (
            f"got {text!r}, expected one SPEED word ({', '.join(SPEEDS)}) and one PATH word "
            f"({', '.join(PATHS)}), as in 'KEEP, STRAIGHT'"
        )
    return None if str(plan) == text else f"got {text!r}, expected it written {str(plan)!r}"


def _images_problems(images: Sequence[ImageRecord]) -> Iterator[str]:
    if not any(image.camera == FRONT_CAMERA for image in images):
        cameras = ", ".join(str(image.camera) for image in images) or "no image at all"
        yield f"images: got {cameras}, expected a camera named {FRONT_CAMERA!r}"
    for index, image in enumerate(images):
        if not image.camera:
            yield f"images[{index}].camera: got {image.camera!r}, expected a name"
        if image.dt_s is None or not math.isfinite(image.dt_s):
            yield f"images[{index}].dt_s: got {image.dt_s}, expected a finite number of seconds"
        for problem in _image_problems(image):
            yield f"images[{index}]{problem}"


def _image_problems(image: ImageRecord) -> Iterator[str]:
    try:
        width, height = decode_image(image.data or b"").size
    except DataError as error:
        yield f".bytes: {error}"
        return
    if (image.width, image.height) != (width, height):
        yield f".width, height: got {image.width}x{image.height}, expected the image's own {width}x{height}"
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        yield f".bytes: got an image of {width}x{height}, expected sides of at most {MAX_ASPECT_RATIO}:1"
