"""Finding a model folder and refusing one that cannot or must not be loaded.

Looks at files only: nothing of the model is executed and no weight is read beyond its header. The
folder stays as it is, so that `from_pretrained` and vLLM load the very same files.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

from alphadrive.errors import ModelError
from alphadrive.resources import shipped

TINY = "tiny"
FAMILIES = ("qwen2_vl", "qwen2_5_vl")
"""Model types that the learner trains. Qwen3-VL feeds image features into several layers of its language
model, which `learner.policy` does not."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]
_JSON_FILES = (
    "config.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "generation_config.json",
)


def resolve_model(path: str, revision: str | None = None) -> Path:
    """The checked folder of a model.

    `path` is `tiny` (the model shipped with the project), a folder, or a hub id; a hub id needs the
    commit it is pinned to as `revision`. Raises ModelError when there is no such model, when it is no
    vision-language model, has no chat template, brings its own code, or has no safetensors weights.
    """
    if path == TINY:
        folder = _tiny_folder()
    elif Path(path).is_dir():
        folder = Path(path)
    elif _HUB_ID.fullmatch(path) and revision is not None:
        folder = _download(path, revision)
    elif _HUB_ID.fullmatch(path):
        raise ModelError(
            f"model.path={path!r}: no such folder; if it is a hub id, set model.revision to the commit "
            "(40 hex digits) to use"
        )
    else:
        raise ModelError(
            f"model.path={path!r}: no such folder; expected 'tiny', a model folder, or a hub id with "
            "model.revision"
        )
    check_model_folder(folder)
    return folder


def _tiny_folder() -> Path:
    folder = shipped("assets/tiny-vlm")
    if (folder / "config.json").is_file():
        return folder
    raise ModelError(
        f"model.path='tiny': the shipped model is not at {folder}; "
        "install the project again or make it with `alphadrive model tiny --out assets/tiny-vlm`"
    )


def _download(hub_id: str, revision: str) -> Path:
    if not _COMMIT.fullmatch(revision):
        raise ModelError(
            f"model.revision={revision!r} for {hub_id}: expected a commit of 40 hex digits; "
            "a branch or a tag can move to other weights"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=_HUB_PATTERNS))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model.path={hub_id!r}, model.revision={revision}: cannot be fetched ({error}); "
            "check both and the network, or give a local folder"
        ) from error


def check_model_folder(folder: Path) -> None:
    """Raises ModelError for a folder `resolve_model` would refuse."""
    config = read_json(folder, "config.json")
    _refuse_own_code(folder)
    _check_vision(folder, config)
    _check_text_side(folder)
    _check_weights(folder)


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file of a model folder. Raises ModelError when it is missing or damaged."""
    path = folder / name
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(
            f"{path}: missing; expected a Hugging Face model folder as save_pretrained writes it"
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def _refuse_own_code(folder: Path) -> None:
    for name in _JSON_FILES:
        if (folder / name).is_file() and "auto_map" in _keys(read_json(folder, name)):
            raise ModelError(
                f"{folder / name}: 'auto_map' asks for code from the model folder to be run; models with "
                "their own code are refused (trust_remote_code is never on): use a model transformers knows"
            )


def _keys(tree: Any) -> set[str]:
    if isinstance(tree, dict):
        return set(tree).union(*(_keys(value) for value in tree.values()))
    if isinstance(tree, list):
        return set().union(*(_keys(value) for value in tree))
    return set()


def _check_vision(folder: Path, config: dict[str, Any]) -> None:
    model_type = config.get("model_type")
    if model_type not in FAMILIES or "vision_config" not in config:
        raise ModelError(
            f"{folder / 'config.json'}: model_type={model_type!r} is no vision-language model this project "
            f"trains; expected one of {', '.join(FAMILIES)}, with a vision_config"
        )
    processor = image_processor_config(folder)
    kind = str(processor.get("image_processor_type", "Qwen2VLImageProcessor"))
    if not kind.startswith("Qwen2VLImageProcessor"):
        raise ModelError(
            f"{folder}: image_processor_type={kind!r} is not supported; expected Qwen2VLImageProcessor "
            "(Qwen2-VL, Qwen2.5-VL)"
        )


def image_processor_config(folder: Path) -> dict[str, Any]:
    """The image processor's settings, from wherever the folder keeps them. Raises ModelError."""
    if (folder / "preprocessor_config.json").is_file():
        return read_json(folder, "preprocessor_config.json")
    if (folder / "processor_config.json").is_file():
        nested = read_json(folder, "processor_config.json").get("image_processor")
        if isinstance(nested, dict):
            return nested
    raise ModelError(
        f"{folder}: no image processor; expected preprocessor_config.json, or processor_config.json with "
        "an image_processor section, as AutoProcessor.save_pretrained writes it"
    )


