"""A random Qwen2-VL of the smallest useful size and rows for it (torch only), and a small dataset."""

import io
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from alphadrive.data.parquet import write_records
from alphadrive.data.records import DrivingRecord, ImageRecord
from learner.batch import TokenRow

sys.path.insert(0, str(Path(__file__).parent))

VOCAB_SIZE = 64
IMAGE, VIDEO, VISION_START, VISION_END, PAD = 59, 60, 61, 62, 63
VISION_TOKEN_IDS = (IMAGE, VIDEO, VISION_START, VISION_END)
GRID = (1, 4, 6)
PATCH_DIM = 3 * 2 * 14 * 14


def tiny_config() -> Qwen2VLConfig:
    """Two layers of 32, two vision layers of 32; small vocabulary, tied embeddings."""
    config = Qwen2VLConfig(
        text_config=dict(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=VOCAB_SIZE,
            max_position_embeddings=512,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
            bos_token_id=PAD,
            eos_token_id=PAD,
            pad_token_id=PAD,
            tie_word_embeddings=True,
        ),
        vision_config=dict(depth=2, embed_dim=32, num_heads=2, hidden_size=32, mlp_ratio=2),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        tie_word_embeddings=True,
    )
    config._attn_implementation = "sdpa"
    return config


@pytest.fixture
def model() -> Qwen2VLForConditionalGeneration:
    """Random weights large enough that attention and images matter."""
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(tiny_config())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return model


@pytest.fixture
def make_row() -> Callable[..., TokenRow]:
    """Makes a random row: a prompt with one image of 6 vision tokens, and completions of given lengths."""

    def make(seed: int, lengths: tuple[int, ...], num_text: int = 7) -> TokenRow:
        random = np.random.default_rng(seed)
        text = random.integers(0, 50, num_text).tolist()
        return TokenRow(
            prompt_ids=[*text[:3], VISION_START, *[IMAGE] * 6, VISION_END, *text[3:]],
            completions=[random.integers(0, 50, length).tolist() for length in lengths],
            pixel_values=random.standard_normal((24, PATCH_DIM)).astype(np.float32),
            grid=GRID,
        )

    return make


def noise_record(row: int) -> DrivingRecord:
    """A valid record with a picture of noise."""
    noise = np.random.default_rng(row).integers(0, 255, (56, 112, 3), dtype=np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(noise).save(encoded, "PNG")
    return DrivingRecord(
        query_id=f"query-{row}",
        scene_id=f"scene-{row}",
        time_s=0.0,
        split="train",
        images=(ImageRecord(camera="front", dt_s=0.0, data=encoded.getvalue(), width=112, height=56),),
        speed_mps=float(row),
        navigation="go straight",
        plans=("KEEP, STRAIGHT",),
        reasoning="the road ahead is clear" + " and the light is green" * (row % 3),
        teacher_plan="STOP, STRAIGHT" if row % 2 else None,
        source="test",
        label_rule="test",
    )


@pytest.fixture(scope="session")
def write_tiny_dataset() -> Callable[..., Path]:
    """Writes a dataset of noise pictures; `without_reasoning` names a row that lacks it."""

    def write(folder: Path, num_rows: int = 6, without_reasoning: int | None = None) -> Path:
        records = [noise_record(row) for row in range(num_rows)]
        if without_reasoning is not None:
            records[without_reasoning] = replace(records[without_reasoning], reasoning=None)
        write_records(records, folder)
        return folder

    return write


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the scenarios of `scenarios.py` write, each into a folder of its name."""
    return tmp_path_factory.mktemp("learner")


@pytest.fixture(scope="session")
def dataset(folder: Path, write_tiny_dataset: Callable[..., Path]) -> Path:
    """What they train on."""
    return write_tiny_dataset(folder / "train")


@pytest.fixture(scope="session")
def outcomes(folder: Path, dataset: Path) -> dict[str, list[list[Any]]]:
    """What the calls of every scenario returned, by scenario and rank."""
    import scenarios

    return scenarios.run_all(folder, dataset)
