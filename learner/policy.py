"""The policy: a vision-language model that gives log-probabilities of completion tokens.

Wraps whatever `AutoModelForImageTextToText` loads. Logits are computed at completion positions
only, a few thousand tokens at a time, so that no (positions x vocabulary) tensor ever exists. Runs
alone and under every ZeRO stage: parameters are only used through the modules that own them.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForImageTextToText, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import logging

from alphadrive.config import LearnerConfig
from alphadrive.errors import LearnerError, ModelError
from learner.attention import NAME
from learner.batch import Grid, TokenBatch
from learner.lora import Adapter
from learner.patches import PatchTable
from learner.token_logprobs import token_logprobs
from learner.vision import FrozenFeatures

ATTENTION = {"": "sdpa", "text_config": NAME, "vision_config": "sdpa"}
"""Packs go through the language model; the vision tower keeps images apart by itself."""

MAX_LOGITS = 1 << 25
"""Logits held at once (128 MiB in float32); more are recomputed chunk by chunk in the backward pass."""


class Policy(nn.Module):
    """A model with the sampler's temperature and vision-token mask.

    `vision_token_ids` are never sampled: their logits are -inf here as they are in the engines, so
    that both normalise over the same tokens. `patch_table` makes pixel values of 8-bit patches;
    `frozen_features` keeps what a vision tower that is not trained gives (None: it runs every time);
    `num_vision_passes` counts the images that went through the tower.
    """

    def __init__(
        self, model: PreTrainedModel, vision_token_ids: Sequence[int], temperature: float = 1.0
    ) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature
        self.vision_token_ids = tuple(vision_token_ids)
        self.num_vision_passes = 0
        self.patch_table: PatchTable | None = None
        self.frozen_features: FrozenFeatures | None = None
        self.adapter: Adapter | None = None
        model.set_attn_implementation(ATTENTION)
        use_matmul_patch_embedding(model)
        self._positions_of_types = lru_cache(maxsize=4096)(self._compute_positions)

    @classmethod
    def from_folder(
        cls, folder: Path, dtype: str, vision_token_ids: Sequence[int], temperature: float = 1.0
    ) -> "Policy":
        """Load a Hugging Face folder (safetensors only, no code from it). Raises ModelError."""
        logging.disable_progress_bar()
        try:
            model = AutoModelForImageTextToText.from_pretrained(
                folder,
                dtype=getattr(torch, dtype),
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
            )
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"{folder}: cannot be loaded as a vision-language model: {error}") from error
        return cls(model, vision_token_ids, temperature)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the model's arithmetic."""
        return self.model.dtype

    def freeze_vision(self) -> None:
        """Stop training the vision tower and its projection into the language model."""
        self.model.base_model.visual.requires_grad_(False)

    @property
    def is_vision_frozen(self) -> bool:
        """Whether nothing of the vision tower is trained."""
        return not any(weight.requires_grad for weight in self.model.base_model.visual.parameters())

    def checkpoint_activations(self) -> None:
        """Keep only the input of each layer, of language model and vision tower; the backward pass computes
        the rest again."""
        self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    def add_adapter(self, learner: LearnerConfig, seed: int) -> None:
        """Train a LoRA adapter instead of the weights. Raises as `Adapter`."""
        self.adapter = Adapter(self.model, learner, seed)

    def prompt_positions(self, prompt_ids: Sequence[int], grid: Grid) -> Tensor:
        """M-RoPE positions (3, P) of a prompt with one image, by the model's own rule."""
        image_token_id = self.model.config.image_token_id
        return self._positions_of_types(bytes(token == image_token_id for token in prompt_ids), grid)

    def _compute_positions(self, is_image_token: bytes, grid: Grid) -> Tensor:
        types_1P = torch.tensor([list(is_image_token)], dtype=torch.int32)
        positions_31P, _ = self.model.base_model.get_rope_index(
            torch.zeros(types_1P.shape, dtype=torch.long),
            mm_token_type_ids=types_1P,
            image_grid_thw=torch.tensor([grid]),
        )
        return positions_31P[:, 0]

    def forward(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy (no gradient) of each completion token, (T,) float32 each."""
        text = self.model.config.get_text_config()
        images = BaseModelOutputWithPooling(pooler_output=(self._image_embeds(batch),))
        hidden_1ND = self.model.base_model(
            input_ids=batch.input_ids_N[None],
            attention_mask=dict.fromkeys(text.layer_types, batch.layout),
            position_ids=batch.positions_3N[:, None],
            mm_encoder_outputs={"image": images},
            use_cache=False,
        ).last_hidden_state
        hidden_TD = hidden_1ND[0].index_select(0, batch.logit_index_T)
        chunk = max(1, MAX_LOGITS // text.vocab_size)
        chunks = list(zip(hidden_TD.split(chunk), batch.target_ids_T.split(chunk), strict=True))
        if len(chunks) == 1 or not torch.is_grad_enabled():
            parts = [self._token_logprobs(*part) for part in chunks]
        else:
            parts = [checkpoint(self._token_logprobs, *part, use_reentrant=False) for part in chunks]
        logprobs, entropies = zip(*parts, strict=True)
        return torch.cat(logprobs), torch.cat(entropies)

    def _image_embeds(self, batch: TokenBatch) -> Tensor:
        """What the language model sees of the pack's images, in order: (vision tokens, D)."""
        if self.frozen_features is not None:
            return self.frozen_features.of(batch, self._vision, self._dummy_vision)
        if batch.pixel_values is None:
            raise LearnerError("a pack without pixels came to a policy that keeps no vision features")
        return torch.cat(list(self._vision(batch.pixel_values, batch.image_grid_thw)))

    def _vision(self, pixel_values: Tensor, grids: Tensor) -> Sequence[Tensor]:
        self.num_vision_passes += len(grids)
        if pixel_values.dtype == torch.uint8:
            if self.patch_table is None:
                raise LearnerError("8-bit patches came to a policy without a patch table; set `patch_table`")
            pixel_values = self.patch_table.pixel_values(pixel_values)
        return self.model.base_model.get_image_features(pixel_values, grids).pooler_output

    def _dummy_vision(self) -> None:
        visual = self.model.base_model.visual
        embed, merge = visual.patch_embed, visual.spatial_merge_size
        dim = embed.in_channels * embed.temporal_patch_size * embed.patch_size**2
        device = next(visual.parameters()).device
        self.model.base_model.get_image_features(
            torch.zeros(merge**2, dim, device=device), torch.tensor([[1, merge, merge]], device=device)
        )

    def _token_logprobs(self, hidden_TD: Tensor, target_ids_T: Tensor) -> tuple[Tensor, Tensor]:
        logits_TV = self.model.get_output_embeddings()(hidden_TD)
        return token_logprobs(logits_TV, target_ids_T, self.vision_token_ids, self.temperature)


class _PatchMatmul(nn.Conv3d):
    """A convolution whose input is exactly one kernel: a matrix product."""

    def forward(self, patches: Tensor) -> Tensor:
        embedded = F.linear(patches.flatten(1), self.weight.flatten(1), self.bias)
        return embedded[:, :, None, None, None]


def use_matmul_patch_embedding(model: nn.Module) -> None:
    """Compute patch embeddings as matrix products instead of 3-D convolutions over single patches.

    Qwen's vision towers cut patches before they embed them, so that kernel and input are of one size;
    general convolution code is many times slower there. Same parameters, same names.
    """
    for module in model.modules():
        patch_embed = getattr(module, "patch_embed", None)
        projection = getattr(patch_embed, "proj", None)
        if type(projection) is nn.Conv3d and projection.kernel_size == projection.stride:
            projection.__class__ = _PatchMatmul