def _check_text_side(folder: Path) -> None:
    if not (folder / "tokenizer.json").is_file() and not (folder / "vocab.json").is_file():
        raise ModelError(f"{folder}: no tokenizer; expected tokenizer.json, or vocab.json with merges.txt")
    if chat_template(folder) is None:
        raise ModelError(
            f"{folder}: no chat template; expected chat_template.jinja, chat_template.json or one in "
            "tokenizer_config.json: use an instruction-tuned model"
        )


def chat_template(folder: Path) -> str | None:
    """The folder's default chat template, or None when it has none."""
    if (folder / "chat_template.jinja").is_file():
        template: Any = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    elif (folder / "chat_template.json").is_file():
        template = read_json(folder, "chat_template.json").get("chat_template")
    elif (folder / "tokenizer_config.json").is_file():
        template = read_json(folder, "tokenizer_config.json").get("chat_template")
    else:
        template = None
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) and template.strip() else None


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the model's weights. Raises ModelError when there are none."""
    if (folder / "model.safetensors.index.json").is_file():
        index = read_json(folder, "model.safetensors.index.json").get("weight_map")
        if not isinstance(index, dict) or not index:
            raise ModelError(f"{folder / 'model.safetensors.index.json'}: weight_map is missing or empty")
        return [folder / name for name in sorted({str(name) for name in index.values()})]
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    pickled = sorted(
        path.name for suffix in ("bin", "pt", "pth", "ckpt") for path in folder.glob(f"*.{suffix}")
    )
    found = f"found {', '.join(pickled)}, which can run code when loaded" if pickled else "found no weights"
    raise ModelError(f"{folder}: expected model.safetensors; {found}: save the model as safetensors")


def _check_weights(folder: Path) -> None:
    from safetensors import SafetensorError, safe_open

    for path in weight_files(folder):
        if path.parent != folder or not path.is_file():
            raise ModelError(f"{path}: named in model.safetensors.index.json but not in the folder")
        try:
            with safe_open(path, framework="numpy") as tensors:
                tensors.keys()
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{path}: no complete safetensors file ({error}); copy or save it again"
            ) from error


def special_tokens_of(folder: Path) -> tuple[str, ...]:
    """Every special or added token of the folder's tokenizer, read from its files alone."""
    found: list[object] = []
    if (folder / "tokenizer.json").is_file():
        added = read_json(folder, "tokenizer.json").get("added_tokens", [])
        found += [token.get("content") for token in added if isinstance(token, dict)]
    if (folder / "tokenizer_config.json").is_file():
        decoder = read_json(folder, "tokenizer_config.json").get("added_tokens_decoder", {})
        found += [token.get("content") for token in decoder.values() if isinstance(token, dict)]
    return tuple(dict.fromkeys(token for token in found if isinstance(token, str) and token))


def num_parameters(folder: Path) -> int:
    """Parameters of the model, counted in the headers of its weight files."""
    return sum(math.prod(shape) for shape in tensor_shapes(folder).values())


def num_vision_parameters(folder: Path) -> int:
    """Those of them that are the vision tower's."""
    shapes = tensor_shapes(folder)
    return sum(
        math.prod(shapes[name]) for name in shapes if name.removeprefix("model.").startswith("visual.")
    )


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every stored tensor, from the headers of the weight files."""
    from safetensors import safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder):
        with safe_open(path, framework="numpy") as tensors:
            shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in sorted(tensors.keys())}
    return shapes
