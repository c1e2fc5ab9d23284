"""Encoded images: what may be decoded, and decoding it.

The header is read before any pixel, so that a small file that claims a huge picture costs nothing.
Only the formats named here are ever given to a decoder.
"""

import io
from dataclasses import dataclass

from PIL import Image

from alphadrive.errors import DataError

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_IMAGE_PIXELS = 64_000_000
MAX_ASPECT_RATIO = 200
"""What the models' image processors take."""


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What the first bytes of an image say."""

    format: str
    width: int
    height: int


def _open(data: bytes) -> Image.Image:
    if not data:
        raise DataError("got 0 bytes, expected an encoded JPEG, PNG or WebP image")
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise DataError(f"{error}; expected at most {MAX_IMAGE_PIXELS} pixels (64 megapixels)") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"got {len(data)} bytes that are no readable JPEG, PNG or WebP image") from error


def _checked_header(image: Image.Image) -> ImageHeader:
    width, height = image.size
    if width * height > MAX_IMAGE_PIXELS:
        raise DataError(
            f"got {width}x{height} = {width * height} pixels in the header, "
            f"expected at most {MAX_IMAGE_PIXELS} (64 megapixels); scale the image down"
        )
    return ImageHeader(str(image.format), width, height)


def read_header(data: bytes) -> ImageHeader:
    """Format and size from the header alone. Raises DataError (got, expected; the caller adds where)."""
    with _open(data) as image:
        return _checked_header(image)


def decode_image(data: bytes) -> Image.Image:
    """Check the header, then decode every pixel; the result is RGB.

    Raises DataError for a truncated or damaged image, and for one over 64 megapixels.
    """
    with _open(data) as image:
        header = _checked_header(image)
        try:
            return image.convert("RGB")
        except (OSError, ValueError, SyntaxError) as error:
            raise DataError(
                f"got a truncated or damaged {header.format} image ({len(data)} bytes): {error}; "
                "expected one that decodes fully; fetch or export it again"
            ) from error
