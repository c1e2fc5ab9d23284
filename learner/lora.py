"""LoRA: low-rank matrices beside some linear modules are trained, the weights themselves stay.

    module(x) = W x + scale * B (A x)        A (rank, inputs) random, B (outputs, rank) zero at the start

The adapted modules replace the model's own in place (peft); the model stays the object it was. Weights leave
the learner merged, W + scale * B A, computed beside the model and never in it: adding and subtracting in
bfloat16 would wear W down.
"""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from alphadrive.config import LearnerConfig
from alphadrive.errors import CheckpointError
from alphadrive.lora_targets import choose_targets

ADAPTER_FOLDER = "adapter"
_BASE, _A, _B = ".base_layer.", ".lora_A.default.", ".lora_B.default."
_CONFIG_FILE = "adapter_config.json"


class Adapter:
    """The LoRA adapter of a model.

    Adding it freezes all of the model's own weights. The same `seed` gives the same start on every rank.
    Raises ConfigError for targets that match nothing or cannot be adapted.
    """

    def __init__(self, model: PreTrainedModel, learner: LearnerConfig, seed: int) -> None:
        modules = {name: module for name, module in model.named_modules() if name}
        linear = {
            name: (module.out_features, module.in_features)
            for name, module in modules.items()
            if isinstance(module, nn.Linear)
        }
        others = modules.keys() - linear.keys()
        is_tied = bool(model.config.tie_word_embeddings)
        self.targets = choose_targets(learner, linear, others, has_tied_head=is_tied)
        self.scale = learner.lora_alpha / learner.lora_rank
        self._config = LoraConfig(
            r=learner.lora_rank, lora_alpha=learner.lora_alpha, target_modules=learner.lora_targets
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._peft = get_peft_model(model, self._config, autocast_adapter_dtype=False)

    @property
    def num_parameters(self) -> int:
        """Trained parameters."""
        return self._config.r * sum(outputs + inputs for outputs, inputs in self.targets.values())

    def disabled(self) -> AbstractContextManager[None]:
        """Within this context the model is the one that was adapted: for forwards without gradient."""
        return self._peft.disable_adapter()

    @staticmethod
    def plain_name(name: str) -> str:
        """A parameter's name without LoRA."""
        return name.replace(_BASE, ".")

    def merged(self, name: str, weight: Tensor, factors: Mapping[str, Tensor]) -> tuple[str, Tensor]:
        """A parameter's name without LoRA, and its value with LoRA, in a tensor of its own if that differs.

        `factors` are the adapter's parameters by name. Computed in float32, given in the weight's dtype.
        """
        plain_name = self.plain_name(name)
        if plain_name == name or not name.endswith(".weight"):
            return plain_name, weight
        factor_a, factor_b = (factors[name.replace(_BASE, side)].float() for side in (_A, _B))
        return plain_name, torch.addmm(weight.float(), factor_b, factor_a, alpha=self.scale).to(weight.dtype)

    def save(self, factors: Mapping[str, Tensor], folder: Path) -> None:
        """Write the folder that `PeftModel.from_pretrained` adds to the model it was made for."""
        named = {f"base_model.{name}": factor.cpu() for name, factor in factors.items()}
        self._peft.save_pretrained(str(folder), state_dict=named, save_embedding_layers=False)


def is_factor(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return _A in name or _B in name


def check_same_adapter(checkpoint: Path, learner: LearnerConfig) -> None:
    """Raises CheckpointError when a checkpoint continues another kind of training: full weights instead of
    LoRA or the reverse, or LoRA of another rank, alpha or other targets."""
    path = checkpoint / ADAPTER_FOLDER / _CONFIG_FILE
    saved: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"r": 0}
    before = _described(saved["r"], saved.get("lora_alpha"), saved.get("target_modules"))
    now = _described(learner.lora_rank, learner.lora_alpha, learner.lora_targets)
    if before != now:
        raise CheckpointError(
            f"{checkpoint}: was made with {before}, the configuration has {now}; go on with the same, or "
            "start a new run from the checkpoint's model"
        )


def _described(rank: int, alpha: object, targets: object) -> str:
    if not rank:
        return "learner.lora_rank=0 (full weights)"
    return f"learner.lora_rank={rank} lora_alpha={alpha} lora_targets={targets!r}"
