"""Rows out of a recorded drive: moments of a track become candidates with labels, navigation, waypoints.

Shared by the importers that read trajectories (`comma2k19`, `nuscenes`, `csv_table`).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from alphadrive.data.candidates import Candidate
from alphadrive.data.checks import FRONT_CAMERA
from alphadrive.data.images import read_header
from alphadrive.data.labels import LabelRule, NearThreshold, describe_rule, plans_of
from alphadrive.data.navigation import NAVIGATION_RULE, PathAhead
from alphadrive.data.records import DrivingRecord, ImageRecord
from alphadrive.data.trajectory import HORIZON_S, Track, disagreement, trajectory_at
from alphadrive.errors import DataError
from alphadrive.prompts import NO_NAVIGATION

NO_PATH = f"without a whole path for the next {HORIZON_S:g} s"
NEAR = "near a threshold of the label rule"
_EARLY_SHARE = 0.04


@dataclass(frozen=True, slots=True, kw_only=True)
class RowOptions:
    """How rows are made of trajectories. `every_s` is the least time between two rows of a drive."""

    rule: LabelRule
    near: NearThreshold = "both"
    with_navigation: bool = True
    every_s: float = 0.5

    def as_text(self) -> dict[str, str]:
        """The options by name, as an import's state holds them."""
        return {
            "label_rule": describe_rule(self.rule, self.near),
            "navigation": NAVIGATION_RULE if self.with_navigation else "none",
            "every": f"{self.every_s:g}",
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A moment of a drive that may become a row: where it is written, when, and its image's bytes.

    `time_s` is on the track's clock. `read_image` raises DataError; None means a row without an image.
    `navigation` is the source's own; None has it derived.
    """

    where: str
    row: int | str
    query_id: str
    time_s: float
    read_image: Callable[[], bytes] | None
    navigation: str | None = None
    share_done: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Drive:
    """One drive of a source. `start_s` is the start of the scene on the track's clock."""

    track: Track
    source: str
    scene_id: str
    split: str
    start_s: float

    def candidates(self, moments: Iterable[Moment], options: RowOptions) -> Iterator[Candidate]:
        """A candidate for each moment, labelled by the options' rule."""
        ahead = PathAhead(self.track) if options.with_navigation else None
        for moment in moments:
            yield self._candidate(moment, options, ahead)

    def _candidate(self, moment: Moment, options: RowOptions, ahead: PathAhead | None) -> Candidate:
        def outcome(
            record: DrivingRecord | None = None, problem: str | None = None, left_out: str | None = None
        ) -> Candidate:
            return Candidate(
                where=moment.where,
                row=moment.row,
                record=record,
                problems=[problem] if problem else [],
                left_out=left_out,
                share_done=moment.share_done,
            )

        trajectory = trajectory_at(self.track, moment.time_s)
        if trajectory is None:
            return outcome(left_out=NO_PATH)
        if problem := disagreement(trajectory):
            return outcome(problem=f"speed_mps: {problem}")
        plans = plans_of(options.rule, trajectory, options.near)
        if not plans:
            return outcome(left_out=NEAR)
        try:
            images = (front_image(moment.read_image()),) if moment.read_image else ()
        except DataError as error:
            return outcome(problem=f"image: {error}")
        label_rule = describe_rule(options.rule, options.near)
        navigation = NO_NAVIGATION
        if ahead is not None:
            navigation = moment.navigation or ahead.command(moment.time_s)
            label_rule += "" if moment.navigation else f" {NAVIGATION_RULE}"
        return outcome(
            DrivingRecord(
                query_id=moment.query_id,
                scene_id=self.scene_id,
                time_s=moment.time_s - self.start_s,
                split=self.split,
                images=images,
                speed_mps=float(trajectory.speed_mps[0]),
                navigation=navigation,
                plans=tuple(str(plan) for plan in plans),
                waypoints=trajectory.waypoints(),
                source=self.source,
                label_rule=label_rule,
            )
        )


def front_image(data: bytes) -> ImageRecord:
    """The record of a front camera's encoded image. Raises DataError for what is no image."""
    header = read_header(data)
    return ImageRecord(camera=FRONT_CAMERA, dt_s=0.0, data=data, width=header.width, height=header.height)


class Pace:
    """Picks moments `every_s` apart, on the grid that starts at the first one.

    A moment may come early by 4 % of `every_s`, so that a source at just that rate loses none.
    """

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._next_s: float | None = None

    def takes(self, time_s: float) -> bool:
        """Whether the moment is due; times must not decrease."""
        if self._next_s is None:
            self._next_s = time_s
        late_s = time_s - self._next_s + _EARLY_SHARE * self._every_s
        if late_s < 0:
            return False
        self._next_s += (late_s // self._every_s + 1) * self._every_s
        return True
