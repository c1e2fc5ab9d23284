"""Which modules of a model LoRA adapts: those whose whole name the expression `learner.lora_targets` matches.

Names and shapes come from the headers of the weight files here, so that a bad expression is refused before
anything is loaded; the learner asks `choose_targets` again with the modules themselves.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from alphadrive.config import LearnerConfig
from alphadrive.errors import ConfigError
from alphadrive.model_folder import read_json, tensor_shapes

Shape = tuple[int, int]
"""Outputs and inputs of a linear module."""

VISION_PREFIX = "model.visual."
OUTPUT_HEAD = "lm_head"


def choose_targets(
    learner: LearnerConfig, linear: Mapping[str, Shape], others: Iterable[str], *, has_tied_head: bool
) -> dict[str, Shape]:
    """The linear modules that the expression chooses.

    `linear` are the model's linear modules, `others` the names of all its other modules. Raises ConfigError
    when the expression matches nothing, or anything that cannot be adapted: a module that is not linear,
    an output head whose weight is the token embedding's, the vision tower where it is frozen.
    """
    refused = dict.fromkeys(others, "not linear")
    if has_tied_head:
        refused[OUTPUT_HEAD] = "its weight is the token embedding's"
    if learner.freeze_vision:
        frozen = [name for name in linear if name.startswith(VISION_PREFIX)]
        refused |= dict.fromkeys(frozen, "frozen by learner.freeze_vision")
    adaptable = {name: shape for name, shape in linear.items() if name not in refused}
    pattern = re.compile(learner.lora_targets)
    wrong = [f"{name} ({why})" for name, why in refused.items() if pattern.fullmatch(name)]
    if wrong:
        raise ConfigError(
            f"learner.lora_targets={learner.lora_targets!r} matches {len(wrong)} modules that LoRA cannot "
            f"adapt, such as {', '.join(wrong[:3])}; expected names of linear modules only, such as "
            f"{_examples(adaptable)}"
        )
    chosen = {name: shape for name, shape in adaptable.items() if pattern.fullmatch(name)}
    if not chosen:
        raise ConfigError(
            f"learner.lora_targets={learner.lora_targets!r} matches none of the model's {len(adaptable)} "
            f"linear modules; expected a regular expression for whole names, such as {_examples(adaptable)}"
        )
    return chosen


def num_adapter_parameters(folder: Path, learner: LearnerConfig) -> int:
    """Parameters that LoRA adds to the model in a folder. Raises as `choose_targets`."""
    linear, others = modules_in_headers(folder)
    config = read_json(folder, "config.json")
    is_tied = config.get("tie_word_embeddings", config.get("text_config", {}).get("tie_word_embeddings"))
    chosen = choose_targets(learner, linear, others, has_tied_head=bool(is_tied))
    return learner.lora_rank * sum(outputs + inputs for outputs, inputs in chosen.values())


def modules_in_headers(folder: Path) -> tuple[dict[str, Shape], set[str]]:
    """The linear modules and the names of all others, as far as the headers of the weight files show them,
    under the names that the loaded model has."""
    linear: dict[str, Shape] = {}
    others: set[str] = set()
    for tensor_name, shape in tensor_shapes(folder).items():
        name, _, parameter = _loaded_name(tensor_name).rpartition(".")
        is_matrix = parameter == "weight" and len(shape) == 2
        if is_matrix and "embed" not in name.rpartition(".")[2]:
            linear[name] = (shape[0], shape[1])
        else:
            others.add(name)
        parts = name.split(".")
        others.update(".".join(parts[:length]) for length in range(1, len(parts)))
    return linear, others - set(linear)


def _loaded_name(tensor_name: str) -> str:
    """The name of a stored tensor in the loaded model: older checkpoints lack the language model's level."""
    if tensor_name.startswith("visual."):
        return f"model.{tensor_name}"
    if tensor_name.startswith("model.") and not tensor_name.startswith(
        (VISION_PREFIX, "model.language_model.")
    ):
        return f"model.language_model.{tensor_name.removeprefix('model.')}"
    return tensor_name


def _examples(names: Iterable[str]) -> str:
    """One name of each kind, the first few kinds."""
    by_kind = {name.rpartition(".")[2]: name for name in sorted(names, reverse=True)}
    return ", ".join(sorted(by_kind.values())[:4])
