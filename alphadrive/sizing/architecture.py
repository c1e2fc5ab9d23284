"""The sizes of a Qwen2-VL or Qwen2.5-VL, from a `config.json` or from the table of those published.

Parameters are counted from the sizes alone, exactly: tests compare the counts with the models themselves.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alphadrive.config import LearnerConfig, ModelConfig
from alphadrive.errors import ModelError
from alphadrive.lora_targets import Shape, choose_targets
from alphadrive.model_folder import FAMILIES, TINY, read_json
from alphadrive.model_source import model_folder_of
from alphadrive.sizing.published import PUBLISHED

_TEXT = "model.language_model."
_VISION = "model.visual."


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSizes:
    """The language model. `width` is the residual stream's, `mlp` the hidden layer's of each MLP."""

    width: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    max_positions: int | None

    @property
    def kv_width(self) -> int:
        """Width of keys, and of values, of a token in a layer."""
        return self.kv_heads * self.head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionSizes:
    """The vision tower. `window` are the patches that see each other in layers without full attention, of
    which there are `windowed_layers`; `is_gated` is Qwen2.5-VL's MLP and norm."""

    width: int
    mlp: int
    layers: int
    heads: int
    out_width: int
    patch_values: int
    merge: int
    pixels_per_side: int
    is_gated: bool
    window: int = 0
    windowed_layers: int = 0

    @property
    def merged_width(self) -> int:
        """Width of the patches that become one vision token, side by side."""
        return self.width * self.merge**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A whole model."""

    family: str
    text: TextSizes
    vision: VisionSizes
    is_head_tied: bool

    def linear_modules(self) -> dict[str, Shape]:
        """Outputs and inputs of every linear module, under its name in the loaded model."""
        found: dict[str, Shape] = {}
        for layer in range(self.text.layers):
            prefix = f"{_TEXT}layers.{layer}."
            found |= {prefix + name: shape for name, shape in _text_layer(self.text)}
        for layer in range(self.vision.layers):
            prefix = f"{_VISION}blocks.{layer}."
            found |= {prefix + name: shape for name, shape in _vision_layer(self.vision)}
        merged = self.vision.merged_width
        found[f"{_VISION}merger.mlp.0"] = (merged, merged)
        found[f"{_VISION}merger.mlp.2"] = (self.vision.out_width, merged)
        if not self.is_head_tied:
            found["lm_head"] = (self.text.vocabulary, self.text.width)
        return found

    @property
    def text_parameters(self) -> int:
        """Parameters of the language model, embedding and output head included."""
        text = self.text
        matrices = sum(outputs * inputs for _, (outputs, inputs) in _text_layer(text))
        biases = text.heads * text.head_dim + 2 * text.kv_width
        layers = text.layers * (matrices + biases + 2 * text.width)
        embeddings = text.vocabulary * text.width * (1 if self.is_head_tied else 2)
        return layers + text.width + embeddings

    @property
    def vision_parameters(self) -> int:
        """Parameters of the vision tower and its merger."""
        vision, merged = self.vision, self.vision.merged_width
        norm = vision.width * (1 if vision.is_gated else 2)
        layer = 2 * norm + sum(outputs * inputs + outputs for _, (outputs, inputs) in _vision_layer(vision))
        merger = norm + merged * merged + merged + vision.out_width * merged + vision.out_width
        return vision.patch_values * vision.width + vision.layers * layer + merger

    @property
    def parameters(self) -> int:
        """All parameters, a shared one once."""
        return self.text_parameters + self.vision_parameters

    def adapter_parameters(self, learner: LearnerConfig) -> int:
        """Parameters that LoRA adds; 0 without LoRA. Raises ConfigError for targets it cannot adapt."""
        return learner.lora_rank * sum(sum(shape) for shape in self.adapted(learner).values())

    def adapted(self, learner: LearnerConfig) -> dict[str, Shape]:
        """The linear modules that get adapters; none without LoRA. Raises as `adapter_parameters`."""
        if not learner.lora_rank:
            return {}
        others = [f"{_TEXT}embed_tokens", f"{_TEXT}norm", f"{_VISION}patch_embed.proj"]
        return choose_targets(learner, self.linear_modules(), others, has_tied_head=self.is_head_tied)

    def trains_vision(self, learner: LearnerConfig) -> bool:
        """Whether anything of the vision tower is trained."""
        if learner.lora_rank:
            return any(name.startswith(_VISION) for name in self.adapted(learner))
        return not learner.freeze_vision

    def vision_tokens(self, max_pixels: int) -> int:
        """Vision tokens of an image of so many pixels."""
        return max(1, max_pixels // (self.vision.pixels_per_side * self.vision.merge) ** 2)

    def patches(self, max_pixels: int) -> int:
        """Patches of an image of so many pixels."""
        return self.vision_tokens(max_pixels) * self.vision.merge**2


def _text_layer(text: TextSizes) -> Iterator[tuple[str, Shape]]:
    queries = text.heads * text.head_dim
    yield "self_attn.q_proj", (queries, text.width)
    yield "self_attn.k_proj", (text.kv_width, text.width)
    yield "self_attn.v_proj", (text.kv_width, text.width)
    yield "self_attn.o_proj", (text.width, queries)
    yield "mlp.gate_proj", (text.mlp, text.width)
    yield "mlp.up_proj", (text.mlp, text.width)
    yield "mlp.down_proj", (text.width, text.mlp)


def _vision_layer(vision: VisionSizes) -> Iterator[tuple[str, Shape]]:
    yield "attn.qkv", (3 * vision.width, vision.width)
    yield "attn.proj", (vision.width, vision.width)
    if vision.is_gated:
        yield "mlp.gate_proj", (vision.mlp, vision.width)
        yield "mlp.up_proj", (vision.mlp, vision.width)
        yield "mlp.down_proj", (vision.width, vision.mlp)
    else:
        yield "mlp.fc1", (vision.mlp, vision.width)
        yield "mlp.fc2", (vision.width, vision.mlp)


def architecture_of(model: ModelConfig) -> Architecture:
    """The sizes of the model that a configuration names: a model folder, a run, `tiny`, or the hub id of one
    that was downloaded or whose sizes are known here. Nothing is downloaded. Raises ModelError.
    """
    path = model.path
    if path != TINY and not Path(path).is_dir():
        if path in PUBLISHED:
            return architecture_from(PUBLISHED[path], path)
        if cached := _downloaded_config(model):
            return architecture_from(read_json(cached.parent, cached.name), path)
        raise ModelError(
            f"model.path={path!r}: no such folder, not downloaded, and its sizes are not known here; give a "
            f"model folder (its config.json is enough), 'tiny', or one of {', '.join(PUBLISHED)}"
        )
    folder = Path(path)
    if not (folder / "config.json").is_file():
        folder = model_folder_of(path)
    return architecture_from(read_json(folder, "config.json"), str(folder / "config.json"))


def _downloaded_config(model: ModelConfig) -> Path | None:
    """The config.json of a hub id in the hub's cache."""
    if model.path.count("/") != 1 or model.revision is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model.path, "config.json", revision=model.revision)
    return Path(found) if isinstance(found, str) else None


