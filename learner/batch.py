"""Groups to tensors: one training row = one prompt, its image, and all its completions.

    row:       prompt p0 p1 p2 | A0 A1 | B0 B1 B2 | pad        (the last token of a completion is
    owner:            0  0  0  |  1  1 |  2  2  2 |  -1         never an input: nothing follows it)
    position:         0  1  2  |  3  4 |  3  4  5 |             (restarts for every completion)
    sees:      prompt causally; A: the prompt and A; B: the prompt and B
    logits:    of A0 and of B0 from p2, of A1 from A0, ...

The prompt and the image are computed once for all G completions; every completion gets exactly the
positions and the context it would have alone. Pure tensors: no model, no dataset.

Legend: B rows, L positions in a row, T completion tokens of the batch (row by row, completion by completion).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

Grid = tuple[int, int, int]
PromptPositions = Callable[[Sequence[int], Grid], Tensor]
"""M-RoPE positions (3, P) of a prompt alone, from its tokens and its image grid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRow:
    """One prompt, its image and its completions, before padding.

    `prompt_ids` has one placeholder for every vision token; `pixel_values` is (patches, dim) float32;
    `grid` is the image's (time, height, width) in patches.
    """

    prompt_ids: Sequence[int]
    completions: Sequence[Sequence[int]]
    pixel_values: np.ndarray
    grid: Grid

    @property
    def num_tokens(self) -> int:
        """Prompt and completion tokens together: the length of the row, up to a few."""
        return len(self.prompt_ids) + self.num_completion_tokens

    @property
    def num_completion_tokens(self) -> int:
        """Tokens whose log-probability the policy gives."""
        return sum(len(completion) for completion in self.completions)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    """What the policy takes: padded rows, and where the logits of completion tokens are.

    `attention_mask_B1LL` is additive (0 or -inf); None means plainly causal, which is what rows of one
    completion need (padding stands on the right and is never seen). `logit_index_T` points into the
    flattened (B*L) positions: where each target's logits come from. `loss_mask_T` is 1 for tokens that
    count.
    """

    input_ids_BL: Tensor
    positions_3BL: Tensor
    attention_mask_B1LL: Tensor | None
    pixel_values: Tensor
    image_grid_thw: Tensor
    logit_index_T: Tensor
    target_ids_T: Tensor
    loss_mask_T: Tensor

    def to(self, device: torch.device) -> Self:
        """The same batch on a device; itself where it is there already."""
        if self.input_ids_BL.device == device:
            return self
        tensors = {name: getattr(self, name) for name in self.__slots__}
        moved = {name: tensor.to(device) for name, tensor in tensors.items() if tensor is not None}
        return replace(self, **moved)

    def as_filler(self) -> Self:
        """The same batch with no token counting: keeps ranks in step, adds nothing to a gradient."""
        return replace(self, loss_mask_T=torch.zeros_like(self.loss_mask_T))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainBatch:
    """A microbatch of the GRPO update: tokens with the sampler's log-probabilities and the advantage
    of the completion each belongs to, float32."""

    tokens: TokenBatch
    rollout_logprobs_T: Tensor
    advantages_T: Tensor

    def to(self, device: torch.device) -> Self:
        """The same batch on a device."""
        return replace(
            self,
            tokens=self.tokens.to(device),
            rollout_logprobs_T=self.rollout_logprobs_T.to(device),
            advantages_T=self.advantages_T.to(device),
        )


def build_token_batch(
    rows: Sequence[TokenRow], positions_of: PromptPositions, pad_id: int, dtype: torch.dtype
) -> TokenBatch:
    """Lay rows out, padded on the right to the longest. `dtype` is the model's, for the mask."""
    laid_out = [_lay_out(row, positions_of(row.prompt_ids, row.grid)) for row in rows]
    length = max(len(row.input_ids) for row in laid_out)
    ids_BL = np.full((len(rows), length), pad_id, dtype=np.int64)
    owners_BL = np.full((len(rows), length), -1, dtype=np.int64)
    positions_3BL = np.zeros((3, len(rows), length), dtype=np.int64)
    for index, row in enumerate(laid_out):
        end = len(row.input_ids)
        ids_BL[index, :end], owners_BL[index, :end], positions_3BL[:, index, :end] = (
            row.input_ids,
            row.owners,
            row.positions,
        )
    is_plainly_causal = all(len(row.completions) == 1 for row in rows)
    targets = np.concatenate([np.fromiter(_flat(row.completions), dtype=np.int64) for row in rows])
    return TokenBatch(
        input_ids_BL=torch.from_numpy(ids_BL),
        positions_3BL=torch.from_numpy(positions_3BL),
        attention_mask_B1LL=None if is_plainly_causal else group_mask(torch.from_numpy(owners_BL), dtype),
        pixel_values=torch.from_numpy(np.concatenate([row.pixel_values for row in rows])),
        image_grid_thw=torch.tensor([row.grid for row in rows]),
        logit_index_T=torch.from_numpy(
            np.concatenate([row.logit_index + index * length for index, row in enumerate(laid_out)])
        ),
        target_ids_T=torch.from_numpy(targets),
        loss_mask_T=torch.ones(len(targets)),
    )


def group_mask(owners_BL: Tensor, dtype: torch.dtype) -> Tensor:
    """The additive mask (B, 1, L, L) of rows whose positions belong to `owners_BL`: 0 the prompt,
    1..G a completion, -1 padding. A position sees earlier ones of the prompt and of its own owner."""
    query_BL1, key_B1L = owners_BL[:, :, None], owners_BL[:, None, :]
    length = owners_BL.shape[1]
    is_causal_LL = torch.ones(length, length, dtype=torch.bool).tril()
    is_seen_BLL = ((key_B1L == 0) | (key_B1L == query_BL1)) & is_causal_LL
    mask_BLL = torch.zeros(is_seen_BLL.shape, dtype=dtype).masked_fill_(~is_seen_BLL, float("-inf"))
    return mask_BLL[:, None]


@dataclass(frozen=True, slots=True)
class _LaidOutRow:
    input_ids: np.ndarray
    owners: np.ndarray
    positions: np.ndarray
    logit_index: np.ndarray


def _lay_out(row: TokenRow, prompt_positions_3P: Tensor) -> _LaidOutRow:
    num_prompt = len(row.prompt_ids)
    prompt_positions = prompt_positions_3P.numpy()
    next_position = int(prompt_positions.max()) + 1
    ids, owners = [np.asarray(row.prompt_ids)], [np.zeros(num_prompt, dtype=np.int64)]
    positions, logit_index = [prompt_positions], []
    start = num_prompt
    for owner, completion in enumerate(row.completions, start=1):
        if not completion:
            continue
        num_inputs = len(completion) - 1
        steps = np.arange(num_inputs)
        ids.append(np.asarray(completion[:-1], dtype=np.int64))
        owners.append(np.full(num_inputs, owner))
        positions.append(np.broadcast_to(steps + next_position, (3, num_inputs)))
        logit_index += [np.array([num_prompt - 1]), steps + start]
        start += num_inputs
    return _LaidOutRow(
        np.concatenate(ids),
        np.concatenate(owners),
        np.concatenate(positions, axis=1),
        np.concatenate(logit_index) if logit_index else np.zeros(0, dtype=np.int64),
    )


def _flat(completions: Sequence[Sequence[int]]) -> list[int]:
    return [token for completion in completions for token in completion]
