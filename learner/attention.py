"""Attention over packed groups: every completion sees its prompt and itself, at no cost for the rest.

    pack:   prompt P | A A | B B B | prompt Q | C C | ...          (one sequence, no padding)
    P:      causal over P                 A:  causal over P + A           B:  causal over P + B

Registered with transformers under `NAME`, so that any decoder that asks for its attention by name runs
on packs. The `PackLayout` travels in place of the attention mask. On CPU the groups are computed one
after another by PyTorch's fused attention; on CUDA one flex_attention kernel skips the empty blocks.

Legend: N positions of the pack, G completions of a group, C inputs of its longest one, K what a
completion sees (its prompt and C), H query heads, h key heads, D their size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface

NAME = "shared_prefix"


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSpan:
    """Where a group lies: `num_causal` positions from `start` on are one causal sequence (the prompt; with a
    single completion also that), then come completions of `lengths` inputs each, all at least 1.

    `index_GC` are the pack's positions of the completions, short ones padded with their last position;
    `rows_S` picks the real ones out of the flattened (G*C).
    """

    start: int
    num_causal: int
    lengths: tuple[int, ...]
    index_GC: Tensor
    rows_S: Tensor

    @property
    def stop(self) -> int:
        """The position after the group's last."""
        return self.start + self.num_causal + sum(self.lengths)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackLayout:
    """The groups of a pack in order; together they cover its positions 0 .. N-1."""

    spans: tuple[GroupSpan, ...]
    blocks: BlockMask | None = None
    """What flex_attention computes; None where the groups are computed one after another."""

    @classmethod
    def of(cls, groups: Sequence[tuple[int, Sequence[int]]]) -> Self:
        """Lay out groups of (causal length, completion inputs). Completions without an input take no place.

        >>> PackLayout.of([(3, (2, 3))]).spans[0].index_GC
        tensor([[3, 4, 4],
                [5, 6, 7]])
        """
        spans, start = [], 0
        for num_causal, inputs in groups:
            lengths = tuple(length for length in inputs if length)
            spans.append(_span(start, num_causal, lengths))
            start = spans[-1].stop
        return cls(spans=tuple(spans))

    @property
    def num_positions(self) -> int:
        """Length of the pack (N)."""
        return self.spans[-1].stop

    def to(self, device: torch.device) -> Self:
        """The same layout for a device; on CUDA as a block mask."""
        if device.type == "cuda":
            return replace(self, blocks=block_mask(self, device))
        return self


def _span(start: int, num_causal: int, lengths: tuple[int, ...]) -> GroupSpan:
    longest = max(lengths, default=0)
    lengths_G1 = torch.tensor(lengths, dtype=torch.long)[:, None]
    starts_G1 = start + num_causal + lengths_G1.cumsum(0) - lengths_G1
    steps_C = torch.arange(longest)
    return GroupSpan(
        start=start,
        num_causal=num_causal,
        lengths=lengths,
        index_GC=starts_G1 + torch.minimum(steps_C, lengths_G1 - 1),
        rows_S=(steps_C < lengths_G1).flatten().nonzero()[:, 0],
    )


def block_mask(layout: PackLayout, device: torch.device) -> BlockMask:
    """The layout for flex_attention: a position sees earlier ones of its group that are of its prompt or
    of its own completion."""
    parts = [(span.num_causal, *span.lengths) for span in layout.spans]
    group_of = torch.tensor(_repeated([sum(lengths) for lengths in parts]), device=device)
    part_of = torch.tensor(_repeated(list(chain(*parts))), device=device)
    is_prompt = torch.tensor(
        [part == 0 for lengths in parts for part, length in enumerate(lengths) for _ in range(length)],
        device=device,
    )

    def is_seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        is_known = is_prompt[key] | (part_of[key] == part_of[query])
        return is_known & (group_of[key] == group_of[query]) & (key <= query)

    length = layout.num_positions
    return create_block_mask(
        is_seen, None, None, length, length, device=str(device), _compile=device.type == "cuda"
    )


