"""The maths of the update against numbers worked out by hand, and what must not change it."""

import math

import pytest
import torch

from learner.losses import MAX_LOG_RATIO, clipped_policy_loss, grpo_loss, k3_kl, log_ratio, sft_loss
from learner.schedule import warmup_then_constant, warmup_then_cosine

LOG2 = math.log(2.0)


def loss_of(policy, rollout, advantages, *, num_step_tokens=None, mask=None, ref=None, **options):
    policy = torch.tensor(policy, dtype=torch.float64, requires_grad=True)
    result = grpo_loss(
        policy_logprobs_T=policy,
        rollout_logprobs_T=torch.tensor(rollout, dtype=torch.float64),
        advantages_T=torch.tensor(advantages, dtype=torch.float64),
        entropy_T=torch.zeros(len(rollout)),
        loss_mask_T=torch.ones(len(rollout)) if mask is None else torch.tensor(mask),
        num_step_tokens=num_step_tokens or len(rollout),
        ref_logprobs_T=None if ref is None else torch.tensor(ref, dtype=torch.float64),
        **{"clip_low": 0.2, "clip_high": 0.28} | options,
    )
    result.loss.backward()
    return result, policy.grad


def test_clipping_has_its_own_bound_on_each_side() -> None:
    ratio_T = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1])
    advantages_T = torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0])
    loss_T, is_clipped_T = clipped_policy_loss(ratio_T, advantages_T, 0.2, 0.28)
    assert loss_T.tolist() == pytest.approx([-1.28, 1.5, -0.5, 0.8, -2.2])
    assert is_clipped_T.tolist() == [True, False, False, True, False]


def test_golden_step() -> None:
    # ratios 2, 1/2, 1 with advantages 1, -1, 3: clipped at 1.28, clipped at 0.8, on-policy
    result, gradient = loss_of([-1.0 + LOG2, -2.0 - LOG2, -1.0], [-1.0, -2.0, -1.0], [1.0, -1.0, 3.0])
    assert result.loss.item() == pytest.approx((-1.28 + 0.8 - 3.0) / 3)
    assert gradient.tolist() == pytest.approx([0.0, 0.0, -1.0])
    assert result.sums["pg_clipfrac"].item() == 2
    assert result.sums["ppo_kl"].item() == pytest.approx(0.0)
    assert result.maxima["rollout_probs_diff"].item() == pytest.approx(math.exp(-1.0))


def test_on_policy_gradient_is_minus_the_advantage_per_token() -> None:
    _, gradient = loss_of([-1.0, -2.0], [-1.0, -2.0], [0.5, -2.0])
    assert gradient.tolist() == pytest.approx([-0.25, 1.0])


def test_k3_golden_and_never_negative() -> None:
    kl_T = k3_kl(torch.tensor([-1.0, -1.0, -1.0]), torch.tensor([-1.0, -1.0 + LOG2, -1.0 - LOG2]))
    assert kl_T.tolist() == pytest.approx([0.0, 1.0 - LOG2, LOG2 - 0.5])


def test_kl_is_added_with_its_coefficient() -> None:
    result, _ = loss_of([-1.0], [-1.0], [0.0], kl_coef=0.1, ref=[-1.0 + LOG2])
    assert result.loss.item() == pytest.approx(0.1 * (1.0 - LOG2))
    assert result.sums["kl_loss"].item() == pytest.approx(1.0 - LOG2)


def test_k3_is_unbiased_for_samples_of_the_policy() -> None:
    policy, ref = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([0.5, 0.25, 0.25])
    estimate = (policy * k3_kl(policy.log(), ref.log())).sum()
    assert estimate.item() == pytest.approx((policy * (policy / ref).log()).sum().item(), rel=1e-5)


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_cutting_a_step_into_microbatches_changes_nothing(cut: int) -> None:
    generator = torch.Generator().manual_seed(0)
    policy, rollout, advantages = torch.randn(3, 5, generator=generator).tolist()
    whole, whole_gradient = loss_of(policy, rollout, advantages)
    parts = [
        loss_of(policy[part], rollout[part], advantages[part], num_step_tokens=5)
        for part in (slice(0, cut), slice(cut, 5))
    ]
    assert sum(part.loss.item() for part, _ in parts) == pytest.approx(whole.loss.item())
    assert torch.cat([gradient for _, gradient in parts]).tolist() == pytest.approx(whole_gradient.tolist())


def test_masked_tokens_count_for_nothing() -> None:
    result, gradient = loss_of([-1.0, -9.0], [-1.0, -2.0], [1.0, 5.0], mask=[1.0, 0.0], num_step_tokens=1)
    assert result.loss.item() == pytest.approx(-1.0)
    assert gradient.tolist() == pytest.approx([-1.0, 0.0])
    assert result.maxima["rollout_probs_diff"].item() == 0


def test_a_hopeless_ratio_stays_finite() -> None:
    assert log_ratio(torch.tensor([0.0]), torch.tensor([-1e6])).item() == MAX_LOG_RATIO
    result, _ = loss_of([0.0], [-1e6], [-1.0])
    assert math.isfinite(result.loss.item())


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
