"""The maths of single tokens and completions against numbers worked out by hand."""

import math

import pytest
import torch

from alphadrive.errors import ConfigError
from learner.importance import is_trusted, mismatch_ratio, truncated
from learner.losses import (
    MAX_LOG_RATIO,
    cispo_loss,
    clipped_policy_loss,
    dual_clipped_loss,
    gspo_ratio,
    kl_estimate,
    log_ratio,
    sequence_sums,
    sft_loss,
)
from learner.schedule import warmup_then_constant, warmup_then_cosine

LOG2 = math.log(2.0)


def test_clipping_has_its_own_bound_on_each_side() -> None:
    ratio_T = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1])
    advantages_T = torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0])
    loss_T, is_clipped_T = clipped_policy_loss(ratio_T, advantages_T, 0.2, 0.28)
    assert loss_T.tolist() == pytest.approx([-1.28, 1.5, -0.5, 0.8, -2.2])
    assert is_clipped_T.tolist() == [True, False, False, True, False]


def test_dual_clipping_bounds_the_loss_of_negative_advantages_alone() -> None:
    loss_T = torch.tensor([10.0, 2.0, 10.0, -10.0], requires_grad=True)
    bounded_T, is_bounded_T = dual_clipped_loss(loss_T, torch.tensor([-1.0, -1.0, -4.0, 1.0]), 3.0)
    assert bounded_T.tolist() == [3.0, 2.0, 10.0, -10.0]
    assert is_bounded_T.tolist() == [True, False, False, False]
    bounded_T.sum().backward()
    assert loss_T.grad is not None and loss_T.grad.tolist() == [0.0, 1.0, 1.0, 1.0]


def test_gspo_gives_every_token_the_geometric_mean_and_its_own_gradient() -> None:
    policy_T = torch.tensor([-1.0, -1.0, -3.0], requires_grad=True)
    log_ratio_T = torch.tensor([LOG2, 3 * LOG2, -LOG2])
    ratio_T = gspo_ratio(policy_T, log_ratio_T, torch.ones(3), torch.tensor([0, 0, 2]), 3)
    assert ratio_T.tolist() == pytest.approx([4.0, 4.0, 0.5])
    (ratio_T * torch.tensor([1.0, 10.0, 100.0])).sum().backward()
    assert policy_T.grad is not None and policy_T.grad.tolist() == pytest.approx([4.0, 40.0, 50.0])


def test_cispo_clips_the_weight_and_keeps_the_gradient() -> None:
    policy_T = torch.tensor([-2.0, -2.0], requires_grad=True)
    loss_T, is_clipped_T = cispo_loss(policy_T, torch.tensor([8.0, 0.1]), torch.tensor([0.5, -1.0]), 1.0, 4.0)
    assert loss_T.tolist() == pytest.approx([5.0, -0.2])
    assert is_clipped_T.tolist() == [True, False]
    loss_T.sum().backward()
    assert policy_T.grad is not None and policy_T.grad.tolist() == pytest.approx([-2.5, 0.1])


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        ("k1", [0.0, -LOG2, LOG2]),
        ("k2", [0.0, LOG2**2 / 2, LOG2**2 / 2]),
        ("k3", [0.0, 1.0 - LOG2, LOG2 - 0.5]),
    ],
)
def test_kl_golden(estimator: str, expected: list[float]) -> None:
    ref_T = torch.tensor([-1.0, -1.0 + LOG2, -1.0 - LOG2])
    assert kl_estimate(torch.tensor([-1.0] * 3), ref_T, estimator).tolist() == pytest.approx(expected)


POLICY, REF = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([0.5, 0.25, 0.25])


def kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return (p * (p / q).log()).sum()


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_are_unbiased_for_samples_of_the_policy(estimator: str) -> None:
    estimate = (POLICY * kl_estimate(POLICY.log(), REF.log(), estimator)).sum()
    assert estimate.item() == pytest.approx(kl(POLICY, REF).item(), rel=1e-5)