def architecture_from(config: Mapping[str, Any], where: str) -> Architecture:
    """The sizes in the contents of a `config.json`. Raises ModelError, naming `where`."""
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ModelError(
            f"{where}: model_type={family!r}: the sizes of such models are not worked out here; "
            f"expected one of {', '.join(FAMILIES)}"
        )
    text, vision = config.get("text_config", config), config.get("vision_config", {})
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
    try:
        return Architecture(
            family=str(family),
            text=_text_sizes(text),
            vision=_vision_sizes(vision, is_gated=family == "qwen2_5_vl"),
            is_head_tied=bool(tied),
        )
    except (KeyError, TypeError) as error:
        raise ModelError(f"{where}: the model's sizes are incomplete: {error}") from error


def _text_sizes(text: Mapping[str, Any]) -> TextSizes:
    heads = text["num_attention_heads"]
    return TextSizes(
        width=text["hidden_size"],
        mlp=text["intermediate_size"],
        layers=text["num_hidden_layers"],
        heads=heads,
        kv_heads=text.get("num_key_value_heads") or heads,
        head_dim=text.get("head_dim") or text["hidden_size"] // heads,
        vocabulary=text["vocab_size"],
        max_positions=text.get("max_position_embeddings"),
    )


def _vision_sizes(vision: Mapping[str, Any], *, is_gated: bool) -> VisionSizes:
    width = vision["hidden_size"] if is_gated else vision["embed_dim"]
    layers, patch = vision["depth"], vision.get("patch_size", 14)
    channels = vision.get("in_channels", vision.get("in_chans", 3))
    full = vision.get("fullatt_block_indexes", (7, 15, 23, 31)) if is_gated else range(layers)
    return VisionSizes(
        width=width,
        mlp=vision["intermediate_size"] if is_gated else int(width * vision.get("mlp_ratio", 4)),
        layers=layers,
        heads=vision["num_heads"],
        out_width=vision["out_hidden_size"] if is_gated else vision["hidden_size"],
        patch_values=channels * vision.get("temporal_patch_size", 2) * patch**2,
        merge=vision.get("spatial_merge_size", 2),
        pixels_per_side=patch,
        is_gated=is_gated,
        window=(vision.get("window_size", 112) // patch) ** 2 if is_gated else 0,
        windowed_layers=layers - sum(layer < layers for layer in full),
    )
