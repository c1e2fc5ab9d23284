"""An interrupted import goes on, ends with the same rows, and never passes for a dataset before."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from alphadrive.cli import run
from alphadrive.data.candidates import Candidate
from alphadrive.data.importing import ImportSource, SourceUnit, import_dataset
from alphadrive.data.parquet import DrivingDataset
from alphadrive.data.records import DrivingRecord
from alphadrive.data.validate import problems_in
from alphadrive.errors import DataError

from .conftest import make_track

MakeRecord = Callable[..., DrivingRecord]
Report = Callable[..., None]


@pytest.fixture
def source(tmp_path: Path, make_record: MakeRecord) -> ImportSource:
    """Four units of ten candidates; one in five is bad, one left out."""
    file = tmp_path / "source"
    file.write_text("the source")

    def candidates(unit: int) -> Iterator[Candidate]:
        for index in range(10):
            number = 10 * unit + index
            if index in (3, 8):
                yield Candidate(where="file", row=number, problems=["speed_mps: bad", "x_m: bad"])
            elif index == 5:
                yield Candidate(where="file", row=number, left_out="of no use")
            else:
                yield Candidate(where="file", row=number, record=make_record(number))

    def unit(number: int) -> SourceUnit:
        return SourceUnit(name=str(number), candidates=lambda: candidates(number))

    return ImportSource(
        layout="test", path=file, units=[unit(n) for n in range(4)], files=[file], options={"split": "train"}
    )


def interrupt_after(num_rows: int) -> Report:
    def report(progress: object) -> None:
        if progress.num_rows >= num_rows:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    return report


def content(folder: Path) -> tuple[list[DrivingRecord], str]:
    return list(DrivingDataset(folder).records()), (folder / "rejected.jsonl").read_text()


def test_an_interrupted_import_ends_with_the_same_rows(tmp_path: Path, source: ImportSource) -> None:
    import_dataset(source, tmp_path / "whole", max_bad_rows=8, rows_per_shard=4)
    out = tmp_path / "out"
    kept = []
    for stop in (6, 13, 13, 22):
        with pytest.raises(KeyboardInterrupt):
            import_dataset(source, out, max_bad_rows=8, rows_per_shard=4, report=interrupt_after(stop))
        assert list(out.glob("*.parquet")) == []
        with pytest.raises(DataError, match="an import that is not complete"):
            DrivingDataset(out)
        kept.append(len(list((out / ".import").glob("part-*.parquet"))))
    assert kept == [1, 3, 3, 5]
    result = import_dataset(source, out, max_bad_rows=8, rows_per_shard=4)
    assert (result.num_rows, result.num_rejected, result.num_kept) == (28, 8, 20)
    assert result.left_out == {"of no use": 4}
    assert content(out) == content(tmp_path / "whole")
    assert sorted(path.name for path in out.iterdir()) == [
        *(f"part-{number:05d}.parquet" for number in range(7)),
        "rejected.jsonl",
    ]
    assert content(out)[1].count("\n") == 16
    assert json.loads(content(out)[1].splitlines()[1]) == {
        "file": "file",
        "row": 3,
        "field": "x_m",
        "reason": "bad",
    }


def test_finished_units_are_not_read_again(tmp_path: Path, source: ImportSource) -> None:
    with pytest.raises(KeyboardInterrupt):
        import_dataset(source, tmp_path / "out", max_bad_rows=8, rows_per_shard=4, report=interrupt_after(20))

    def untouchable() -> Iterator[Candidate]:
        raise AssertionError("read again")

    units = [dataclasses.replace(unit, candidates=untouchable) for unit in source.units[:2]]
    rest = dataclasses.replace(source, units=[*units, *source.units[2:]])
    result = import_dataset(rest, tmp_path / "out", max_bad_rows=8, rows_per_shard=4)
    assert (result.num_rows, result.num_kept) == (28, 20)


def test_an_id_of_before_the_interruption_is_still_known(
    tmp_path: Path, source: ImportSource, make_record: MakeRecord
) -> None:
    def repeated() -> Iterator[Candidate]:
        yield Candidate(where="file", row=99, record=make_record(0))

    units = [*source.units, SourceUnit(name="again", candidates=repeated)]
    longer = dataclasses.replace(source, units=units)
    with pytest.raises(KeyboardInterrupt):
        import_dataset(longer, tmp_path / "out", max_bad_rows=9, rows_per_shard=4, report=interrupt_after(9))
    result = import_dataset(longer, tmp_path / "out", max_bad_rows=9, rows_per_shard=4)
    assert result.num_rejected == 9
    assert "'query-0' is also in an earlier row" in content(tmp_path / "out")[1].splitlines()[-1]


def test_another_source_or_other_options_are_refused(tmp_path: Path, source: ImportSource) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        import_dataset(source, out, rows_per_shard=4, report=interrupt_after(6))
    other = dataclasses.replace(source, options={"split": "eval"})
    with pytest.raises(
        DataError, match=r"unfinished import of something else .split: got 'eval', had 'train'"
    ):
        import_dataset(other, out, rows_per_shard=4)
    source.path.write_text("the source, changed")
    with pytest.raises(DataError, match="the source's files have changed"):
        import_dataset(source, out, rows_per_shard=4)


def test_too_many_bad_rows_leave_no_dataset_until_they_are_allowed(
    tmp_path: Path, source: ImportSource
) -> None:
    out = tmp_path / "out"
    with pytest.raises(DataError, match="no dataset, for 8 bad rows where 0 are allowed") as caught:
        import_dataset(source, out)
    assert "file: row 13: x_m: bad" in str(caught.value)
    assert list(out.glob("*.parquet")) == []
    assert (out / "rejected.jsonl").read_text().count("\n") == 16
    unread = dataclasses.replace(source, units=())
    assert import_dataset(unread, out, max_bad_rows=8).num_rows == 28  # nothing is read again
    assert problems_in(out) == []


def test_after_too_many_bad_rows_a_mended_source_is_read_anew(tmp_path: Path, source: ImportSource) -> None:
    with pytest.raises(DataError, match="8 bad rows"):
        import_dataset(source, tmp_path / "out")

    def good(unit: SourceUnit) -> Iterator[Candidate]:
        return (candidate for candidate in unit.candidates() if not candidate.problems)

    mended = [dataclasses.replace(u, candidates=lambda u=u: good(u)) for u in source.units]  # type: ignore[misc]
    source.path.write_text("the source, mended")
    assert import_dataset(dataclasses.replace(source, units=mended), tmp_path / "out").num_rows == 28
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["part-00000.parquet"]


def test_an_import_killed_while_it_moves_its_shards_is_finished(
    tmp_path: Path, source: ImportSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, replace, moved = tmp_path / "out", os.replace, []

    def dies_at_the_third(old: Path, new: Path) -> None:
        if Path(new).parent == out and Path(new).suffix == ".parquet":
            moved.append(Path(new).name)
            if len(moved) == 3:
                raise KeyboardInterrupt
        replace(old, new)

    monkeypatch.setattr("alphadrive.data.writing.os.replace", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        import_dataset(source, out, max_bad_rows=8, rows_per_shard=4)
    monkeypatch.undo()
    assert moved == ["part-00006.parquet", "part-00005.parquet", "part-00004.parquet"]
    with pytest.raises(DataError, match="not complete"):
        DrivingDataset(out)
    assert import_dataset(source, out, max_bad_rows=8, rows_per_shard=4).num_rows == 28
    assert len(DrivingDataset(out)) == 28 and not (out / ".import").exists()
    with pytest.raises(DataError, match="already holds 7 shards"):
        import_dataset(source, out, max_bad_rows=8, rows_per_shard=4)


def test_a_damaged_state_is_told(tmp_path: Path, source: ImportSource) -> None:
    with pytest.raises(KeyboardInterrupt):
        import_dataset(source, tmp_path / "out", rows_per_shard=4, report=interrupt_after(6))
    (tmp_path / "out" / ".import" / "state.json").write_text("{")
    with pytest.raises(DataError, match=r"state.json: cannot be read .*; remove .*import and import again"):
        import_dataset(source, tmp_path / "out")


def test_two_imports_at_once_and_an_unwritable_folder_are_refused(
    tmp_path: Path, source: ImportSource
) -> None:
    def second(progress: object) -> None:
        import_dataset(source, tmp_path / "out")

    with pytest.raises(DataError, match="another import is writing there"):
        import_dataset(source, tmp_path / "out", report=second)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write there"):
        import_dataset(source, tmp_path / "file" / "out")


def test_a_source_without_rows_is_told(tmp_path: Path, source: ImportSource) -> None:
    empty = dataclasses.replace(source, units=())
    with pytest.raises(DataError, match=r"the source gave no row \(it holds none\)"):
        import_dataset(empty, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


QUICK = ("--every", "0.1", "--near-threshold", "ignore", "--no-navigation")


def start_import(table: Path, out: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "alphadrive.cli", "data", "import", "csv", str(table), "--out", str(out)]
    return subprocess.Popen([*command, *QUICK], stderr=subprocess.PIPE, text=True)


@pytest.mark.e2e
@pytest.mark.parametrize("kill_with", [signal.SIGKILL, signal.SIGINT])
def test_the_command_goes_on_after_it_was_killed(
    tmp_path: Path, write_drive: Callable[..., Path], kill_with: signal.Signals
) -> None:
    table = write_drive(tmp_path / "a.csv", make_track([8.0] * 2630), image_every=1)
    out = tmp_path / "out"
    process = start_import(table, out)
    while process.poll() is None and not (out / ".import" / "state.json").exists():
        time.sleep(0.01)
    process.send_signal(kill_with)
    _, said = process.communicate(timeout=60)
    assert process.returncode == (130 if kill_with is signal.SIGINT else -signal.SIGKILL), said
    assert ("run the same command again to go on" in said) == (kill_with is signal.SIGINT)
    assert list(out.glob("*.parquet")) == []
    assert run(["data", "validate", str(out)]) == 2
    import_again = ["data", "import", "csv", str(table), *QUICK, "--out"]
    assert run([*import_again, str(out)]) == 0
    assert run([*import_again, str(tmp_path / "whole")]) == 0
    assert list(DrivingDataset(out).records()) == list(DrivingDataset(tmp_path / "whole").records())
    assert len(DrivingDataset(out)) == 2600
