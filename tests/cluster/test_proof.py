"""Digest and canary limits."""

import pytest

from alphadrive.errors import WeightSyncError
from alphadrive.types import WeightsFile, WeightVersion
from cluster.proof import CanaryLimit, canary_queries, check_digest

WEIGHTS = WeightsFile(path="w", version=WeightVersion(0, 3), sha256="aa", num_bytes=1)


def test_the_right_digest_of_the_right_version_passes():
    check_digest("engine-0", WEIGHTS, "aa", WeightVersion(0, 3))


def test_another_digest_or_version_is_refused():
    with pytest.raises(WeightSyncError, match="engine-0: received tensors with SHA-256 bb"):
        check_digest("engine-0", WEIGHTS, "bb", WeightVersion(0, 3))
    with pytest.raises(WeightSyncError, match=r"exported version 0\.3"):
        check_digest("engine-0", WEIGHTS, "aa", WeightVersion(0, 4))


@pytest.mark.parametrize(("start", "limit"), [(1e-6, 1e-4), (1e-4, 4e-4)])
def test_four_times_the_difference_at_the_start_is_allowed_and_no_less_than_a_floor(start, limit):
    canary = CanaryLimit("float32")
    canary.calibrate([start / 2, start])
    assert canary.limit == pytest.approx(limit)
    canary.check("engine-0", WeightVersion(0, 1), 0.9 * limit)
    with pytest.raises(WeightSyncError, match="does not compute with the weights"):
        canary.check("engine-0", WeightVersion(0, 1), 1.1 * limit)


def test_not_a_number_is_no_agreement():
    canary = CanaryLimit("float32")
    canary.calibrate([1e-6])
    with pytest.raises(WeightSyncError):
        canary.check("engine-0", WeightVersion(0, 1), float("nan"))
    with pytest.raises(WeightSyncError):
        CanaryLimit("bfloat16").calibrate([float("nan")])


def test_engine_and_learner_that_differ_from_the_start_are_refused():
    with pytest.raises(WeightSyncError, match="before any update"):
        CanaryLimit("float32").calibrate([0.3])


def test_canary_queries_are_spread_over_the_rows():
    assert canary_queries(lambda row: row, 100, 4) == [0, 25, 50, 75]
    assert canary_queries(lambda row: row, 1, 4) == [0]
