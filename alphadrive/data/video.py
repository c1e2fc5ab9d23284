"""Frames of a video file, in order, one in memory at a time. Called by `alphadrive.data.comma2k19`."""

import functools
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import av
from PIL import Image

from alphadrive.errors import DataError

JPEG_QUALITY = 92


def video_frames(path: Path, container: str) -> Iterator[Callable[[], bytes]]:
    """Each frame as a function that gives its JPEG bytes, to be called before the next is taken.

    Decoding stops at the first damaged packet: what follows could not be numbered. Raises DataError there,
    and for a file that is no such video.
    """
    num_frames = 0
    try:
        with av.open(str(path), format=container) as video:
            stream = video.streams.video[0]
            stream.thread_type = "AUTO"
            stream.codec_context.options = {"err_detect": "explode"}
            for frame in video.decode(stream):
                if frame.is_corrupt:
                    raise DataError(f"frame {num_frames} is damaged")
                yield functools.partial(_jpeg, frame)
                num_frames += 1
    except (av.error.FFmpegError, IndexError) as error:
        raise DataError(
            f"cannot be decoded after {num_frames} frames ({error}); expected a whole {container} video: "
            "fetch it again"
        ) from error


def _jpeg(frame: av.VideoFrame) -> bytes:
    buffer = io.BytesIO()
    image: Image.Image = frame.to_image()  # type: ignore[no-untyped-call]
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
