"""Weights sent bucket by bucket are those of the file, under every ZeRO stage and with LoRA, and no rank ever
gathers more than a bucket."""

import pytest
from scenarios import Calls, Outcomes, scenario

pytestmark = pytest.mark.e2e

BUCKET_BYTES = 300_000
CALLS: Calls = (
    ("step", (0, 2)),
    ("stream_weights", BUCKET_BYTES),
    ("export_weights", "weights.st"),
    ("step", (1, 2)),
    ("stream_weights", BUCKET_BYTES),
    ("export_weights", "weights.st"),
)
LORA = {"learner__lora_rank": 4, "learner__freeze_vision": True}
STREAMED = [
    scenario(f"streamed_{ranks}_zero_{stage}", *CALLS, ranks=ranks, learner__zero_stage=stage)
    for ranks, stage in [(1, 0), (1, 1), (2, 2)]
] + [scenario("streamed_bfloat16", *CALLS, model__dtype="bfloat16")]
SPLIT = [
    scenario("streamed_2_zero_3", *CALLS, ranks=2, learner__zero_stage=3, splits_small=True),
    scenario("streamed_lora", *CALLS, ranks=2, learner__zero_stage=3, splits_small=True, **LORA),
]


@pytest.mark.parametrize("name", STREAMED + SPLIT)
def test_what_is_sent_in_buckets_is_what_is_written_to_the_file(name: str, outcomes: Outcomes) -> None:
    first, *others = outcomes[name]
    for place, version in ((1, [0, 1]), (4, [0, 2])):
        streamed, (sha256, of_file) = first[place], first[place + 1]
        assert streamed["sha256"] == sha256
        assert streamed["version"] == of_file == version
        assert streamed["num_buckets"] > 3 and streamed["num_tensors"] > 50
        for other in others:
            assert other[place]["num_tensors"] == 0
    assert first[1]["sha256"] != first[4]["sha256"]


@pytest.mark.parametrize("name", SPLIT)
def test_a_split_model_is_gathered_one_bucket_at_a_time(name: str, outcomes: Outcomes) -> None:
    for rank in outcomes[name]:
        for streamed in (rank[1], rank[4]):
            assert 0 < streamed["grown"] <= streamed["largest"] < streamed["num_bytes"] / 2
            assert streamed["after"] == 0
