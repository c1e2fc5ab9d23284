"""K samples a query: what they hold, and one plan chosen out of them."""

import itertools
import math

import pytest

from alphadrive.actions import Plan
from alphadrive.errors import DataError
from alphadrive.metrics.choice import expected_cost, majority_vote, risk_averse
from alphadrive.metrics.judging import Judgement
from alphadrive.metrics.variety import pass_at_k, variety_metrics

KEEP, STOP, SLOW = Plan("KEEP", "STRAIGHT"), Plan("STOP", "STRAIGHT"), Plan("DECELERATE", "STRAIGHT")


def judged(plans, *acceptable):
    return [Judgement(plan=plan, acceptable=acceptable) for plan in plans]


def test_variety_of_samples():
    variety = variety_metrics(
        [
            judged([KEEP, SLOW, KEEP, None], KEEP, SLOW),
            judged([KEEP, KEEP, KEEP, Plan("KEEP", "LEFT_TURN")], STOP),
        ]
    )
    assert (variety.num_rows, variety.num_samples, variety.invalid_rate) == (2, 4, 1 / 8)
    assert variety.pass_at == {1: 3 / 8, 2: 0.5, 4: 0.5}
    assert (variety.distinct_plans, variety.distinct_share, variety.distinct_acceptable) == (2.0, 0.5, 1.0)
    first = 2 / 3 * math.log2(3 / 2) + 1 / 3 * math.log2(3)
    second = 3 / 4 * math.log2(4 / 3) + 1 / 4 * 2
    assert variety.entropy_bits == pytest.approx((first + second) / 2)
    with pytest.raises(DataError, match="no answers"):
        variety_metrics([])


def test_pass_at_k_is_the_share_of_all_subsets_that_hold_a_right_one():
    for num_samples, num_right, k in itertools.product(range(1, 7), range(7), range(1, 7)):
        if num_right <= num_samples and k <= num_samples:
            samples = [index < num_right for index in range(num_samples)]
            subsets = list(itertools.combinations(samples, k))
            assert pass_at_k(num_samples, num_right, k) == pytest.approx(
                sum(map(any, subsets)) / len(subsets)
            )


def test_number_of_samples_itself_is_always_among_the_k():
    assert list(variety_metrics([judged([KEEP] * 6, KEEP)]).pass_at) == [1, 2, 4, 6]


def test_majority_vote_counts_valid_plans_only_and_the_first_of_equals_wins():
    assert majority_vote([None, None, None, STOP, KEEP, KEEP]) == KEEP
    assert majority_vote([STOP, KEEP, KEEP, STOP]) == STOP
    assert majority_vote([None, None]) is None


def test_risk_averse_brakes_on_a_minority_that_sees_a_reason():
    plans = [KEEP, KEEP, KEEP, STOP, STOP]
    assert majority_vote(plans) == KEEP
    assert expected_cost(KEEP, plans) == pytest.approx(2 * 0.9 / 5)
    assert expected_cost(STOP, plans) == pytest.approx(3 * 0.3 / 5)
    assert risk_averse(plans) == STOP
    assert risk_averse([KEEP] * 9 + [STOP]) == KEEP
    assert risk_averse([None]) is None


def test_risk_averse_takes_no_plan_that_was_not_drawn():
    left, right = Plan("KEEP", "LEFT_CHANGE"), Plan("KEEP", "RIGHT_CHANGE")
    assert expected_cost(KEEP, [left, right]) < expected_cost(left, [left, right])
    assert risk_averse([left, right]) == left
    assert risk_averse([right, left]) == right
