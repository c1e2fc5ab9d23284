"""In which order rows are drawn: by count, by seed, and by turns."""

from collections import Counter
from itertools import pairwise

import pytest

from alphadrive.data.parquet import write_records
from alphadrive.data.records import DrivingRecord
from alphadrive.errors import ConfigError
from alphadrive.world.dataset import synthesize
from cluster.row_order import balanced_order, row_order, uniform_order
from cluster.sft import batch_rows

PLANS = ["KEEP"] * 70 + ["STOP"] * 20 + ["TURN"] * 9 + ["CHANGE"]


def test_every_plan_is_drawn_equally_often():
    order = balanced_order(PLANS, seed=0)
    drawn = Counter(PLANS[row] for epoch in range(4) for row in order.epoch_rows(epoch))
    assert drawn == {"KEEP": 100, "STOP": 100, "TURN": 100, "CHANGE": 100}


def test_counts_differ_by_one_at_most_where_the_rows_do_not_divide():
    plans = [*PLANS[:-1], "A", "B", "C"]
    order = balanced_order(plans, seed=0)
    for num_epochs in (1, 2, 5):
        drawn = Counter(plans[row] for epoch in range(num_epochs) for row in order.epoch_rows(epoch))
        assert max(drawn.values()) - min(drawn.values()) <= 1
        assert drawn.total() == num_epochs * len(plans)


def test_the_rows_of_a_plan_take_turns_over_the_epochs():
    order = balanced_order(PLANS, seed=3)
    for num_epochs in (1, 3, 7):
        drawn = Counter(row for epoch in range(num_epochs) for row in order.epoch_rows(epoch))
        for plan in set(PLANS):
            times = [drawn[row] for row, other in enumerate(PLANS) if other == plan]
            assert max(times) - min(times) <= 1, plan


def test_the_order_follows_from_the_seed_alone():
    first = [balanced_order(PLANS, seed=1).epoch_rows(epoch) for epoch in range(3)]
    backwards = balanced_order(PLANS, seed=1)
    assert first[::-1] == [backwards.epoch_rows(epoch) for epoch in (2, 1, 0)]
    assert first[0] != first[1] and first[0] != balanced_order(PLANS, seed=2).epoch_rows(0)


def test_plans_come_mixed_and_not_in_turn():
    rows = balanced_order(PLANS, seed=0).epoch_rows(0)
    assert 10 < sum(PLANS[a] == PLANS[b] for a, b in pairwise(rows)) < 45


def test_sft_batches_follow_the_order():
    order = balanced_order(PLANS, seed=0)
    rows = [row for step in range(1, 26) for row in batch_rows(order, len(PLANS), 16, step)]
    assert Counter(PLANS[row] for row in rows) == {"KEEP": 100, "STOP": 100, "TURN": 100, "CHANGE": 100}


def test_the_plans_of_a_dataset_are_those_recorded_in_the_rows_used(tmp_path):
    records: list[DrivingRecord] = list(synthesize(24, 0, "train", 1))
    write_records(records, tmp_path, rows_per_shard=7)
    rows = row_order("balanced", tmp_path, 20, seed=0).epoch_rows(0)
    drawn = Counter(records[row].plans[0] for row in rows)
    assert len(rows) == 20 and max(rows) < 20
    assert max(drawn.values()) - min(drawn.values()) <= 1
    assert set(drawn) == {record.plans[0] for record in records[:20]}
    assert row_order("uniform", tmp_path, 20, seed=0).epoch_rows(0) == uniform_order(20, 0).epoch_rows(0)


def test_another_sampling_is_refused():
    from alphadrive.config import load_config

    with pytest.raises(ConfigError, match=r"data\.sampling=fair: expected one of uniform, balanced"):
        load_config("debug", ["data.sampling=fair"])
