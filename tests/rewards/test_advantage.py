"""Group-relative advantages against numbers worked out by hand and against numpy."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alphadrive.errors import RewardError
from rewards.advantage import group_advantages

ESTIMATORS = ("grpo", "dr_grpo")


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [("grpo", (-1.224245, 0.0, 0.0, 1.224245)), ("dr_grpo", (-0.3, 0.0, 0.0, 0.3))],
)
def test_golden(estimator, expected):
    assert group_advantages([0.2, 0.5, 0.5, 0.8], estimator) == pytest.approx(expected, abs=5e-7)


def test_one_right_of_four():
    # mean 0.25, sample std 0.5: (1 - 0.25) / 0.5 = 1.5 and -0.25 / 0.5 = -0.5, less the 1e-4.
    expected = (0.75 / 0.5001, -0.25 / 0.5001, -0.25 / 0.5001, -0.25 / 0.5001)
    assert group_advantages([1.0, 0.0, 0.0, 0.0]) == pytest.approx(expected, rel=1e-12)


def test_one_two_three():
    assert group_advantages([1.0, 2.0, 3.0]) == pytest.approx((-1 / 1.0001, 0.0, 1 / 1.0001))
    assert group_advantages([1.0, 2.0, 3.0], "dr_grpo") == (-1.0, 0.0, 1.0)


@pytest.mark.parametrize("gap", [0.5, 1.0, 100.0])
def test_group_of_two_does_not_see_the_gap(gap):
    assert group_advantages([0.0, gap]) == pytest.approx((-0.70711, 0.70711), abs=3e-4)


@pytest.mark.parametrize("gap", [0.5, 1.0, 100.0])
def test_without_the_standard_deviation_the_gap_counts(gap):
    assert group_advantages([0.0, gap], "dr_grpo") == (-gap / 2, gap / 2)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("totals", [[0.1] * 7, [2.36] * 3, [0.0], [1 / 3] * 6])
def test_equal_rewards_give_exact_zeros(totals, estimator):
    assert group_advantages(totals, estimator) == (0.0,) * len(totals)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_reward_that_is_not_finite_is_an_error(bad, estimator):
    with pytest.raises(RewardError, match="finite"):
        group_advantages([0.0, bad], estimator)


def test_empty_group_is_an_error():
    with pytest.raises(RewardError, match="empty group"):
        group_advantages([])


def test_an_unknown_estimator_is_an_error():
    with pytest.raises(RewardError, match="'gae': expected grpo or dr_grpo"):
        group_advantages([0.0, 1.0], "gae")


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=16), st.randoms())
def test_order_sum_and_bound(totals, rng):
    advantages = group_advantages(totals)
    assert sum(advantages) == pytest.approx(0, abs=1e-6)
    size = len(totals)
    assert max(map(abs, advantages)) <= (size - 1) / math.sqrt(size) + 1e-9
    pairs = list(zip(totals, advantages, strict=True))
    rng.shuffle(pairs)
    assert group_advantages([total for total, _ in pairs]) == tuple(value for _, value in pairs)


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=16))
def test_both_agree_with_numpy(totals):
    rewards = np.array(totals)
    centred = rewards - rewards.mean()
    assert group_advantages(totals, "dr_grpo") == pytest.approx(centred, abs=1e-9)
    assert group_advantages(totals) == pytest.approx(centred / (rewards.std(ddof=1) + 1e-4), abs=1e-6)
