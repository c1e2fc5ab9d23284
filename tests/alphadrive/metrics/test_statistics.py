"""Bootstrap against numbers that can be checked."""

import math

import numpy as np
import pytest

from alphadrive.metrics.statistics import bootstrap_interval, paired_difference


def test_bootstrap_interval_of_a_share_is_close_to_the_normal_one():
    values = [1.0] * 700 + [0.0] * 300
    low, high = bootstrap_interval(values)
    half = 1.96 * math.sqrt(0.7 * 0.3 / 1000)
    assert (low, high) == pytest.approx((0.7 - half, 0.7 + half), abs=2e-3)
    assert bootstrap_interval(values) == (low, high)


def test_bootstrap_draws_from_its_seed():
    values = np.random.default_rng(0).normal(size=40).tolist()
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)


def test_bootstrap_agrees_with_drawing_rows_one_by_one():
    values = np.random.default_rng(3).normal(size=50)
    rows = np.random.default_rng(4).integers(0, 50, size=(20_000, 50))
    expected = np.quantile(values[rows].mean(axis=1), [0.025, 0.975])
    assert bootstrap_interval(values.tolist()) == pytest.approx(expected.tolist(), abs=0.01)


def test_bootstrap_of_equal_values_has_no_width():
    assert bootstrap_interval([0.25] * 9) == (0.25, 0.25)
    with pytest.raises(ValueError, match="no values"):
        bootstrap_interval([])


def test_paired_difference_is_narrower_than_the_unpaired_one():
    before = [1.0] * 500 + [0.0] * 500
    after = [1.0] * 600 + [0.0] * 400
    gain, (low, high) = paired_difference(before, after)
    assert gain == pytest.approx(0.1)
    half = 1.96 * math.sqrt(0.1 * 0.9 / 1000)  # 100 rows of 1000 differ, all by +1
    assert (low, high) == pytest.approx((0.1 - half, 0.1 + half), abs=2e-3)
    with pytest.raises(ValueError, match="longer"):
        paired_difference([1.0], [1.0, 0.0])
