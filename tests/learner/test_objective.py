"""The whole loss of a step: by hand, against a second implementation in numpy, and against TRL's numbers.

`trl_goldens.json` is written by `make_trl_goldens.py`, which needs TRL.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alphadrive.config import GrpoConfig
from alphadrive.errors import ConfigError
from learner.objective import GrpoLoss, LossInputs, LossSettings, grpo_loss, loss_settings, step_normaliser

LOG2 = math.log(2.0)
LOSSES = ("grpo", "dr_grpo", "dapo", "gspo", "cispo")
GOLDENS = json.loads(Path(__file__).with_name("trl_goldens.json").read_text())


def step_loss(
    settings: LossSettings,
    lengths: Sequence[int],
    policy: Sequence[float],
    rollout: Sequence[float],
    advantages: Sequence[float],
    *,
    old: Sequence[float] | None = None,
    ref: Sequence[float] | None = None,
    mask: Sequence[float] | None = None,
    counts: tuple[int, int] | None = None,
) -> tuple[GrpoLoss, list[float]]:
    """Loss and gradient of completions of these lengths; an advantage each. `counts` are the tokens and
    completions of the whole step, where these are a part."""

    def tensor(values: Sequence[float] | None) -> torch.Tensor | None:
        return None if values is None else torch.tensor(values, dtype=torch.float64)

    policy_T = torch.tensor(policy, dtype=torch.float64, requires_grad=True)
    sequence_T = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    mask_T = torch.ones_like(policy_T) if mask is None else torch.tensor(mask, dtype=torch.float64)
    inputs = LossInputs(
        policy_logprobs_T=policy_T,
        rollout_logprobs_T=torch.tensor(rollout, dtype=torch.float64),
        advantages_T=torch.tensor(advantages, dtype=torch.float64)[sequence_T],
        entropy_T=torch.zeros(len(policy)),
        loss_mask_T=mask_T,
        sequence_T=sequence_T,
        num_sequences=len(lengths),
        old_logprobs_T=tensor(old),
        ref_logprobs_T=tensor(ref),
    )
    divisor = step_normaliser(settings, *(counts or (len(policy), len(lengths))))
    result = grpo_loss(settings, inputs, divisor)
    result.loss.backward()
    assert policy_T.grad is not None
    return result, policy_T.grad.tolist()


def test_golden_step() -> None:
    # ratios 2, 1/2, 1 with advantages 1, -1, 3: clipped at 1.28, clipped at 0.8, on-policy
    settings = LossSettings(clip_high=0.28)
    policy, rollout = [-1.0 + LOG2, -2.0 - LOG2, -1.0], [-1.0, -2.0, -1.0]
    result, gradient = step_loss(settings, [1, 1, 1], policy, rollout, [1.0, -1.0, 3.0])
    assert result.loss.item() == pytest.approx(-1.16)
    assert gradient == pytest.approx([0.0, 0.0, -1.0])
    assert result.sums["pg_clipfrac"].item() == 2
    assert result.sums["ppo_kl"].item() == pytest.approx(0.0)
    assert result.maxima["rollout_probs_diff"].item() == pytest.approx(math.exp(-1.0))


@pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "dapo", "gspo", "cispo"])
def test_on_policy_gradient_of_every_loss_is_minus_the_advantage_per_token(loss: str) -> None:
    settings = loss_settings(GrpoConfig(loss=loss, loss_aggregation="token"))
    _, gradient = step_loss(settings, [2, 1], [-1.0, -2.0, -3.0], [-1.0, -2.0, -3.0], [0.5, -2.0])
    assert gradient == pytest.approx([-0.5 / 3, -0.5 / 3, 2.0 / 3])


@pytest.mark.parametrize(
    ("aggregation", "loss", "gradient"),
    [
        ("token", (-3 * 1.0 + 2.0) / 4, [-0.25, -0.25, -0.25, 0.5]),
        ("sequence", (-1.0 + 2.0) / 2, [-1 / 6, -1 / 6, -1 / 6, 1.0]),
        ("constant", (-3 * 1.0 + 2.0) / 20, [-0.05, -0.05, -0.05, 0.1]),
    ],
)
def test_aggregations_golden(aggregation: str, loss: float, gradient: list[float]) -> None:
    """Three tokens of advantage 1 and one of -2; at most 10 new tokens."""
    settings = LossSettings(aggregation=aggregation, max_new_tokens=10)
    on_policy = [-1.0, -2.0, -1.0, -3.0]
    result, found = step_loss(settings, [3, 1], on_policy, on_policy, [1.0, -2.0])
    assert result.loss.item() == pytest.approx(loss)
    assert found == pytest.approx(gradient)


def test_kl_is_added_with_its_coefficient() -> None:
    settings = LossSettings(kl_coef=0.1)
    result, _ = step_loss(settings, [1], [-1.0], [-1.0], [0.0], ref=[-1.0 + LOG2])
    assert result.loss.item() == pytest.approx(0.1 * (1.0 - LOG2))
    assert result.sums["kl_loss"].item() == pytest.approx(1.0 - LOG2)


def test_dual_clipping_is_counted() -> None:
    settings = LossSettings(clip_dual=3.0)
    result, gradient = step_loss(settings, [1, 1], [-1.0, -1.0], [-1.0 - 3 * LOG2, -1.0], [-1.0, -1.0])
    assert result.loss.item() == pytest.approx((3.0 + 1.0) / 2)
    assert gradient == pytest.approx([0.0, 0.5])
    assert result.sums["pg_clipfrac_lower"].item() == 1


def test_truncated_weights_multiply_the_loss_of_the_start() -> None:
    """old/rollout is 4, truncated to 2; the policy is still the old one: ratio 1."""
    settings = LossSettings(old_policy="learner", importance_level="token", importance_cap=2.0)
    result, gradient = step_loss(settings, [1], [-1.0], [-1.0 - 2 * LOG2], [3.0])
    assert result.loss.item() == pytest.approx(-6.0)
    assert gradient == pytest.approx([-6.0])
    assert result.maxima["rollout_is"].item() == 2.0
    # Later the ratio moves, the weight stays.
    moved, _ = step_loss(settings, [1], [-1.0 + 0.1], [-1.0 - 2 * LOG2], [3.0], old=[-1.0])
    assert moved.loss.item() == pytest.approx(-6.0 * math.exp(0.1))


@pytest.mark.parametrize(
    ("level", "kept", "left_out"), [("token", [1.0, 0.0, 1.0], 1), ("sequence", [0.0, 0.0, 1.0], 2)]
)
def test_a_mask_drops_tokens_or_whole_completions_and_no_gradient_grows(
    level: str, kept: list[float], left_out: int
) -> None:
    settings = LossSettings(clip_high=9.0, importance_level=level, importance_mask=(0.5, 5.0))
    rollout = [-1.0, -1.0 - 3 * LOG2, -1.0]
    result, gradient = step_loss(settings, [2, 1], [-1.0] * 3, rollout, [1.0, 1.0])
    assert gradient == pytest.approx([-keep / 3 for keep in kept])
    assert result.sums["rollout_is_oob_ratio"].item() == left_out


def test_the_ratio_to_the_engine_is_not_weighted_again() -> None:
    settings = LossSettings(clip_high=9.0)
    masked = replace(settings, importance_level="token", importance_mask=(0.1, 9.0))
    plain, _ = step_loss(settings, [1], [-1.0], [-1.0 - LOG2], [1.0])
    kept, _ = step_loss(masked, [1], [-1.0], [-1.0 - LOG2], [1.0])
    assert plain.loss.item() == kept.loss.item() == pytest.approx(-2.0)


def test_masked_tokens_count_for_nothing() -> None:
    result, gradient = step_loss(
        LossSettings(), [1, 1], [-1.0, -9.0], [-1.0, -2.0], [1.0, 5.0], mask=[1.0, 0.0], counts=(1, 1)
    )
    assert result.loss.item() == pytest.approx(-1.0)
    assert gradient == pytest.approx([-1.0, 0.0])
    assert result.maxima["rollout_probs_diff"].item() == 0


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
def test_empty_completions_and_equal_rewards_are_no_numbers_of_their_own(loss: str, aggregation: str) -> None:
    """Completions of length 0 and 1, and advantages of 0: finite, and a gradient of 0."""
    settings = loss_settings(GrpoConfig(loss=loss, loss_aggregation=aggregation))
    result, gradient = step_loss(settings, [0, 1, 0, 2], [-1.0] * 3, [-1.5] * 3, [7.0, 0.0, -7.0, 0.0])
    assert result.loss.item() == 0.0 and gradient == [0.0, 0.0, 0.0]


def test_an_empty_completion_counts_as_a_completion() -> None:
    settings = LossSettings(aggregation="sequence")
    result, _ = step_loss(settings, [1, 0], [-1.0], [-1.0], [1.0, -1.0])
    assert result.loss.item() == pytest.approx(-0.5)


def test_hopeless_ratios_stay_finite() -> None:
    for loss in LOSSES:
        result, gradient = step_loss(LossSettings(loss=loss), [1], [0.0], [-1e6], [-1.0])
        assert math.isfinite(result.loss.item()) and math.isfinite(gradient[0])


def test_open_keys_become_the_losses_own() -> None:
    own = {loss: loss_settings(GrpoConfig(loss=loss)) for loss in LOSSES}
    assert {loss: (each.aggregation, each.clip_low, each.clip_high) for loss, each in own.items()} == {
        "grpo": ("token", 0.2, 0.2),
        "dr_grpo": ("constant", 0.2, 0.2),
        "dapo": ("token", 0.2, 0.28),
        "gspo": ("sequence", 3e-4, 4e-4),
        "cispo": ("token", 1.0, 4.0),
    }
    given = loss_settings(GrpoConfig(loss="gspo", loss_aggregation="constant", clip_low=0.1, clip_high=0.0))
    assert (given.aggregation, given.clip_low, given.clip_high) == ("constant", 0.1, 0.0)


def test_unknown_names_are_errors() -> None:
    with pytest.raises(ConfigError, match="loss='ppo'"):
        step_loss(LossSettings(loss="ppo"), [1], [-1.0], [-1.0], [1.0])
    with pytest.raises(ConfigError, match="loss_aggregation='mean'"):
        step_normaliser(LossSettings(aggregation="mean"), 1, 1)


def numpy_loss(
    settings: LossSettings,
    lengths: Sequence[int],
    policy: np.ndarray,
    rollout: np.ndarray,
    advantages: Sequence[float],
    old: np.ndarray | None,
    ref: np.ndarray,
) -> float:
    """The loss once more, in numpy, one completion at a time, from the papers."""
    total, ends = 0.0, np.cumsum(lengths)
    for end, length, advantage in zip(ends, lengths, advantages, strict=True):
        if not length:
            continue
        at = slice(end - length, end)
        p, mu, r = policy[at], rollout[at], ref[at]
        start = p if old is None else old[at]
        ratio = np.exp(p - (mu if settings.old_policy == "rollout" else start))
        low, high = 1 - settings.clip_low, 1 + settings.clip_high
        if settings.loss == "cispo":
            loss = -np.clip(ratio, low, high) * advantage * p
        else:
            if settings.loss == "gspo":
                ratio = np.full(length, ratio.prod() ** (1 / length))
            loss = -np.minimum(ratio * advantage, np.clip(ratio, low, high) * advantage)
            if settings.clip_dual and advantage < 0:
                loss = np.minimum(loss, -settings.clip_dual * advantage)
        if settings.importance_level:
            weight = np.exp(start - mu)
            if settings.importance_level == "sequence":
                weight = np.full(length, weight.prod())
            low, high = settings.importance_mask or (0.0, np.inf)
            is_kept = (low <= weight) & (weight <= high)
            if settings.old_policy == "rollout":
                weight = np.ones(length)
            loss = loss * np.minimum(weight, settings.importance_cap or np.inf) * is_kept
        delta = r - p
        kl = {"k1": -delta, "k2": delta**2 / 2, "k3": np.exp(delta) - delta - 1}[settings.kl_estimator]
        loss = loss + settings.kl_coef * kl
        total += loss.mean() if settings.aggregation == "sequence" else loss.sum()
    per = {
        "token": sum(lengths),
        "sequence": len(lengths),
        "constant": len(lengths) * settings.max_new_tokens,
    }
    return float(total / per[settings.aggregation])


SETTINGS = [
    *(
        LossSettings(loss=loss, aggregation=agg, kl_coef=0.3)
        for loss in LOSSES
        for agg in ("token", "sequence")
    ),
    LossSettings(aggregation="constant", clip_dual=1.5, kl_coef=0.3, kl_estimator="k1"),
    LossSettings(loss="gspo", clip_low=0.01, clip_high=0.02, kl_coef=0.3, kl_estimator="k2"),
    LossSettings(importance_level="token", importance_mask=(0.7, 1.4)),
    LossSettings(importance_level="sequence", importance_mask=(0.5, 2.0)),
    LossSettings(old_policy="learner", importance_level="token", importance_cap=1.1),
    LossSettings(old_policy="learner", importance_level="sequence", importance_cap=1.2),
    LossSettings(loss="gspo", old_policy="learner", importance_level="sequence", importance_mask=(0.5, 2.0)),
    LossSettings(
        loss="cispo",
        old_policy="learner",
        importance_level="token",
        importance_cap=1.1,
        importance_mask=(0.7, 1.4),
    ),
]
LENGTHS = [3, 1, 0, 5, 2, 4]


def random_step() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[float]]:
    """Policy, rollout, old and reference log-probabilities of 15 tokens, and six advantages."""
    random = np.random.default_rng(0)
    policy = random.uniform(-3, -0.1, sum(LENGTHS))
    rollout, old, ref = (policy + random.normal(0, 0.3, (3, len(policy)))).clip(max=-0.01)
    return policy, rollout, old, ref, random.normal(0, 1, len(LENGTHS)).tolist()


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda each: f"{each.loss}-{each.aggregation}")
@pytest.mark.parametrize("has_moved", [False, True])
def test_agrees_with_numpy(settings: LossSettings, has_moved: bool) -> None:
    policy, rollout, old, ref, advantages = random_step()
    moved = old if has_moved else None
    ours, _ = step_loss(
        settings, LENGTHS, policy, rollout, advantages, old=moved, ref=ref if settings.kl_coef else None
    )
    theirs = numpy_loss(settings, LENGTHS, policy, rollout, advantages, moved, ref)
    assert ours.loss.item() == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda each: f"{each.loss}-{each.aggregation}")
def test_cutting_a_step_into_microbatches_changes_nothing(settings: LossSettings) -> None:
    policy, rollout, old, ref, advantages = random_step()
    whole, whole_gradient = step_loss(settings, LENGTHS, policy, rollout, advantages, old=old, ref=ref)
    losses, gradient, ends = [], [], np.cumsum([0, *LENGTHS])
    for first, last in ((0, 1), (1, 4), (4, 6)):
        part = slice(ends[first], ends[last])
        result, found = step_loss(
            settings,
            LENGTHS[first:last],
            policy[part],
            rollout[part],
            advantages[first:last],
            old=old[part],
            ref=ref[part],
            counts=(sum(LENGTHS), len(LENGTHS)),
        )
        losses.append(result.loss.item())
        gradient += found
    assert sum(losses) == pytest.approx(whole.loss.item(), rel=1e-12)
    assert gradient == pytest.approx(whole_gradient, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("golden", GOLDENS["cases"], ids=lambda golden: golden["name"])
def test_agrees_with_trl(golden: dict[str, Any]) -> None:
    """Loss and gradient of TRL's GRPOTrainer on the tokens of `trl_goldens.json`."""
    tokens = GOLDENS["tokens"]
    options = dict(golden["settings"])
    mask = options.pop("importance_mask", None)
    settings = LossSettings(**options, importance_mask=mask and tuple(mask))
    result, gradient = step_loss(
        settings,
        tokens["lengths"],
        tokens["policy"],
        tokens["rollout"],
        tokens["advantages"],
        old=tokens["old"],
        ref=tokens["ref"],
    )
    assert result.loss.item() == pytest.approx(golden["loss"], rel=1e-9)
    assert gradient == pytest.approx(golden["gradient"], rel=1e-9, abs=1e-12)
    if "clip_ratio" in golden:
        assert result.sums["pg_clipfrac"].item() / sum(tokens["lengths"]) == pytest.approx(
            golden["clip_ratio"], rel=1e-5
        )
