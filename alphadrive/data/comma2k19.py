"""Import of comma2k19 (MIT): drives of one minute segments with video, CAN speed and poses in ECEF.

    DONGLE|DATE/SEGMENT/global_pose/{frame_times,frame_positions}     at 20 Hz, one a frame
    DONGLE|DATE/SEGMENT/processed_log/CAN/speed/{t,value}             at about 83 Hz
    DONGLE|DATE/SEGMENT/video.hevc  or  frames/NNNNNN.png             N counts the video's frames

The arrays are NumPy files without a suffix. One segment is one unit; its poses are in memory and one
frame of its video at a time.
"""

import functools
import itertools
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alphadrive.data.candidates import Candidate
from alphadrive.data.drive_rows import Drive, Moment, Pace, RowOptions
from alphadrive.data.importing import ImportSource, SourceUnit
from alphadrive.data.paths import read_file_under
from alphadrive.data.trajectory import MAX_GAP_S, BoolArray, FloatArray, Track
from alphadrive.data.video import video_frames
from alphadrive.errors import DataError

SOURCE = "comma2k19"
SEGMENT_S = 60.0
VIDEO = "video.hevc"
FRAMES = "frames"
_TIMES = "global_pose/frame_times"
_POSITIONS = "global_pose/frame_positions"
_SPEED = "processed_log/CAN/speed/value"
_SPEED_TIMES = "processed_log/CAN/speed/t"
_PARTS = ("global_pose", "processed_log", FRAMES, VIDEO)
NO_TIME = f"in {FRAMES}/ not named NNNNNN.png after a frame of {_TIMES}"
_FRAME_NAME = re.compile(r"(\d{6})\.png")
_WGS84_AXES_M = np.array([6378137.0, 6378137.0, 6356752.314245])


def comma2k19_source(path: Path, split: str, options: RowOptions) -> ImportSource:
    """The segments at or under `path`: the whole data set, a chunk, a drive or one segment.

    Raises DataError when there is none.
    """
    segments = sorted(_segments(path), key=_order)
    if not segments:
        raise DataError(
            f"{path}: holds no segment; expected folders DONGLE|DATE/SEGMENT with global_pose/, "
            f"processed_log/ and {VIDEO} or {FRAMES}/"
        )
    files = [segment / part for segment in segments for part in (_TIMES, _POSITIONS, _SPEED, VIDEO)]
    return ImportSource(
        layout=SOURCE,
        path=path,
        units=[
            SourceUnit(
                name=f"{segment.parent.name}/{segment.name}",
                candidates=functools.partial(_candidates, segment, split, options),
            )
            for segment in segments
        ],
        files=[file for file in files if file.is_file()],
        options=options.as_text() | {"split": split},
    )


def _segments(path: Path) -> Iterator[Path]:
    for folder, names, files in os.walk(path.resolve()):
        if any(part in names or part in files for part in _PARTS):
            names.clear()
            yield Path(folder)


def _order(segment: Path) -> tuple[str, int, str]:
    number = int(segment.name) if segment.name.isdecimal() else -1
    return str(segment.parent), number, segment.name


@dataclass(frozen=True, slots=True, kw_only=True)
class _Segment:
    folder: Path
    route: str
    track: Track
    times: FloatArray
    """Time of every frame, on the clock of the track."""


def _candidates(folder: Path, split: str, options: RowOptions) -> Iterator[Candidate]:
    route, number = folder.parent.name, folder.name
    try:
        times, speed_times = _array(folder, _TIMES, 1), _array(folder, _SPEED_TIMES, 1)
        positions, speed = _array(folder, _POSITIONS, 3), _array(folder, _SPEED, 1)
        _check_lengths({_TIMES: times, _POSITIONS: positions})
        _check_lengths({_SPEED_TIMES: speed_times, _SPEED: speed})
        _check_times(_TIMES, times)
        _check_times(_SPEED_TIMES, speed_times)
    except DataError as error:
        yield Candidate(where=str(folder), problems=[str(error)])
        return
    for name, values in ((_POSITIONS, positions), (_SPEED, speed)):
        yield from _not_finite(folder, name, values)
    known = _is_finite(speed)
    usable = _is_finite(positions) & _is_near(times, speed_times[known])
    if usable.sum() < 2:
        yield Candidate(where=str(folder), problems=[f"{_SPEED_TIMES}: no speed while there are poses"])
        return
    x, y = _east_north(positions[usable])
    track = Track(
        time_s=times[usable],
        x_m=x,
        y_m=y,
        speed_mps=np.interp(times[usable], speed_times[known], speed[known, 0]),
    )
    earlier_s = SEGMENT_S * int(number) if number.isdecimal() else 0.0
    drive = Drive(
        track=track,
        source=SOURCE,
        scene_id=f"{SOURCE}/{route}",
        split=split,
        start_s=float(times[0]) - earlier_s,
    )
    segment = _Segment(folder=folder, route=route, track=track, times=times)
    if (folder / FRAMES).is_dir():
        yield from _pictures_without_time(segment)
        yield from drive.candidates(_moments_of_pictures(segment, options), options)
        return
    if not (folder / VIDEO).is_file():
        yield Candidate(where=str(folder), problems=[f"{VIDEO}: no such file, nor a folder {FRAMES}"])
        return
    try:
        yield from drive.candidates(_moments_of_video(segment, options), options)
    except DataError as error:
        yield Candidate(where=str(folder), problems=[f"{VIDEO}: {error}"])


