"""Arithmetic of Qwen2-VL-2B on an image of 401,408 pixels, worked out by hand."""

import pytest

from alphadrive.config import ModelConfig
from alphadrive.sizing.architecture import architecture_of
from alphadrive.sizing.flops import forward_flops, head_flops, text_flops, vision_flops

TWO_B = architecture_of(ModelConfig(path="Qwen/Qwen2-VL-2B-Instruct"))
THREE_B = architecture_of(ModelConfig(path="Qwen/Qwen2.5-VL-3B-Instruct"))
TERA = 1e12


def test_the_vision_tower() -> None:
    # 2 x 629 M x 2,048 patches + 0.687 of attention + 0.035 of the merger.
    assert vision_flops(TWO_B, 2048) / TERA == pytest.approx(3.305, abs=0.01)


def test_windows_spare_attention() -> None:
    # 28 of 32 layers see 64 patches instead of 2,048: 4 x 1,280 x 2,048 x 1,984 each.
    saved = 28 * 4 * 1280 * 2048 * (2048 - 64)
    matrices = 32 * 2 * 2048 * (4 * 1280**2 + 3 * 1280 * 3420)
    merger = 2 * 512 * 5120 * (5120 + 2048) + 2 * 2048 * 1280 * 1176
    assert vision_flops(THREE_B, 2048) == matrices + 32 * 4 * 1280 * 2048**2 - saved + merger


def test_prefill_decoding_and_logits() -> None:
    assert text_flops(TWO_B, 700, 0, 1) / TERA == pytest.approx(1.877, abs=0.005)
    decoding = text_flops(TWO_B, 700, 80, 1) - text_flops(TWO_B, 700, 0, 1) + head_flops(TWO_B, 80)
    assert decoding / TERA == pytest.approx(0.257, abs=0.005)
    assert head_flops(TWO_B, 780) / TERA == pytest.approx(0.364, abs=0.001)


@pytest.mark.parametrize(("size", "tera"), [(2, 5.7), (4, 6.2), (8, 7.2), (16, 9.3)])
def test_a_group_is_one_prompt_and_its_answers(size: int, tera: float) -> None:
    shape = {"num_text": 188, "num_patches": 2048, "num_completion": 81}
    assert forward_flops(TWO_B, group_size=size, **shape) / TERA == pytest.approx(tera, abs=0.06)
