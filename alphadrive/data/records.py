"""One row of a dataset, with its pixels, as the Parquet shards hold it.

Written by the world, by imports and by labelling; read through `alphadrive.data.parquet`. What
travels between processes during training is the lighter `DrivingQuery` of `alphadrive.types`.
"""

from dataclasses import dataclass

WAYPOINT_STEP_S = 0.5
NUM_WAYPOINTS = 6
"""A row with waypoints has one at every 0.5 s up to 3 s, the planning horizon."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecord:
    """One encoded image (JPEG, PNG or WebP). `dt_s` is its time relative to the row, 0 or less."""

    camera: str
    dt_s: float
    data: bytes
    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DrivingRecord:
    """One driving situation with its images, its acceptable plans and where they came from.

    `plans` are all acceptable plans (`"KEEP, STRAIGHT"`), the recorded one first. `teacher_plan` is
    what the teacher decided on, which may be wrong. `waypoints` are (x, y) in metres at 0.5 s, 1.0 s, … 3.0 s
    in the ego frame, x forward and y left. `label_rule` names the rule with its parameters, or the file
    field, that made `plans`.
    """

    query_id: str
    scene_id: str
    time_s: float
    split: str
    images: tuple[ImageRecord, ...]
    speed_mps: float
    navigation: str
    plans: tuple[str, ...]
    reasoning: str | None = None
    teacher_plan: str | None = None
    waypoints: tuple[tuple[float, ...], ...] | None = None
    source: str
    label_rule: str