def _array(folder: Path, name: str, width: int) -> FloatArray:
    """An array of the segment as [N, width], or [N] for times. Raises DataError, without the folder."""
    path = folder / name
    try:
        with path.open("rb") as stream:
            values: FloatArray = np.lib.format.read_array(  # type: ignore[no-untyped-call]
                stream, allow_pickle=False
            )
    except FileNotFoundError:
        raise DataError(f"{name}: no such file; expected the layout of comma2k19") from None
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{name}: no readable NumPy array ({error}); fetch it again") from error
    if values.dtype.kind not in "fiu" or values.ndim not in (1, 2) or values.size != len(values) * width:
        raise DataError(
            f"{name}: got {values.dtype} of shape {values.shape}, expected numbers of shape (N, {width})"
        )
    is_time = name in (_TIMES, _SPEED_TIMES)
    numbers: FloatArray = values.astype(np.float64).reshape(-1 if is_time else (len(values), width))
    return numbers


def _check_lengths(arrays: dict[str, FloatArray]) -> None:
    (first, one), (second, other) = arrays.items()
    if len(one) != len(other) or len(one) < 2:
        raise DataError(
            f"{second}: got {len(other)} values for {len(one)} of {first}, expected as many, at least 2"
        )


def _check_times(name: str, times: FloatArray) -> None:
    if not np.isfinite(times).all():
        raise DataError(f"{name}: got {np.count_nonzero(~np.isfinite(times))} values that are no number")
    if not (steps := np.diff(times) > 0).all():
        raise DataError(f"{name}: value {int(np.argmin(steps)) + 1} is not after the one before it")


def _not_finite(folder: Path, name: str, values: FloatArray) -> Iterator[Candidate]:
    """One bad row for every run of values that are no numbers; the values are not used."""
    is_bad = ~_is_finite(values)
    runs = itertools.groupby(range(len(is_bad)), key=lambda index: bool(is_bad[index]))
    for bad, indices in runs:
        if bad:
            run = list(indices)
            yield Candidate(
                where=str(folder / name),
                row=run[0],
                problems=[
                    f"{name}: got {values[run[0]].tolist()} in {len(run)} rows, expected finite numbers"
                ],
            )


def _is_finite(values: FloatArray) -> BoolArray:
    """For each row whether all of its numbers are finite."""
    finite: BoolArray = np.logical_and.reduce(np.isfinite(values), axis=1)
    return finite


def _is_near(times: FloatArray, known: FloatArray) -> BoolArray:
    """Whether a time lies within 0.25 s of one of the known ones."""
    if not len(known):
        return np.zeros(len(times), bool)
    after = np.searchsorted(known, times).clip(0, len(known) - 1)
    before = (after - 1).clip(0)
    near: BoolArray = np.minimum(np.abs(known[after] - times), np.abs(known[before] - times)) <= MAX_GAP_S
    return near


def _east_north(ecef_m: FloatArray) -> tuple[FloatArray, FloatArray]:
    """ECEF positions [N, 3] in the plane that touches the ellipsoid at the first: metres east, north."""
    up = ecef_m[0] / _WGS84_AXES_M**2
    up /= np.linalg.norm(up)
    east = np.cross([0.0, 0.0, 1.0], up)
    east /= np.linalg.norm(east)
    moved = ecef_m - ecef_m[0]
    return moved @ east, moved @ np.cross(up, east)


def _pictures_without_time(segment: _Segment) -> Iterator[Candidate]:
    for path in (segment.folder / FRAMES).iterdir():
        name = _FRAME_NAME.fullmatch(path.name)
        if name is None or int(name.group(1)) >= len(segment.times):
            yield Candidate(where=str(segment.folder), left_out=NO_TIME)


def _moments_of_pictures(segment: _Segment, options: RowOptions) -> Iterator[Moment]:
    pace = Pace(options.every_s)
    found = (_FRAME_NAME.fullmatch(path.name) for path in sorted((segment.folder / FRAMES).iterdir()))
    for name in found:
        frame = int(name.group(1)) if name else len(segment.times)
        if name and frame < len(segment.times) and pace.takes(float(segment.times[frame])):
            file = f"{FRAMES}/{name.group()}"
            yield _moment(segment, frame, functools.partial(read_file_under, segment.folder, file))


def _moments_of_video(segment: _Segment, options: RowOptions) -> Iterator[Moment]:
    pace = Pace(options.every_s)
    num_frames = 0
    for frame, read_image in enumerate(video_frames(segment.folder / VIDEO, "hevc")):
        num_frames = frame + 1
        if frame < len(segment.times) and pace.takes(float(segment.times[frame])):
            yield _moment(segment, frame, read_image)
    if num_frames < len(segment.times):
        raise DataError(
            f"ends after {num_frames} frames, expected {len(segment.times)}, one for each of {_TIMES}: "
            "fetch it again"
        )


def _moment(segment: _Segment, frame: int, read_image: Callable[[], bytes]) -> Moment:
    return Moment(
        where=str(segment.folder),
        row=frame,
        query_id=f"{SOURCE}/{segment.route}/{segment.folder.name}/{frame:06d}",
        time_s=float(segment.times[frame]),
        read_image=read_image,
        share_done=(frame + 1) / len(segment.times),
    )
