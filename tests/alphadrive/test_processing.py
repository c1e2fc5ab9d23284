"""Tokens and pixels agree with transformers' own processor, and `fit` is the only resize."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from alphadrive.errors import DataError, ModelError
from alphadrive.processing import PromptProcessor, fitted_size
from alphadrive.prompts import answer_text, planning_messages
from alphadrive.resources import shipped
from alphadrive.types import DrivingQuery


def query(navigation: str = "go straight in 100 m") -> DrivingQuery:
    return DrivingQuery(
        query_id="q", row=0, speed_mps=4.2, navigation=navigation, plans=("KEEP, STRAIGHT",), reasoning=None
    )


@pytest.fixture(scope="module", params=["fixture", "shipped"])
def folder(request: pytest.FixtureRequest, model_folder: Path) -> Path:
    if request.param == "fixture":
        return model_folder
    tiny = shipped("assets/tiny-vlm")
    if not (tiny / "config.json").is_file():
        pytest.skip(f"no shipped model at {tiny}")
    return tiny


@pytest.mark.parametrize("size", [(224, 112), (640, 480), (333, 517)])
def test_ids_and_pixels_are_those_of_the_hugging_face_processor(folder: Path, size: tuple[int, int]) -> None:
    from transformers import AutoProcessor

    processor = PromptProcessor(folder, max_pixels=50176)
    reference = AutoProcessor.from_pretrained(folder)
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = processor.fit(Image.fromarray(noise))
    asked = query()
    text = reference.apply_chat_template(
        planning_messages(asked.speed_mps, asked.navigation), tokenize=False, add_generation_prompt=True
    )
    expected = reference(text=[text], images=[image], return_tensors="np")

    pixels, grid = processor.pixels(image)

    assert processor.expanded_ids(processor.prompt_ids(asked), grid) == expected["input_ids"][0].tolist()
    assert grid == tuple(expected["image_grid_thw"][0])
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels, expected["pixel_values"], atol=2e-6)
    assert processor.num_image_tokens(*size) == grid[1] * grid[2] // processor.merge_size**2


def test_completion_ids_decode_to_the_answer_and_its_end(folder: Path) -> None:
    processor = PromptProcessor(folder, max_pixels=50176)
    answer = answer_text("The light is red.", "STOP, STRAIGHT")
    ids = processor.completion_ids(answer)
    assert ids[-1] == processor.end_token_id
    assert processor.tokenizer.decode(ids[:-1]) == answer
    assert not set(ids) & set(processor.vision_token_ids)


def test_vision_tokens_are_all_that_the_tokenizer_has(folder: Path) -> None:
    processor = PromptProcessor(folder, max_pixels=50176)
    names = processor.tokenizer.convert_ids_to_tokens(list(processor.vision_token_ids))
    assert {"<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"} <= set(names)
    assert processor.image_token_id in processor.vision_token_ids


@pytest.mark.parametrize("token", ["<|image_pad|>", "<|im_end|>"])
def test_a_special_token_in_the_navigation_text_is_refused(folder: Path, token: str) -> None:
    processor = PromptProcessor(folder, max_pixels=50176)
    with pytest.raises(DataError, match=r"navigation.*special token"):
        processor.prompt_ids(query(f"straight {token} on"))


def test_a_4k_image_fits_under_max_pixels_and_is_left_alone_afterwards(folder: Path) -> None:
    processor = PromptProcessor(folder, max_pixels=401408)
    fitted = processor.fit(Image.new("RGB", (3840, 2160)))
    assert fitted.width * fitted.height <= 401408
    assert fitted.width % 28 == 0 and fitted.height % 28 == 0
    assert abs(fitted.width / fitted.height - 3840 / 2160) < 0.1
    assert smart_resize(fitted.height, fitted.width) == (fitted.height, fitted.width)
    assert processor.fit(fitted) is fitted


@given(
    width=st.integers(1, 9000),
    height=st.integers(1, 9000),
    max_pixels=st.sampled_from([28 * 28 * 8, 224 * 112, 401408]),
)
def test_a_fitted_size_is_a_fixed_point_within_the_bounds(width: int, height: int, max_pixels: int) -> None:
    if max(width, height) / min(width, height) > 200:
        with pytest.raises(DataError, match="cannot be fitted"):
            fitted_size(width, height, 28, 3136, max_pixels)
        return
    try:
        fitted = fitted_size(width, height, 28, 3136, max_pixels)
    except DataError as error:
        assert "model.max_pixels" in str(error) or "200" in str(error)
        assert max(width, height) / min(width, height) > 4  # only shapes that the bounds leave no room for
        return
    assert fitted[0] % 28 == 0 and fitted[1] % 28 == 0
    assert 3136 <= fitted[0] * fitted[1] <= max_pixels
    assert smart_resize(fitted[1], fitted[0], 28, 3136, max_pixels) == (fitted[1], fitted[0])


def test_max_pixels_below_the_models_smallest_image_is_refused(model_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"raise model.max_pixels"):
        PromptProcessor(model_folder, max_pixels=784)


def test_pixels_refuses_an_image_that_was_not_fitted(model_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"call fit\(\) first"):
        PromptProcessor(model_folder, max_pixels=50176).pixels(Image.new("RGB", (100, 100)))
