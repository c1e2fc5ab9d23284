"""Shards: what is written is read back, in bounded memory, and damage is a clear error."""

import pickle
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alphadrive.data import schema, writing
from alphadrive.data.parquet import DrivingDataset, write_records
from alphadrive.data.records import DrivingRecord, ImageRecord
from alphadrive.errors import DataError

MakeRecord = Callable[..., DrivingRecord]

_text = st.text(max_size=20)
_float32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
_images = st.builds(
    ImageRecord,
    camera=_text,
    dt_s=st.floats(allow_nan=False),
    data=st.binary(max_size=40),
    width=st.integers(0, 2**31 - 1),
    height=st.integers(0, 2**31 - 1),
)
_records = st.builds(
    DrivingRecord,
    query_id=_text,
    scene_id=_text,
    time_s=st.floats(allow_nan=False),
    split=_text,
    images=st.lists(_images, max_size=3).map(tuple),
    speed_mps=_float32,
    navigation=_text,
    plans=st.lists(_text, max_size=3).map(tuple),
    reasoning=st.none() | _text,
    teacher_plan=st.none() | _text,
    waypoints=st.none() | st.lists(st.tuples(_float32, _float32), max_size=3).map(tuple),
    source=_text,
    label_rule=_text,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=st.lists(_records, min_size=1, max_size=12), rows_per_shard=st.integers(1, 5))
def test_any_records_survive_a_round_trip(
    tmp_path_factory: pytest.TempPathFactory, records: list[DrivingRecord], rows_per_shard: int
) -> None:
    folder = tmp_path_factory.mktemp("round")
    assert write_records(iter(records), folder, rows_per_shard) == len(records)
    dataset = DrivingDataset(folder)
    assert list(dataset.records()) == records
    for row in reversed(range(len(records))):
        query = dataset.query(row)
        assert (query.query_id, query.row) == (records[row].query_id, row)
        assert (query.plans, query.reasoning) == (records[row].plans, records[row].reasoning)


def test_rows_are_found_across_shards_and_tiny_row_groups(
    tmp_path: Path, make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "_GROUP_ROWS", 2)
    write_records((make_record(index) for index in range(23)), tmp_path, rows_per_shard=7)
    assert [path.name for path in schema.shard_paths(tmp_path)] == [f"part-{n:05d}.parquet" for n in range(4)]
    assert pq.read_metadata(tmp_path / "part-00000.parquet").num_row_groups == 4

    dataset = DrivingDataset(tmp_path)
    for row in np.random.default_rng(0).permutation(23).tolist():
        assert dataset.query(row).query_id == f"query-{row}"
        assert dataset.record(row) == make_record(row)
        assert dataset.image(row).getpixel((0, 0)) == (0, row, row)
    assert dataset.where(15) == f"{tmp_path / 'part-00002.parquet'}: row 1"


def test_num_rows_keeps_only_the_first_rows(tmp_path: Path, make_record: MakeRecord) -> None:
    write_records((make_record(index) for index in range(5)), tmp_path)
    dataset = DrivingDataset(tmp_path, num_rows=2)
    assert len(dataset) == 2
    with pytest.raises(IndexError, match="expected 0 to 1"):
        dataset.query(2)
    assert len(DrivingDataset(tmp_path, num_rows=99)) == 5


def test_a_dataset_pickles_as_its_folder(tmp_path: Path, make_record: MakeRecord) -> None:
    write_records((make_record(index) for index in range(40)), tmp_path)
    dataset = DrivingDataset(tmp_path, num_rows=38)
    dataset.image(3)
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 1000
    again = pickle.loads(pickled)
    assert len(again) == 38 and again.record(37) == dataset.record(37)


def test_a_query_reads_no_image_bytes(tmp_path: Path, make_record: MakeRecord) -> None:
    big = bytes(1 << 20)
    write_records((make_record(index, data=big) for index in range(8)), tmp_path)
    dataset = DrivingDataset(tmp_path)
    tracemalloc.start()
    for row in range(8):
        dataset.query(row)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_the_front_image_nearest_to_now_is_the_one_decoded(
    tmp_path: Path, make_record: MakeRecord, picture: Callable[..., bytes]
) -> None:
    images = tuple(
        ImageRecord(camera=camera, dt_s=dt_s, data=picture(shade=shade), width=56, height=28)
        for camera, dt_s, shade in [
            ("left", 0.0, 10),
            ("front", -0.5, 20),
            ("front", 0.0, 30),
            ("front", -1.0, 40),
        ]
    )
    write_records([make_record(0, images=images), make_record(1, images=images[:1])], tmp_path)
    dataset = DrivingDataset(tmp_path)
    assert dataset.image(0).getpixel((0, 0)) == (0, 30, 30)
    with pytest.raises(DataError, match=r"part-00000.parquet: row 1: images: no camera 'front'.*left"):
        dataset.image(1)


def test_writing_2000_rows_holds_a_row_group_and_not_the_dataset(
    tmp_path: Path, make_record: MakeRecord
) -> None:
    noise = np.random.default_rng(0)

    def stream() -> Iterator[DrivingRecord]:
        for index in range(2000):
            yield make_record(index, data=noise.bytes(30_000))

    import pyarrow as pa

    before = pa.total_allocated_bytes()
    tracemalloc.start()
    write_records(stream(), tmp_path)
    python_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(path.stat().st_size for path in schema.shard_paths(tmp_path)) > 60_000_000
    assert python_peak < 8 << 20
    assert pa.total_allocated_bytes() - before < 8 << 20