def _repeated(lengths: Sequence[int]) -> list[int]:
    """[2, 3] -> [0, 0, 1, 1, 1]."""
    return [number for number, length in enumerate(lengths) for _ in range(length)]


def shared_prefix_attention(
    module: torch.nn.Module,
    query_1HND: Tensor,
    key_1hND: Tensor,
    value_1hND: Tensor,
    attention_mask: PackLayout,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of one pack, (1, N, H, D), in the form transformers calls. `attention_mask` is the layout.

    Raises ValueError for anything but a layout, or dropout: both would be silently wrong.
    """
    if not isinstance(attention_mask, PackLayout) or dropout:
        raise ValueError(
            f"attention {NAME!r} runs on packs and without dropout; got {type(attention_mask).__name__} "
            f"for a PackLayout and dropout={dropout}"
        )
    if attention_mask.blocks is not None:
        attend = _compiled_flex_attention() if query_1HND.is_cuda else flex_attention
        output_1HND = attend(
            query_1HND, key_1hND, value_1hND, block_mask=attention_mask.blocks, scale=scaling, enable_gqa=True
        )
        return output_1HND.transpose(1, 2), None
    parts = [
        part
        for span in attention_mask.spans
        for part in _span_attention(query_1HND[0], key_1hND[0], value_1hND[0], span, scaling)
    ]
    return torch.cat(parts)[None], None


def _span_attention(
    query_HND: Tensor, key_hND: Tensor, value_hND: Tensor, span: GroupSpan, scaling: float | None
) -> list[Tensor]:
    """Outputs of a group's causal part and of its completions, (positions, H, D) each."""
    shared = slice(span.start, span.start + span.num_causal)
    output_1HPD = F.scaled_dot_product_attention(
        query_HND[None, :, shared],
        key_hND[None, :, shared],
        value_hND[None, :, shared],
        is_causal=True,
        scale=scaling,
        enable_gqa=True,
    )
    parts = [output_1HPD[0].transpose(0, 1)]
    if span.lengths:
        num_completions, longest = span.index_GC.shape
        output_GHCD = F.scaled_dot_product_attention(
            _completions(query_HND, span),
            _with_prompt(key_hND, span),
            _with_prompt(value_hND, span),
            attn_mask=_visible(longest, span.num_causal + longest),
            scale=scaling,
            enable_gqa=True,
        )
        output_RHD = output_GHCD.transpose(1, 2).flatten(0, 1)
        is_even = len(span.rows_S) == num_completions * longest
        parts.append(output_RHD if is_even else output_RHD.index_select(0, span.rows_S))
    return parts


def _completions(states_HND: Tensor, span: GroupSpan) -> Tensor:
    """States of a group's completions, padded, (G, H, C, D)."""
    num_completions, longest = span.index_GC.shape
    if len(span.rows_S) == num_completions * longest:
        states_HSD = states_HND[:, span.start + span.num_causal : span.stop]
    else:
        states_HSD = states_HND.index_select(1, span.index_GC.flatten())
    return states_HSD.unflatten(1, (num_completions, longest)).transpose(0, 1)


def _with_prompt(states_hND: Tensor, span: GroupSpan) -> Tensor:
    """What each completion attends to, (G, h, K, D): the prompt, then itself."""
    prompt_hPD = states_hND[:, span.start : span.start + span.num_causal]
    repeated_GhPD = prompt_hPD.expand(len(span.lengths), *prompt_hPD.shape)
    return torch.cat([repeated_GhPD, _completions(states_hND, span)], dim=2)


@lru_cache(maxsize=256)
def _visible(num_queries: int, num_keys: int) -> Tensor:
    """(C, K) bool: the last query sees every key, the one before all but the last, and so on."""
    return torch.ones(num_queries, num_keys, dtype=torch.bool).tril(num_keys - num_queries)


@lru_cache(maxsize=1)
def _compiled_flex_attention() -> Any:
    return torch.compile(flex_attention, dynamic=True)


AttentionInterface.register(NAME, shared_prefix_attention)
