"""The weights as they leave the learner, a bucket at a time.

    every rank:  for each bucket:  gather (ZeRO-3) ─▶ rank 0: merge LoRA, cast, hand out ─▶ let go

Names and order are those of `learner.export`; never is more of the model gathered than one bucket.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from alphadrive.errors import ModelError
from alphadrive.weight_layout import TensorMeta, WeightLayout
from learner.engine import TrainingEngine
from learner.export import MODEL_PREFIX, collect_factors
from learner.lora import is_factor
from learner.policy import Policy


class WeightSource:
    """The policy's weights. Every rank makes one and calls every method together.

    Raises ModelError for a model whose tensors are not one by one those of its checkpoint.
    """

    def __init__(self, engine: TrainingEngine, policy: Policy) -> None:
        self._engine, self._policy = engine, policy
        self._parameter_of = _checkpoint_names(engine, policy)
        shapes = engine.shape.parameters
        dtype = str(policy.dtype).removeprefix("torch.")
        self.tensors = tuple(
            TensorMeta(name, dtype, tuple(shapes[self._parameter_of[name]]))
            for name in sorted(self._parameter_of)
        )
        """All tensors in ascending order of their names."""

    def buckets(self, layout: WeightLayout, keep: bool) -> Iterator[list[Tensor]]:
        """The tensors of each bucket of `layout`, where the learner computes; each list is good until the
        next one is asked for. Without `keep` the lists are empty.

        Every rank must take every bucket: where a rank stops, the others wait.
        """
        adapter = self._policy.adapter
        factors = collect_factors(self._engine, keep) if adapter else {}
        names = [[slot.tensor.name for slot in bucket] for bucket in layout.buckets]
        wanted = [[self._parameter_of[name] for name in bucket] for bucket in names]
        for gathered in self._engine.gathered(wanted):
            tensors = []
            for name, tensor in gathered.items() if keep else ():
                if adapter:
                    _, tensor = adapter.merged(name, tensor, factors)
                tensors.append(tensor.to(self._policy.dtype).contiguous())
            yield tensors


def _checkpoint_names(engine: TrainingEngine, policy: Policy) -> dict[str, str]:
    """The name in a checkpoint of each parameter that is in one: name to the parameter's own."""
    stand_ins: dict[str, Tensor] = {}
    own_names: dict[int, str] = {}
    for own_name, shape in engine.shape.parameters.items():
        if is_factor(own_name):
            continue
        plain = policy.adapter.plain_name(own_name) if policy.adapter else own_name
        stand_in = torch.empty(shape, device="meta")
        stand_ins[plain.removeprefix(MODEL_PREFIX)] = stand_in
        own_names[id(stand_in)] = own_name
    is_tied = policy.model.config.tie_word_embeddings
    sent = {name: each for name, each in stand_ins.items() if not (is_tied and name == "lm_head.weight")}
    renamed = revert_weight_conversion(policy.model, dict(sent))
    if len(renamed) != len(sent) or any(id(tensor) not in own_names for tensor in renamed.values()):
        raise ModelError(
            f"{type(policy.model).__name__}: tensors of its checkpoint are made of several parameters, which "
            "cannot be sent one by one; set rollout.weight_transfer=file"
        )
    return {name: own_names[id(tensor)] for name, tensor in renamed.items()}
