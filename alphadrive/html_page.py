"""Self-contained HTML pages: one style, images inside the page, nothing fetched.

Used by `alphadrive.report` and by `alphadrive data stats` and `show`. Callers escape what they put in.
"""

import base64
import io
from html import escape
from pathlib import Path

from PIL import Image

from alphadrive.atomic import write_text
from alphadrive.errors import DataError
from alphadrive.resources import shipped


def html_page(title: str, body: str) -> str:
    """A whole page around `body` (HTML), in the project's style."""
    style = shipped("report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head>"
        f"<body>{body}</body></html>\n"
    )


def write_page(path: Path, title: str, body: str) -> None:
    """Write a page where the user asked for it. Raises DataError when that is no place for a file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, html_page(title, body))
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error}; choose another --out") from error


def image_tag(image: Image.Image, max_width: int) -> str:
    """An `<img>` with the picture inside, scaled down to `max_width` pixels a side; `image` is changed."""
    image.thumbnail((max_width, max_width))
    encoded = io.BytesIO()
    image.save(encoded, format="JPEG", quality=85)
    content = base64.b64encode(encoded.getvalue()).decode("ascii")
    return f'<img alt="front camera" src="data:image/jpeg;base64,{content}">'
