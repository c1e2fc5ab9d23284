"""The policy that the KL is taken to: the one the run started from, never trained."""

import torch
from torch import Tensor, nn

from alphadrive.config import Config
from learner.batch import TokenBatch
from learner.deepspeed_setup import shard_frozen
from learner.engine import TrainingEngine
from learner.lora import Adapter
from learner.policy import Policy


class FrozenReference:
    """The starting policy under ZeRO's stage of the learner.

    With stage 3, which is chosen where the weights are too large for one rank, it is split over the ranks as
    the trained weights are, and every rank must run the same number of its forwards. With the other stages
    every rank keeps all trained weights, and a copy of these; gathering them layer by layer for each
    microbatch would cost more time than the copy is worth.
    """

    def __init__(self, policy: Policy, config: Config, device: torch.device) -> None:
        self.policy = policy.requires_grad_(False).eval()
        self._module: nn.Module = self.policy.to(device)
        if config.learner.zero_stage == 3:
            self._module = shard_frozen(self.policy, config.model.dtype)

    def logprobs(self, tokens: TokenBatch) -> Tensor:
        """Log-probability of each completion token, (T,) float32, without gradient."""
        with torch.no_grad():
            logprobs_T, _ = self._module(tokens)
        return logprobs_T


class BaseReference:
    """The starting policy where the trained one is a LoRA adapter beside it: the same model with its adapter
    disabled, at no memory. Every rank must run the same number of its forwards under ZeRO-3."""

    def __init__(self, engine: TrainingEngine, adapter: Adapter) -> None:
        self._engine, self._adapter = engine, adapter

    def logprobs(self, tokens: TokenBatch) -> Tensor:
        """Log-probability of each completion token, (T,) float32, without gradient."""
        with torch.no_grad(), self._adapter.disabled():
            logprobs_T, _ = self._engine.forward(tokens)
        return logprobs_T