def test_reading_keeps_a_bounded_cache(tmp_path: Path, make_record: MakeRecord) -> None:
    noise = np.random.default_rng(0)
    write_records((make_record(index, data=noise.bytes(200_000)) for index in range(400)), tmp_path)
    dataset = DrivingDataset(tmp_path)
    tracemalloc.start()
    for row in range(400):
        dataset.record(row)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 48 << 20  # of 80 MB


def test_two_threads_read_the_same_dataset(tmp_path: Path, make_record: MakeRecord) -> None:
    write_records((make_record(index) for index in range(150)), tmp_path, rows_per_shard=40)
    dataset = DrivingDataset(tmp_path)
    wrong: list[int] = []

    def read(seed: int) -> None:
        for row in np.random.default_rng(seed).permutation(150).tolist():
            if dataset.query(row).query_id != f"query-{row}" or dataset.image(row).getpixel((0, 0))[1] != row:
                wrong.append(row)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_an_interrupted_write_leaves_no_shard(tmp_path: Path, make_record: MakeRecord) -> None:
    def breaks() -> Iterator[DrivingRecord]:
        yield from (make_record(index) for index in range(30))
        raise RuntimeError("the source failed")

    with pytest.raises(RuntimeError, match="the source failed"):
        write_records(breaks(), tmp_path, rows_per_shard=10)
    assert list(tmp_path.iterdir()) == []


def test_of_two_writers_the_slower_one_is_refused(tmp_path: Path, make_record: MakeRecord) -> None:
    def slow() -> Iterator[DrivingRecord]:
        yield make_record(0)
        write_records((make_record(index) for index in range(1, 30)), tmp_path / "quick", rows_per_shard=10)
        for shard in (tmp_path / "quick").iterdir():
            shard.rename(tmp_path / "data" / shard.name)

    with pytest.raises(DataError, match="already holds 3 shards"):
        write_records(slow(), tmp_path / "data")
    assert len(DrivingDataset(tmp_path / "data")) == 29


def test_writing_over_a_dataset_or_writing_nothing_is_refused(
    tmp_path: Path, make_record: MakeRecord
) -> None:
    write_records([make_record()], tmp_path / "a")
    with pytest.raises(DataError, match="already holds 1 shards"):
        write_records([make_record()], tmp_path / "a")
    with pytest.raises(DataError, match="no record to write"):
        write_records([], tmp_path / "b")


def _truncate(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:-100])


def _other_version(shard: Path) -> None:
    table = pq.read_table(shard)
    pq.write_table(table.replace_schema_metadata({"alphadrive_schema_version": "7"}), shard)


def _no_version(shard: Path) -> None:
    pq.write_table(pq.read_table(shard).replace_schema_metadata({}), shard)


def _no_column(shard: Path) -> None:
    pq.write_table(pq.read_table(shard).drop_columns(["navigation"]), shard)


def _wrong_type(shard: Path) -> None:
    table = pq.read_table(shard)
    index = table.schema.get_field_index("speed_mps")
    pq.write_table(table.set_column(index, "speed_mps", table["speed_mps"].cast("string")), shard)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate, "no complete Parquet file"),
        (lambda shard: shard.write_text("not parquet at all"), "no complete Parquet file"),
        (lambda shard: shard.write_bytes(b""), "no complete Parquet file"),
        (_other_version, r"alphadrive_schema_version: got '7', expected '1'"),
        (_no_version, r"alphadrive_schema_version: got none, expected '1'"),
        (_no_column, "navigation: no such column; expected string"),
        (_wrong_type, "speed_mps: got type string, expected float"),
    ],
)
def test_a_damaged_shard_is_an_error_that_names_it(
    tmp_path: Path, make_record: MakeRecord, damage: Callable[[Path], object], message: str
) -> None:
    write_records((make_record(index) for index in range(3)), tmp_path, rows_per_shard=2)
    damage(tmp_path / "part-00001.parquet")
    with pytest.raises(DataError, match=rf"part-00001.parquet: {message}"):
        DrivingDataset(tmp_path)


def test_a_missing_folder_an_empty_one_and_a_missing_shard_are_named(
    tmp_path: Path, make_record: MakeRecord
) -> None:
    with pytest.raises(DataError, match="no such folder"):
        DrivingDataset(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no shards"):
        DrivingDataset(tmp_path)
    write_records((make_record(index) for index in range(3)), tmp_path, rows_per_shard=1)
    (tmp_path / "part-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"expected part-00001.parquet next, got part-00002.parquet"):
        DrivingDataset(tmp_path)


def test_a_flipped_byte_in_a_page_is_found_by_its_checksum(tmp_path: Path, make_record: MakeRecord) -> None:
    write_records([make_record(0, data=bytes(1000) + b"marker" + bytes(1000))], tmp_path)
    shard = tmp_path / "part-00000.parquet"
    shard.write_bytes(shard.read_bytes().replace(b"marker", b"mirker"))
    with pytest.raises(DataError, match=r"row group 0.*cannot be read"):
        DrivingDataset(tmp_path).record(0)
