"""How tensors are packed into buckets, and the list of them that learner and engines agree on."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alphadrive.errors import WeightSyncError
from alphadrive.types import WeightVersion
from alphadrive.weight_layout import ALIGNMENT, ITEM_BYTES, TensorMeta, WeightLayout

VERSION = WeightVersion(1, 7)
SHAPES = st.lists(st.integers(0, 9), max_size=3).map(tuple)
TENSORS = st.lists(
    st.builds(TensorMeta, st.text(min_size=1, max_size=8), st.sampled_from(sorted(ITEM_BYTES)), SHAPES),
    unique_by=lambda tensor: tensor.name,
    max_size=12,
).map(lambda tensors: tuple(sorted(tensors)))


@given(TENSORS, st.integers(1, 3000))
def test_buckets_hold_every_tensor_once_in_order_aligned_and_no_more_than_they_may(tensors, bucket_bytes):
    layout = WeightLayout(VERSION, tensors, bucket_bytes)
    assert tuple(slot.tensor for bucket in layout.buckets for slot in bucket) == tensors
    for bucket in layout.buckets:
        assert bucket[0].start == 0
        for before, after in pairwise(bucket):
            assert before.end <= after.start < before.end + ALIGNMENT
        assert all(slot.start % ALIGNMENT == 0 for slot in bucket)
        assert bucket[-1].end <= bucket_bytes or len(bucket) == 1
    for bucket, following in pairwise(layout.buckets):
        start = -(-bucket[-1].end // ALIGNMENT) * ALIGNMENT
        assert start + following[0].tensor.num_bytes > bucket_bytes


@given(TENSORS, st.integers(1, 3000))
def test_the_engines_read_the_layout_that_the_learner_wrote(tensors, bucket_bytes):
    layout = WeightLayout(VERSION, tensors, bucket_bytes)
    assert WeightLayout.from_json(layout.to_json()) == layout


def test_a_tensor_larger_than_a_bucket_has_one_of_its_own():
    sizes = {"a": 4, "b": 400, "c": 4, "d": 4}
    tensors = tuple(TensorMeta(name, "float32", (size,)) for name, size in sizes.items())
    layout = WeightLayout(VERSION, tensors, 64)
    names = [[slot.tensor.name for slot in bucket] for bucket in layout.buckets]
    assert names == [["a"], ["b"], ["c", "d"]]
    assert layout.num_bytes == 4 * 412


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "[0, 1, 64]",
        '[0, 1, 64, [["a", "float32"]]]',
        '[0, "x", 64, []]',
        "[0, 1, 0, []]",
        '{"a": 1}',
    ],
)
def test_what_is_no_layout_is_refused(text):
    with pytest.raises(WeightSyncError):
        WeightLayout.from_json(text)


def test_names_out_of_order_and_unknown_dtypes_are_refused():
    first, second = TensorMeta("a", "float32", ()), TensorMeta("b", "float32", ())
    for tensors in [(second, first), (first, first)]:
        with pytest.raises(WeightSyncError, match="out of order"):
            WeightLayout(VERSION, tensors, 64)
    with pytest.raises(WeightSyncError, match="complex64"):
        WeightLayout(VERSION, (TensorMeta("a", "complex64", ()),), 64)