def test_expected_gradients_are_as_documented() -> None:
    """Of log-softmax policies: k1 none, k2 the KL's, k3 that of the other direction."""
    logits = POLICY.log().requires_grad_()

    def gradient(value: torch.Tensor) -> list[float]:
        return torch.autograd.grad(value, logits)[0].tolist()

    def of_estimate(estimator: str) -> list[float]:
        return gradient((POLICY * kl_estimate(logits.log_softmax(0), REF.log(), estimator)).sum())

    assert of_estimate("k1") == pytest.approx([0.0] * 3, abs=1e-6)
    assert of_estimate("k2") == pytest.approx(gradient(kl(logits.softmax(0), REF)), abs=1e-6)
    assert of_estimate("k3") == pytest.approx(gradient(kl(REF, logits.softmax(0))), abs=1e-6)


def test_an_unknown_estimator_or_level_is_an_error() -> None:
    one_T = torch.ones(1)
    with pytest.raises(ConfigError, match="kl_estimator='k4'"):
        kl_estimate(one_T, one_T, "k4")
    with pytest.raises(ConfigError, match="importance_level='word'"):
        mismatch_ratio(one_T, one_T, torch.zeros(1, dtype=torch.int64), 1, "word")


def test_sums_by_completion_keep_a_place_for_empty_ones() -> None:
    sums_S = sequence_sums(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 0, 2]), 4)
    assert sums_S.tolist() == [3.0, 0.0, 4.0, 0.0]


def test_the_mismatch_of_a_completion_is_the_product_over_its_tokens() -> None:
    log_ratio_T = torch.tensor([2.0, 3.0, 0.5, 7.0]).log()
    mask_T, sequence_T = torch.tensor([1.0, 1.0, 1.0, 0.0]), torch.tensor([0, 0, 1, 1])
    by_token_T = mismatch_ratio(log_ratio_T, mask_T, sequence_T, 2, "token")
    by_completion_T = mismatch_ratio(log_ratio_T, mask_T, sequence_T, 2, "sequence")
    assert by_token_T.tolist() == pytest.approx([2.0, 3.0, 0.5, 7.0])
    assert by_completion_T.tolist() == pytest.approx([6.0, 6.0, 0.5, 0.5])


def test_truncation_cuts_above_and_a_mask_on_both_sides() -> None:
    ratio_T = torch.tensor([0.4, 0.5, 1.0, 5.0, 5.1])
    assert truncated(ratio_T, 2.0).tolist() == pytest.approx([0.4, 0.5, 1.0, 2.0, 2.0])
    assert truncated(ratio_T, None) is ratio_T
    assert is_trusted(ratio_T, (0.5, 5.0)).tolist() == [False, True, True, True, False]
    assert is_trusted(ratio_T, None).all()


def test_a_hopeless_ratio_stays_finite() -> None:
    assert log_ratio(torch.tensor([0.0]), torch.tensor([-1e6])).item() == MAX_LOG_RATIO
    long_T = torch.full((100,), 19.0)
    zeros_T = torch.zeros(100, dtype=torch.int64)
    assert mismatch_ratio(long_T, torch.ones(100), zeros_T, 1, "sequence").isfinite().all()


def test_sft_loss_is_a_mean_over_the_tokens_of_the_step() -> None:
    logprobs_T = torch.tensor([-1.0, -2.0, -3.0])
    assert sft_loss(logprobs_T, torch.tensor([1.0, 1.0, 0.0]), 4).item() == pytest.approx(0.75)


def test_warmup_then_constant() -> None:
    assert [warmup_then_constant(step, 2.0, 4) for step in (1, 4, 5, 99)] == [0.5, 2.0, 2.0, 2.0]
    assert warmup_then_constant(1, 2.0, 0) == 2.0


def test_warmup_then_cosine() -> None:
    rates = [warmup_then_cosine(step, 1.0, 10, 0.2) for step in range(1, 13)]
    assert rates[:2] == [0.5, 1.0]
    assert rates[2:10] == sorted(rates[2:10], reverse=True) and 0 < rates[9] < 0.05
    assert rates[10:] == pytest.approx([0.0, 0.0])
