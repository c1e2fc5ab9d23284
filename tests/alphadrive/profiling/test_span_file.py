"""Writing spans and reading them back, whatever happened in between."""

from dataclasses import replace

import pytest
from timelines import span

from alphadrive.profiling.span_file import OLDER_FILE, SPAN_FILE, SpanFile, has_spans, read_spans
from alphadrive.profiling.spans import SpanBatch


def batch(source="rank-0", kind="learner", spans=(), dropped=0, taken_s=1.0, **facts):
    return SpanBatch(
        kind=kind,
        source=source,
        clock="c",
        taken_ns=round(taken_s * 1e9),
        num_dropped=dropped,
        spans=list(spans),
        facts=facts,
    )


def test_what_was_written_is_read_by_the_drivers_clock(tmp_path):
    assert not has_spans(tmp_path)
    file = SpanFile(tmp_path, {"grpo.group_size": 4})
    file.write([(batch(spans=[span("", "train", 2, 3, step=1)], device="cpu"), 10**9, 500)])
    file.write(
        [
            (batch(spans=[span("", "forward", 1, 2)], dropped=3), 10**9, 700),
            (batch("w0", "reward", [span("", "reward", 5, 6)]), 0, 0),
        ]
    )
    assert has_spans(tmp_path)
    read = read_spans(tmp_path)
    assert read.facts == {"grpo.group_size": 4}
    rank = read.tracks["rank-0"]
    assert rank.spans == [span("", "forward", 2, 3), span("", "train", 3, 4, step=1)]
    assert (rank.num_dropped, rank.error_ns, rank.facts) == (3, 700, {"device": "cpu"})
    assert rank.presence == (2 * 10**9, 4 * 10**9)
    assert read.of_kind("reward")[0].spans == [span("", "reward", 5, 6)]


def test_a_line_that_a_kill_has_cut_off_is_left_out_and_the_next_session_reads_well(tmp_path):
    file = SpanFile(tmp_path, {})
    file.write([(batch(spans=[span("", "train", 0, 1)]), 0, 0)])
    path = tmp_path / SPAN_FILE
    whole = path.read_text()
    path.write_text(whole + whole.splitlines()[-1][:40])
    assert len(read_spans(tmp_path).tracks["rank-0"].spans) == 1
    SpanFile(tmp_path, {"attempt": 1}).write([(batch(spans=[span("", "train", 5, 6)]), 0, 0)])
    again = read_spans(tmp_path)
    assert again.facts == {"attempt": 1}
    assert again.tracks["rank-0"].spans == [span("", "train", 5, 6)]


def test_of_a_long_run_the_newest_part_is_kept(tmp_path):
    file = SpanFile(tmp_path, {"grpo.group_size": 4}, max_bytes=2000)
    for number in range(200):
        file.write([(batch(spans=[span("", "train", number, number + 1)]), 0, 0)])
    sizes = [(tmp_path / name).stat().st_size for name in (SPAN_FILE, OLDER_FILE)]
    assert max(sizes) < 2500
    read = read_spans(tmp_path)
    starts = [each.start_ns // 10**9 for each in read.tracks["rank-0"].spans]
    assert starts == list(range(starts[0], 200)) and len(starts) > 10
    assert read.facts == {"grpo.group_size": 4}


def test_a_disk_that_is_full_costs_the_spans_only(tmp_path, caplog):
    file = SpanFile(tmp_path, {})
    (tmp_path / SPAN_FILE).unlink()
    (tmp_path / SPAN_FILE).mkdir()
    file.write([(batch(), 0, 0)])
    file.write([(batch(), 0, 0)])
    assert caplog.text.count("spans cannot be written") == 1


def test_a_file_without_a_session_is_an_error(tmp_path):
    (tmp_path / SPAN_FILE).write_text("\n")
    with pytest.raises(ValueError, match="no session"):
        read_spans(tmp_path)


def test_workers_are_in_the_order_of_their_numbers(tmp_path):
    file = SpanFile(tmp_path, {})
    file.write([(replace(batch(), source=f"rank-{rank}"), 0, 0) for rank in (10, 2, 0)])
    assert [track.source for track in read_spans(tmp_path).of_kind("learner")] == [
        "rank-0",
        "rank-2",
        "rank-10",
    ]
