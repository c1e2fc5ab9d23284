"""Drives that tests write as CSV tables, with pictures."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from alphadrive.data.trajectory import Track

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"


def make_track(
    speeds_mps: Sequence[float], turn_at_m: float = 0.0, turn_rad: float = 0.0, step_s: float = 0.1
) -> Track:
    """A drive with one speed a step, along x, that turns on an arc of 10 m radius after `turn_at_m`."""
    speed = np.array(speeds_mps, float)
    time_s = step_s * np.arange(len(speed))
    way_in_turn = (np.cumsum(speed * step_s) - turn_at_m).clip(0)
    course = math.copysign(1.0, turn_rad) * np.minimum(way_in_turn / 10.0, abs(turn_rad))
    x, y = (np.concatenate([[0.0], np.cumsum(speed * step_s * f(course))[:-1]]) for f in (np.cos, np.sin))
    return Track(time_s=time_s, x_m=x, y_m=y, speed_mps=speed)


@pytest.fixture
def write_drive(picture: Callable[..., bytes]) -> Callable[..., Path]:
    """Writes a track as a CSV table, with a picture in every `image_every`-th row (0: none)."""
    data = picture(image_format="JPEG")

    def write(file: Path, track: Track, image_every: int = 5) -> Path:
        file.parent.mkdir(parents=True, exist_ok=True)
        (file.parent / "front.jpg").write_bytes(data)
        lines = ["image,time_s,x_m,y_m,speed_mps"]
        columns = (track.time_s, track.x_m, track.y_m, track.speed_mps)
        for index, values in enumerate(zip(*columns, strict=True)):
            image = "front.jpg" if image_every and index % image_every == 0 else ""
            lines.append(",".join([image, *(f"{float(value):.4f}" for value in values)]))
        file.write_text("\n".join(lines) + "\n")
        return file

    return write
