"""From a query and its image to tokens and pixels, the same for engines and learner.

    DrivingQuery ──prompt_ids──▶ one placeholder ──expanded_ids──▶ one placeholder a vision token
    PIL image ──fit──▶ final size ──pixels──▶ patches, grid          (fit is the only resize there is)

Wraps the tokenizer and the image processor of a model folder; numpy only. The wording of prompts and
answers is in `alphadrive.prompts`, the checks of a model folder in `alphadrive.model_folder`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from alphadrive.errors import DataError, ModelError
from alphadrive.model_folder import chat_template, resolve_model
from alphadrive.prompts import planning_messages
from alphadrive.types import DrivingQuery

__all__ = ["PromptProcessor", "fitted_size", "resolve_model"]

END_TOKEN = "<|im_end|>"
IMAGE_TOKEN = "<|image_pad|>"
VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", IMAGE_TOKEN, "<|video_pad|>")


def fitted_size(width: int, height: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """The (width, height) near the given one that the model's image processor leaves alone.

    Multiples of `factor` with `min_pixels <= width * height <= max_pixels`, the shape kept as nearly as
    possible. One application of transformers' `smart_resize` is no fixed point for very long images, so
    it is repeated. Raises DataError for images more than 200 times as long as wide, or when the bounds
    leave no size.
    """
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    size = (height, width)
    for _ in range(8):
        try:
            resized: tuple[int, int] = smart_resize(*size, factor, min_pixels, max_pixels)
        except (ValueError, ZeroDivisionError) as error:
            raise DataError(
                f"image of {width}x{height}: cannot be fitted ({error}); expected sides of at least "
                "1 pixel and at most 200:1"
            ) from error
        if resized == size:
            return size[1], size[0]
        size = resized
    raise DataError(
        f"image of {width}x{height}: no size of this shape in multiples of {factor} has {min_pixels} to "
        f"{max_pixels} pixels; raise model.max_pixels or crop the image"
    )


class PromptProcessor:
    """Tokens and pixels for one model folder.

    `max_pixels` is lowered to the folder's own limit where that is smaller. `with_trajectory` is
    `data.trajectory`: whether prompts ask for one. `vision_token_ids` must
    never be sampled: the sampler and the learner mask them alike. Raises ModelError for a folder whose
    tokenizer lacks the vision tokens or `<|im_end|>`, or whose template does not place one image.
    """

    def __init__(self, model_folder: Path, max_pixels: int, with_trajectory: bool = False) -> None:
        from transformers import AutoTokenizer
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        self.model_folder = Path(model_folder)
        self.with_trajectory = with_trajectory
        self.tokenizer: Any = AutoTokenizer.from_pretrained(
            self.model_folder, local_files_only=True, trust_remote_code=False
        )
        self._images = Qwen2VLImageProcessorPil.from_pretrained(self.model_folder, local_files_only=True)
        self._template = chat_template(self.model_folder)
        self.merge_size = int(self._images.merge_size)
        self.patch_size = int(self._images.patch_size)
        self._factor = self.patch_size * self.merge_size
        self._min_pixels = int(self._images.size["shortest_edge"])
        self.max_pixels = min(max_pixels, int(self._images.size["longest_edge"]))
        if self.max_pixels < self._min_pixels:
            raise ModelError(
                f"{self.model_folder}: model.max_pixels={max_pixels} is below the smallest image that this "
                f"model's processor makes ({self._min_pixels} pixels); raise model.max_pixels"
            )
        self.image_token_id = self._id_of(IMAGE_TOKEN)
        self.end_token_id = self._id_of(END_TOKEN)
        vocabulary = self.tokenizer.get_vocab()
        self.vision_token_ids = tuple(
            sorted(vocabulary[name] for name in VISION_TOKENS if name in vocabulary)
        )
        self.special_tokens = tuple(sorted(self.tokenizer.get_added_vocab(), key=len, reverse=True))

    def _id_of(self, token: str) -> int:
        token_id = self.tokenizer.get_vocab().get(token)
        if token_id is None:
            raise ModelError(
                f"{self.model_folder}: the tokenizer has no {token} token; expected a Qwen2-VL tokenizer"
            )
        return int(token_id)

    def special_tokens_in(self, text: str) -> list[str]:
        """The tokenizer's special and added tokens that occur in a text, which must not be there in
        anything a dataset contributes."""
        return [token for token in self.special_tokens if token in text]

    def prompt_ids(self, query: DrivingQuery) -> list[int]:
        """Chat prompt up to the start of the answer, with one image placeholder (what vLLM takes).

        Raises DataError when the navigation text contains one of the tokenizer's special tokens.
        """
        if found := self.special_tokens_in(query.navigation):
            raise DataError(
                f"query {query.query_id}: navigation: contains the special token {found[0]!r}; remove it"
            )
        text = self.tokenizer.apply_chat_template(
            planning_messages(
                None if "speed" in query.withheld else query.speed_mps,
                None if "navigation" in query.withheld else query.navigation,
                self.with_trajectory,
            ),
            chat_template=self._template,
            tokenize=False,
            add_generation_prompt=True,
        )
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if ids.count(self.image_token_id) != 1:
            raise ModelError(
                f"{self.model_folder}: its chat template placed {ids.count(self.image_token_id)} images, "
                f"expected 1 {IMAGE_TOKEN}; use the model's original template"
            )
        return ids

    def fit(self, image: Image.Image) -> Image.Image:
        """The image at its final size: neither `pixels` nor vLLM's processor resizes it again."""
        size = fitted_size(*image.size, self._factor, self._min_pixels, self.max_pixels)
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        return rgb if rgb.size == size else rgb.resize(size, Image.Resampling(self._images.resample))

    def num_image_tokens(self, width: int, height: int) -> int:
        """Vision tokens that an image of this size takes once fitted."""
        size = fitted_size(width, height, self._factor, self._min_pixels, self.max_pixels)
        return size[0] * size[1] // self._factor**2

    def pixels(self, fitted: Image.Image) -> tuple[NDArray[np.float32], tuple[int, int, int]]:
        """Normalised patches [num_patches, channels * temporal * patch * patch] float32 and the grid
        (t, h, w) in patches, of an image that `fit` returned. Raises ValueError for any other size."""
        if fitted.width % self._factor or fitted.height % self._factor:
            raise ValueError(
                f"image of {fitted.size}: expected multiples of {self._factor}; call fit() first"
            )
        features = self._images(images=[fitted], do_resize=False, return_tensors="np")
        t, h, w = (int(size) for size in features["image_grid_thw"][0])
        return np.asarray(features["pixel_values"], dtype=np.float32), (t, h, w)

    def raw_patches(self, fitted: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], tuple[int, int, int]]:
        """Patches in the order of `pixels` before they are normalised, [num_patches, channels * patch *
        patch] 8-bit, and the grid, of an image (height, width, channels) that `fit` returned. A patch is
        there once, in `pixels` once a frame."""
        size, merge = self.patch_size, self.merge_size
        height, width, channels = fitted.shape
        h, w = height // size, width // size
        blocks = fitted.reshape(h // merge, merge, size, w // merge, merge, size, channels)
        patches = blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(h * w, channels * size * size)
        return np.ascontiguousarray(patches), (1, h, w)

    def expanded_ids(self, prompt_ids: Sequence[int], grid: tuple[int, int, int]) -> list[int]:
        """The prompt with its one placeholder repeated once a vision token, as the model sees it."""
        if prompt_ids.count(self.image_token_id) != 1:
            raise ValueError(f"{prompt_ids.count(self.image_token_id)} image placeholders: expected 1")
        at = prompt_ids.index(self.image_token_id)
        num_tokens = grid[0] * grid[1] * grid[2] // self.merge_size**2
        return [*prompt_ids[:at], *[self.image_token_id] * num_tokens, *prompt_ids[at + 1 :]]

    def completion_ids(self, text: str) -> list[int]:
        """The tokens of an answer and the token that ends it."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [*ids, self.end_token_id]
