"""Groups to tensors: a microbatch is one pack of whole groups, each a prompt once and all its completions.

    pack:      prompt p0 p1 p2 | A0 A1 | B0 B1 B2 | prompt q0 q1 | C0 ...     (the last token of a completion
    position:         0  1  2  |  3  4 |  3  4  5 |         0  1 |  2 ...      is never an input: nothing
    logits:    of A0 and of B0 from p2, of A1 from A0, ...                     follows it)

The prompt and the image are computed once for all G completions; every completion gets exactly the
positions and the context it would have alone. Nothing is padded. Pure tensors: no model, no dataset.

Legend: N positions of the pack, T completion tokens of the pack (group by group, completion by completion).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Self

import numpy as np
import torch
from torch import Tensor

from learner.attention import PackLayout

Grid = tuple[int, int, int]
PromptPositions = Callable[[Sequence[int], Grid], Tensor]
"""M-RoPE positions (3, P) of a prompt alone, from its tokens and its image grid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRow:
    """One prompt, its image and its completions, before packing.

    `prompt_ids` has one placeholder for every vision token; `grid` is the image's (time, height, width) in
    patches. `pixel_values` is (patches, dim), float32 as the image processor makes them or 8-bit (see
    `learner.patches`); None where `features_VD`, what a frozen vision tower makes of the image, is known.
    Images with the same `image_key` are the same.
    """

    prompt_ids: Sequence[int]
    completions: Sequence[Sequence[int]]
    pixel_values: np.ndarray | None
    grid: Grid
    image_key: int | None = None
    features_VD: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        """Prompt and completion tokens together: the length of the row, up to a few."""
        return len(self.prompt_ids) + self.num_completion_tokens

    @property
    def num_completion_tokens(self) -> int:
        """Tokens whose log-probability the policy gives."""
        return sum(len(completion) for completion in self.completions)


_STAY = ("num_sequences", "image_keys", "image_features")
"""Fields of a pack that are no single tensor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    """What the policy takes: a pack, its images, and where the logits of completion tokens are.

    `logit_index_T` are positions of the pack: where each target's logits come from. `loss_mask_T` is 1 for
    tokens that count. `sequence_T` numbers the completion each token belongs to, 0 to `num_sequences` - 1;
    an empty completion keeps its number. `image_keys` and `image_features` have an entry an image;
    `pixel_values` are the patches of those whose features are None, None where there are none.
    """

    input_ids_N: Tensor
    positions_3N: Tensor
    layout: PackLayout
    pixel_values: Tensor | None
    image_grid_thw: Tensor
    image_keys: tuple[int | None, ...]
    image_features: tuple[Tensor | None, ...]
    logit_index_T: Tensor
    target_ids_T: Tensor
    loss_mask_T: Tensor
    sequence_T: Tensor
    num_sequences: int

    def to(self, device: torch.device) -> Self:
        """The same batch on a device; itself where it is there already."""
        if self.input_ids_N.device == device:
            return self
        values = {name: getattr(self, name) for name in self.__slots__ if name not in _STAY}
        moved = {name: value.to(device) for name, value in values.items() if value is not None}
        features = tuple(given if given is None else given.to(device) for given in self.image_features)
        return replace(self, **moved, image_features=features)

    def as_filler(self) -> Self:
        """The same batch with no token counting: keeps ranks in step, adds nothing to a gradient."""
        return replace(self, loss_mask_T=torch.zeros_like(self.loss_mask_T))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainBatch:
    """A microbatch of the GRPO update: tokens with the sampler's log-probabilities and the advantage
    of the completion each belongs to, float32. `old_logprobs_T` are the learner's own at the step's start,
    where the policy has moved since."""

    tokens: TokenBatch
    rollout_logprobs_T: Tensor
    advantages_T: Tensor
    old_logprobs_T: Tensor | None = None

    def to(self, device: torch.device) -> Self:
        """The same batch on a device."""
        return replace(
            self,
            tokens=self.tokens.to(device),
            rollout_logprobs_T=self.rollout_logprobs_T.to(device),
            advantages_T=self.advantages_T.to(device),
            old_logprobs_T=None if self.old_logprobs_T is None else self.old_logprobs_T.to(device),
        )


def build_token_batch(rows: Sequence[TokenRow], positions_of: PromptPositions) -> TokenBatch:
    """Pack rows one after another. Raises ValueError without a row."""
    if not rows:
        raise ValueError("a pack needs at least one row")
    laid_out = [_lay_out(row, positions_of(row.prompt_ids, row.grid)) for row in rows]
    starts = np.cumsum([0, *(len(row.input_ids) for row in laid_out)])
    completions = [completion for row in rows for completion in row.completions]
    lengths = [len(completion) for completion in completions]
    targets = np.fromiter(chain(*completions), dtype=np.int64, count=sum(lengths))
    pixels = [row.pixel_values for row in rows if row.pixel_values is not None and row.features_VD is None]
    return TokenBatch(
        input_ids_N=torch.from_numpy(np.concatenate([row.input_ids for row in laid_out])),
        positions_3N=torch.from_numpy(np.concatenate([row.positions for row in laid_out], axis=1)),
        layout=PackLayout.of([_spans(row) for row in rows]),
        pixel_values=torch.from_numpy(np.concatenate(pixels)) if pixels else None,
        image_grid_thw=torch.tensor([row.grid for row in rows]),
        image_keys=tuple(row.image_key for row in rows),
        image_features=tuple(row.features_VD for row in rows),
        logit_index_T=torch.from_numpy(
            np.concatenate([row.logit_index + start for row, start in zip(laid_out, starts, strict=False)])
        ),
        target_ids_T=torch.from_numpy(targets),
        loss_mask_T=torch.ones(len(targets)),
        sequence_T=torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)),
        num_sequences=len(lengths),
    )


def _spans(row: TokenRow) -> tuple[int, list[int]]:
    """Causal positions and completion inputs; a single completion simply goes on after its prompt."""
    inputs = [max(len(completion) - 1, 0) for completion in row.completions]
    if len(inputs) == 1:
        return len(row.prompt_ids) + inputs[0], []
    return len(row.prompt_ids), inputs


@dataclass(frozen=True, slots=True)
class _LaidOutRow:
    input_ids: np.ndarray
    positions: np.ndarray
    logit_index: np.ndarray


def _lay_out(row: TokenRow, prompt_positions_3P: Tensor) -> _LaidOutRow:
    num_prompt = len(row.prompt_ids)
    prompt_positions = prompt_positions_3P.numpy()
    next_position = int(prompt_positions.max()) + 1
    ids, positions, logit_index = [np.asarray(row.prompt_ids)], [prompt_positions], []
    start = num_prompt
    for completion in row.completions:
        if not completion:
            continue
        num_inputs = len(completion) - 1
        steps = np.arange(num_inputs)
        ids.append(np.asarray(completion[:-1], dtype=np.int64))
        positions.append(np.broadcast_to(steps + next_position, (3, num_inputs)))
        logit_index += [np.array([num_prompt - 1]), steps + start]
        start += num_inputs
    return _LaidOutRow(
        np.concatenate(ids),
        np.concatenate(positions, axis=1),
        np.concatenate(logit_index) if logit_index else np.zeros(0, dtype=np.int64),
    )
