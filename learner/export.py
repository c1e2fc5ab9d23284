"""Weights out of the learner: to the engines (one safetensors file) and to a model folder.

Names are those `save_pretrained` writes, so that vLLM and `from_pretrained` read the file; a tied
`lm_head` is left out. Every rank takes part (ZeRO-3 gathers); rank 0 writes.
"""

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from alphadrive.errors import ModelError
from alphadrive.model_folder import weight_files
from alphadrive.types import WeightsFile, WeightVersion
from alphadrive.weights import WeightDigest, dtype_name
from learner.engine import TrainingEngine
from learner.lora import is_factor
from learner.policy import Policy

MODEL_PREFIX = "model."
"""Of parameters under the learner, before the model's own names."""
_COPIED_FILES = ("*.json", "*.jinja", "*.txt", "*.model")
_INDEX_SUFFIX = ".index.json"


def collect_weights(engine: TrainingEngine, policy: Policy, keep: bool) -> dict[str, Tensor]:
    """All weights on the CPU in the model's dtype, under the names of a checkpoint, sorted; an adapter is
    merged into them.

    Every rank calls this; those with `keep` False get nothing and hold nothing.
    """
    kept: dict[str, Tensor] = {}
    factors = collect_factors(engine, keep) if policy.adapter else {}

    def visit(name: str, tensor: Tensor) -> None:
        if keep:
            if policy.adapter:
                name, tensor = policy.adapter.merged(name, tensor, factors)
            kept[name.removeprefix(MODEL_PREFIX)] = tensor.to("cpu", policy.dtype, copy=True).contiguous()

    engine.for_each_parameter(visit, lambda name: not is_factor(name))
    if not keep:
        return {}
    if policy.model.config.tie_word_embeddings:
        kept.pop("lm_head.weight", None)
    return dict(sorted(revert_weight_conversion(policy.model, kept).items()))


def collect_factors(engine: TrainingEngine, keep: bool) -> dict[str, Tensor]:
    """The adapter's parameters by name, whole, where the learner computes. `keep` as in `collect_weights`."""
    factors: dict[str, Tensor] = {}

    def visit(name: str, tensor: Tensor) -> None:
        if keep:
            factors[name] = tensor.clone()

    engine.for_each_parameter(visit, is_factor)
    return factors


def write_weights(weights: dict[str, Tensor], path: Path, version: WeightVersion) -> WeightsFile:
    """Write a safetensors file under its final name at once (rename), with the digest of its tensors."""
    digest = WeightDigest()
    for name, tensor in weights.items():
        data = tensor.flatten().view(torch.uint8).numpy()
        digest.add(name, dtype_name(tensor.dtype), tuple(tensor.shape), data)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    save_file(weights, partial, metadata={"format": "pt"})
    os.replace(partial, path)
    return WeightsFile(path=str(path), version=version, sha256=digest.hexdigest(), num_bytes=digest.num_bytes)


def write_model_folder(weights: dict[str, Tensor], policy: Policy, source: Path, folder: Path) -> None:
    """Write a folder that `from_pretrained` and vLLM load: weights, configuration, and `source`'s tokenizer,
    chat template and processor files."""
    _write_folder(weights, policy.dtype, source, folder)


def convert_model_folder(source: Path, folder: Path, dtype: str) -> None:
    """Write the model of a folder into another, its weights as `dtype` (`bfloat16` or `float32`)."""
    target: torch.dtype = getattr(torch, dtype)
    weights: dict[str, Tensor] = {}
    for path in weight_files(source):
        for name, tensor in load_file(path).items():
            weights[name] = tensor.to(target) if tensor.is_floating_point() else tensor
    _write_folder(weights, target, source, folder)


def _write_folder(weights: dict[str, Tensor], dtype: torch.dtype, source: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in _COPIED_FILES:
        for path in source.glob(pattern):
            if not path.name.endswith(_INDEX_SUFFIX):
                shutil.copyfile(path, folder / path.name)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config_file = source / "config.json"
    if not config_file.is_file():
        raise ModelError(f"{config_file}: missing; cannot write a model folder from {source}")
    config = json.loads(config_file.read_text())
    _set_dtype(config, str(dtype).removeprefix("torch."))
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _set_dtype(config: dict[str, object], dtype: str) -> None:
    for key, value in config.items():
        if key in ("dtype", "torch_dtype"):
            config[key] = dtype
        elif isinstance(value, dict):
            _set_dtype(value, dtype)
