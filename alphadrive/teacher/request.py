"""One question to the teacher and its answer, and what makes two questions the same."""

import base64
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from alphadrive.data.checks import FRONT_CAMERA
from alphadrive.data.images import read_header
from alphadrive.data.records import DrivingRecord, ImageRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherRequest:
    """One image and one text for one model. `query_id` says for whom; it is no part of the content."""

    query_id: str
    model: str
    prompt: str
    image: bytes
    max_answer_tokens: int

    @property
    def key(self) -> str:
        """SHA-256 of the content: all that is sent, the image by its own SHA-256."""
        image = f"sha256:{hashlib.sha256(self.image).hexdigest()}"
        return hashlib.sha256(json.dumps(self._body(image), sort_keys=True).encode()).hexdigest()

    def body(self) -> dict[str, Any]:
        """The arguments of a chat completion, the image as a data URL.

        No temperature is sent: some models take none but their own.
        """
        mime = f"image/{read_header(self.image).format.lower()}"
        return self._body(f"data:{mime};base64,{base64.b64encode(self.image).decode()}")

    def _body(self, image_url: str) -> dict[str, Any]:
        content = [
            {"type": "image_url", "image_url": {"url": image_url}},
            {"type": "text", "text": self.prompt},
        ]
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_completion_tokens": self.max_answer_tokens,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back. The token counts are the server's; None where it reports none."""

    text: str
    finish_reason: str
    prompt_tokens: int | None
    completion_tokens: int | None


def front_image(record: DrivingRecord) -> ImageRecord:
    """The latest front image of a valid record."""
    front = [image for image in record.images if image.camera == FRONT_CAMERA]
    return max(front, key=lambda image: image.dt_s)
