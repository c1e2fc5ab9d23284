"""The sampler's mask: vision tokens are impossible, in random and in greedy decoding alike.

A sampled image placeholder has no image behind it: the learner could not score it. vLLM builds this
class in the process that samples, from the name in the engine's arguments; the token ids come with the
engine's `additional_config`.
"""

import torch
from vllm.config import VllmConfig
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor

from alphadrive.errors import ModelError

CONFIG_KEY = "alphadrive_vision_token_ids"
QUALIFIED_NAME = "rollout.vision_mask:VisionMask"


class VisionMask(LogitsProcessor):
    """Sets the logits of the vision tokens to minus infinity, for every request."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        additional = vllm_config.additional_config
        token_ids = additional[CONFIG_KEY] if isinstance(additional, dict) else []
        if not token_ids:
            raise ModelError(f"the engine's additional_config has no {CONFIG_KEY}: no token would be masked")
        self.token_ids = torch.tensor(token_ids, dtype=torch.long, device=device)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Mask `logits` [sequences, vocabulary] in place."""
        return logits.index_fill_(1, self.token_ids, -float("inf"))

    def is_argmax_invariant(self) -> bool:
        """False: greedy decoding needs the mask too."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Nothing depends on the request."""
