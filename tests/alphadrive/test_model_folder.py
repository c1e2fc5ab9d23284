"""A folder that is no usable vision-language model is refused, with the reason and the remedy."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from alphadrive.errors import ModelError
from alphadrive.model_folder import FAMILIES, num_parameters, resolve_model, special_tokens_of
from alphadrive.resources import shipped


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "copy"))


def change(path: Path, **values: object) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **values}))


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))


def _half_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}})
    )


def _index_to_elsewhere(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "../x.safetensors"}})
    )


def test_a_good_folder_resolves_to_itself(folder: Path) -> None:
    assert resolve_model(str(folder)) == folder
    assert num_parameters(folder) == 16
    assert {"<|image_pad|>", "<|im_end|>"} <= set(special_tokens_of(folder))


def test_tiny_is_the_shipped_model() -> None:
    tiny = shipped("assets/tiny-vlm")
    if not (tiny / "config.json").is_file():
        with pytest.raises(ModelError, match="alphadrive model tiny"):
            resolve_model("tiny")
        pytest.skip(f"no shipped model at {tiny}")
    assert resolve_model("tiny") == tiny
    assert num_parameters(tiny) < 2_000_000


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: (f / "config.json").unlink(),
            r"config.json: missing; expected a Hugging Face model folder",
        ),
        (lambda f: (f / "config.json").write_text("{"), r"config.json: not readable as JSON"),
        (lambda f: (f / "config.json").write_text("[]"), r"config.json: expected a JSON object, got list"),
        (
            lambda f: change(f / "config.json", model_type="qwen2"),
            r"model_type='qwen2' is no vision-language",
        ),
        (
            lambda f: change(f / "config.json", model_type="qwen3_vl"),
            r"model_type='qwen3_vl' .* expected one of qwen2_vl, qwen2_5_vl",
        ),
        (lambda f: (f / "config.json").write_text('{"model_type": "qwen2_vl"}'), r"with a vision_config"),
        (
            lambda f: change(f / "config.json", auto_map={"AutoModel": "x.Y"}),
            r"config.json: 'auto_map'.*refused",
        ),
        (
            lambda f: change(f / "tokenizer_config.json", auto_map={"A": "x.Y"}),
            r"tokenizer_config.json: 'auto_map'",
        ),
        (
            lambda f: change(f / "preprocessor_config.json", nested=[{"auto_map": 1}]),
            r"preprocessor_config.json: 'auto_map'",
        ),
        (
            lambda f: (f / "preprocessor_config.json").unlink(),
            r"no image processor; expected preprocessor_config",
        ),
        (
            lambda f: change(f / "preprocessor_config.json", image_processor_type="CLIPImageProcessor"),
            r"image_processor_type='CLIPImageProcessor' is not supported",
        ),
        (lambda f: (f / "tokenizer.json").unlink(), r"no tokenizer"),
        (lambda f: (f / "chat_template.jinja").unlink(), r"no chat template.*instruction-tuned"),
        (lambda f: (f / "chat_template.jinja").write_text("  \n"), r"no chat template"),
        (lambda f: (f / "model.safetensors").unlink(), r"expected model.safetensors; found no weights"),
        (_pickled, r"found pytorch_model.bin, which can run code"),
        (lambda f: _truncate(f / "model.safetensors"), r"model.safetensors: no complete safetensors file"),
        (
            _half_index,
            r"model-00002.safetensors: named in model.safetensors.index.json but not in the folder",
        ),
        (_index_to_elsewhere, r"named in model.safetensors.index.json but not in the folder"),
    ],
)
def test_an_unusable_folder_is_refused(folder: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(folder)
    with pytest.raises(ModelError, match=message):
        resolve_model(str(folder))


@pytest.mark.parametrize(
    ("path", "revision", "message"),
    [
        ("no/such", None, r"if it is a hub id, set model.revision"),
        ("Qwen/Qwen2-VL-2B-Instruct", "main", r"model.revision='main'.*expected a commit of 40 hex digits"),
        ("./nowhere/at/all", None, r"no such folder; expected 'tiny', a model folder, or a hub id"),
    ],
)
def test_a_path_that_names_no_model_is_refused(path: str, revision: str | None, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        resolve_model(path, revision)


def test_a_chat_template_is_found_in_all_three_places(folder: Path) -> None:
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert resolve_model(str(folder)) == folder
    (folder / "chat_template.json").unlink()
    change(folder / "tokenizer_config.json", chat_template=[{"name": "default", "template": template}])
    assert resolve_model(str(folder)) == folder


def test_weights_in_several_files_are_counted_together(folder: Path) -> None:
    save_file({"b": np.zeros((3, 5), np.float32)}, folder / "model-2.safetensors")
    weight_map = {"weight": "model.safetensors", "b": "model-2.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert resolve_model(str(folder)) == folder
    assert num_parameters(folder) == 16 + 15


def test_every_family_is_mapped_by_transformers() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    assert set(FAMILIES) <= set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
