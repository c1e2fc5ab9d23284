"""Log-probability and entropy from logits, against autograd and by hand."""

import math

import pytest
import torch
from torch import Tensor

from learner.token_logprobs import token_logprobs

BANNED = (1, 4)


def by_autograd(logits_TV: Tensor, targets_T: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    masked_TV = (logits_TV / temperature).index_fill(1, torch.tensor(BANNED), float("-inf"))
    logprobs_TV = torch.log_softmax(masked_TV, -1)
    entropy_T = torch.distributions.Categorical(logits=masked_TV[:, [0, 2, 3, 5]]).entropy()
    return logprobs_TV.gather(1, targets_T[:, None])[:, 0], entropy_T


def test_by_hand() -> None:
    logits = torch.log(torch.tensor([[0.1, 9.0, 0.3, 0.6]]))
    logprobs_T, entropy_T = token_logprobs(logits, torch.tensor([2]), (1,), 1.0)
    assert logprobs_T.item() == pytest.approx(math.log(0.3), rel=1e-5)
    assert entropy_T.item() == pytest.approx(
        -(0.1 * math.log(0.1) + 0.3 * math.log(0.3) + 0.6 * math.log(0.6)), rel=1e-5
    )
    halved, _ = token_logprobs(logits, torch.tensor([2]), (1,), 0.5)
    assert halved.item() == pytest.approx(math.log(0.09 / (0.01 + 0.09 + 0.36)), rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_values_and_gradient_equal_autograd(temperature: float) -> None:
    torch.manual_seed(0)
    targets_T, weights_T = torch.tensor([0, 2, 5, 3, 2]), torch.randn(5)
    ours, theirs = (torch.randn(5, 6).mul_(3).requires_grad_() for _ in range(2))
    theirs.data.copy_(ours.data)
    logprobs_T, entropy_T = token_logprobs(ours, targets_T, BANNED, temperature)
    expected_T, expected_entropy_T = by_autograd(theirs, targets_T, temperature)
    torch.testing.assert_close(logprobs_T, expected_T)
    torch.testing.assert_close(entropy_T, expected_entropy_T)
    assert not entropy_T.requires_grad
    (logprobs_T * weights_T).sum().backward()
    (expected_T * weights_T).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert (ours.grad[:, list(BANNED)] == 0).all()


def test_bfloat16_logits_are_computed_in_float32() -> None:
    logits = torch.randn(3, 6, generator=torch.Generator().manual_seed(1)).bfloat16().requires_grad_()
    targets_T = torch.tensor([0, 2, 5])
    logprobs_T, _ = token_logprobs(logits, targets_T, BANNED, 1.0)
    expected_T, _ = by_autograd(logits.detach().float(), targets_T, 1.0)
    assert logprobs_T.dtype == torch.float32
    torch.testing.assert_close(logprobs_T, expected_T)
    logprobs_T.sum().backward()
    assert logits.grad.dtype == torch.bfloat16


def test_no_tokens() -> None:
    logprobs_T, entropy_T = token_logprobs(torch.zeros(0, 6), torch.zeros(0, dtype=torch.long), BANNED, 1.0)
    assert logprobs_T.shape == entropy_T.shape == (0,)
