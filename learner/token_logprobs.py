"""Log-probability and entropy of tokens from logits, in one pass, with a backward pass of its own.

Autograd would keep several (tokens, vocabulary) tensors; this keeps the logits alone, in the model's
dtype. On CUDA both directions are compiled into fused kernels.

Legend: T tokens, V vocabulary.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


def token_logprobs(
    logits_TV: Tensor, target_ids_T: Tensor, banned_ids: Sequence[int], temperature: float
) -> tuple[Tensor, Tensor]:
    """log p(target) and the entropy of p, float32 (T,) each, with p = softmax(logits / temperature) over the
    tokens that are not banned. A banned target has -inf. The entropy has no gradient.

    >>> token_logprobs(torch.zeros(1, 4), torch.tensor([1]), (0, 3), 1.0)
    (tensor([-0.6931]), tensor([0.6931]))
    """
    is_banned_V = torch.zeros(logits_TV.shape[-1], dtype=torch.bool, device=logits_TV.device)
    is_banned_V[list(banned_ids)] = True
    logprobs_T, entropy_T = _TokenLogprobs.apply(logits_TV, target_ids_T, is_banned_V, temperature)
    return logprobs_T, entropy_T


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, logits_TV: Tensor, target_ids_T: Tensor, is_banned_V: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        statistics = _compiled(_statistics) if logits_TV.is_cuda else _statistics
        logprobs_T, entropy_T, log_sum_T = statistics(logits_TV, target_ids_T, is_banned_V, temperature)
        ctx.save_for_backward(logits_TV, target_ids_T, is_banned_V, log_sum_T)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy_T)
        return logprobs_T, entropy_T

    @staticmethod
    def backward(ctx: Any, grad_T: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        logits_TV, target_ids_T, is_banned_V, log_sum_T = ctx.saved_tensors
        gradient = _compiled(_gradient) if logits_TV.is_cuda else _gradient
        grad_TV = gradient(logits_TV, target_ids_T, is_banned_V, log_sum_T, grad_T, ctx.temperature)
        return grad_TV, None, None, None


def _scaled(logits_TV: Tensor, is_banned_V: Tensor, temperature: float) -> Tensor:
    return (logits_TV.float() / temperature).masked_fill_(is_banned_V, float("-inf"))


def _statistics(
    logits_TV: Tensor, target_ids_T: Tensor, is_banned_V: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    scaled_TV = _scaled(logits_TV, is_banned_V, temperature)
    log_sum_T = scaled_TV.logsumexp(-1)
    logprobs_T = scaled_TV.gather(1, target_ids_T[:, None])[:, 0] - log_sum_T
    probs_TV = (scaled_TV - log_sum_T[:, None]).exp_()
    # 0 * -inf is no number: a banned token adds nothing.
    expected_T = (probs_TV * scaled_TV.masked_fill_(is_banned_V, 0.0)).sum(-1)
    return logprobs_T, log_sum_T - expected_T, log_sum_T


def _gradient(
    logits_TV: Tensor,
    target_ids_T: Tensor,
    is_banned_V: Tensor,
    log_sum_T: Tensor,
    grad_T: Tensor,
    temperature: float,
) -> Tensor:
    """d log p(target) / d logit = (1 at the target - p) / temperature; 0 at banned tokens."""
    weight_T1 = (grad_T / temperature)[:, None]
    grad_TV = _scaled(logits_TV, is_banned_V, temperature).sub_(log_sum_T[:, None]).exp_().mul_(-weight_T1)
    grad_TV.scatter_add_(1, target_ids_T[:, None], weight_T1)
    return grad_TV.masked_fill_(is_banned_V, 0.0).to(logits_TV.dtype)


@lru_cache(maxsize=2)
def _compiled(function: Callable[..., Any]) -> Any:
    return torch.compile(function, dynamic=True)
