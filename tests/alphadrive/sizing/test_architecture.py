"""Parameters of models, counted from their sizes."""

import json
from pathlib import Path

import pytest

from alphadrive.config import LearnerConfig, ModelConfig
from alphadrive.errors import ConfigError, ModelError
from alphadrive.lora_targets import modules_in_headers, num_adapter_parameters
from alphadrive.model_folder import num_parameters, num_vision_parameters, resolve_model, tensor_shapes
from alphadrive.sizing.architecture import architecture_of
from alphadrive.sizing.published import PUBLISHED

TWO_B, SEVEN_B, THREE_B = PUBLISHED


@pytest.mark.parametrize(
    ("model", "parameters", "vision"),
    [
        # 28 layers of 46,797,824, a norm of 1,536 and one embedding of 151,936 x 1,536; 665 M of vision.
        (TWO_B, 28 * 46_797_824 + 1536 + 151_936 * 1536 + 665_271_296, 665_271_296),
        (SEVEN_B, 8_291_375_616, 675_759_104),
        (THREE_B, 3_754_622_976, 668_684_288),
    ],
)
def test_published_models_have_as_many_parameters_as_their_files(
    model: str, parameters: int, vision: int
) -> None:
    architecture = architecture_of(ModelConfig(path=model))
    assert architecture.parameters == parameters
    assert architecture.vision_parameters == vision


def test_a_folder_is_counted_as_its_weight_files_are() -> None:
    folder, architecture = resolve_model("tiny"), architecture_of(ModelConfig(path="tiny"))
    assert architecture.parameters == num_parameters(folder)
    assert architecture.vision_parameters == num_vision_parameters(folder)
    linear, _ = modules_in_headers(folder)
    assert architecture.linear_modules() == linear
    shapes = tensor_shapes(folder)
    assert sum(len(shape) == 2 for shape in shapes.values()) == len(linear) + 1


@pytest.mark.parametrize("targets", [LearnerConfig.lora_targets, r".*\.(qkv|fc[12]|q_proj)"])
def test_adapters_are_counted_as_for_a_folder(targets: str) -> None:
    learner = LearnerConfig(lora_rank=8, lora_targets=targets)
    architecture = architecture_of(ModelConfig(path="tiny"))
    expected = num_adapter_parameters(resolve_model("tiny"), learner)
    assert architecture.adapter_parameters(learner) == expected > 0
    assert architecture.trains_vision(learner) == ("qkv" in targets)
    assert architecture.adapter_parameters(LearnerConfig()) == 0


def test_lora_targets_of_no_module_are_refused() -> None:
    learner = LearnerConfig(lora_rank=8, lora_targets="q_proj")
    with pytest.raises(ConfigError, match=r"matches none of the model's \d+ linear modules"):
        architecture_of(ModelConfig(path=TWO_B)).adapter_parameters(learner)


def test_a_folder_with_nothing_but_its_config_can_be_planned(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[TWO_B]))
    assert architecture_of(ModelConfig(path=str(tmp_path))) == architecture_of(ModelConfig(path=TWO_B))


def test_an_image_has_the_tokens_of_its_pixels() -> None:
    architecture = architecture_of(ModelConfig(path=TWO_B))
    assert architecture.vision_tokens(401_408) == 512
    assert architecture.patches(401_408) == 2048


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model_type": "llava"}, "model_type='llava': the sizes of such models are not worked out here"),
        (
            {"model_type": "qwen2_vl", "hidden_size": 8},
            "the model's sizes are incomplete: 'num_attention_heads'",
        ),
    ],
)
def test_an_unknown_or_incomplete_model_is_refused(
    tmp_path: Path, content: dict[str, object], message: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=message):
        architecture_of(ModelConfig(path=str(tmp_path)))


def test_a_hub_id_that_is_not_known_is_not_downloaded() -> None:
    with pytest.raises(
        ModelError, match=r"'Qwen/Qwen9-VL': no such folder, not downloaded, and its sizes are"
    ):
        architecture_of(ModelConfig(path="Qwen/Qwen9-VL", revision="0" * 40))


def test_a_hub_id_in_the_cache_is_read_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    revision = "0123456789" * 4
    snapshot = tmp_path / "models--some--model" / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(PUBLISHED["Qwen/Qwen2-VL-7B-Instruct"]))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = architecture_of(ModelConfig(path="some/model", revision=revision))
    assert found == architecture_of(ModelConfig(path="Qwen/Qwen2-VL-7B-Instruct"))
