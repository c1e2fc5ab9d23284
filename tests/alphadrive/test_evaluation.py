"""Asking a planner every row: order, bounds, failures, and the image controls."""

import asyncio

import pytest

from alphadrive.data.parquet import DrivingDataset, write_records
from alphadrive.data.records import DrivingRecord, ImageRecord
from alphadrive.errors import DataError, RolloutError
from alphadrive.evaluation import ask, evaluate
from alphadrive.image_controls import derangement, write_blank_copy
from alphadrive.types import DrivingQuery

PLANS = ("KEEP, STRAIGHT", "STOP, STRAIGHT", "DECELERATE, LEFT_TURN")


class Rows:
    def __init__(self, num_rows):
        self.num_rows = num_rows

    def __len__(self):
        return self.num_rows

    def query(self, row):
        return DrivingQuery(
            query_id=f"q{row}", row=row, speed_mps=3.0, navigation="ahead", plans=(PLANS[row % 3],)
        )


def said(plan):
    return f"<think> so </think> <answer> {plan} </answer>"


def test_answers_are_judged_in_row_order_whatever_order_they_come_in():
    async def answer(query):
        await asyncio.sleep(0.001 * (7 - query.row % 7))
        return said(PLANS[0]) if query.row != 4 else "nothing"

    seen = []
    asked = asyncio.run(ask(answer, Rows(9), on_answer=lambda: seen.append(1)))
    assert [query.row for query, _ in asked] == list(range(9))
    assert [text for _, text in asked] == [said(PLANS[0])] * 4 + ["nothing"] + [said(PLANS[0])] * 4
    assert len(seen) == 9
    result = asyncio.run(evaluate(answer, Rows(9)))
    assert result.metrics.planning_accuracy == 3 / 9
    logged = result.as_step_metrics()
    assert logged["val/planning_accuracy"] == 3 / 9
    assert logged["val/invalid_rate"] == 1 / 9
    assert logged["val/missed_brake_rate"] == 5 / 6


def test_number_in_flight_is_bounded_and_num_rows_kept():
    now, most = 0, 0

    async def answer(_):
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.001)
        now -= 1
        return said(PLANS[0])

    result = asyncio.run(evaluate(answer, Rows(50), num_rows=20, max_concurrency=6))
    assert (result.metrics.num_rows, most) == (20, 6)
    assert asyncio.run(evaluate(answer, Rows(5), num_rows=20)).metrics.num_rows == 5


def test_failing_engine_fails_the_evaluation_and_cancels_the_rest():
    cancelled = []

    async def answer(query):
        if query.row == 2:
            raise RolloutError("engine e0 failed")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(query.row)
            raise

    with pytest.raises(RolloutError, match="engine e0 failed"):
        asyncio.run(evaluate(answer, Rows(5)))
    assert sorted(cancelled) == [0, 1, 3, 4]


def test_empty_dataset_is_an_input_error():
    with pytest.raises(DataError, match="empty"):
        asyncio.run(evaluate(lambda query: None, Rows(0)))


@pytest.mark.parametrize("num_rows", [2, 3, 10, 501])
def test_derangement_moves_every_image(num_rows):
    images = derangement(num_rows, seed=5)
    assert sorted(images) == list(range(num_rows))
    assert all(image != row for row, image in enumerate(images))
    assert images == derangement(num_rows, seed=5)


def test_one_row_cannot_be_shuffled():
    with pytest.raises(DataError, match="at least 2"):
        derangement(1)


def test_blank_copy_is_grey_and_of_the_same_size_and_else_unchanged(tmp_path):
    import io

    from PIL import Image

    encoded = io.BytesIO()
    Image.effect_noise((64, 32), 50).convert("RGB").save(encoded, format="PNG")
    image = ImageRecord(camera="front", dt_s=0.0, data=encoded.getvalue(), width=64, height=32)
    records = [
        DrivingRecord(
            query_id=f"q{row}",
            scene_id=f"s{row}",
            time_s=0.0,
            split="test",
            images=(image,),
            speed_mps=float(row),
            navigation="turn left",
            plans=("KEEP, STRAIGHT",),
            source="test",
            label_rule="test",
        )
        for row in range(3)
    ]
    write_records(records, tmp_path / "real")
    write_blank_copy(DrivingDataset(tmp_path / "real"), tmp_path / "blank", num_rows=2)
    blank = DrivingDataset(tmp_path / "blank")
    assert len(blank) == 2
    assert blank.query(1) == DrivingDataset(tmp_path / "real").query(1)
    assert blank.image(1).size == (64, 32)
    assert blank.image(1).getcolors() == [(64 * 32, (128, 128, 128))]
