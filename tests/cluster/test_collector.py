"""The garbage collector is as it was after a run, however that ends."""

import gc

import pytest

from cluster.collector import THRESHOLDS, rare_collections


def test_collections_are_rare_for_the_length_of_a_block_only():
    before = gc.get_threshold()
    with pytest.raises(KeyError), rare_collections():
        assert gc.get_threshold() == THRESHOLDS
        assert gc.get_freeze_count() > 0
        raise KeyError
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0
