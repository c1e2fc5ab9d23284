"""Recording in one process."""

import threading
import time

import pytest

from alphadrive.profiling import spans
from alphadrive.profiling.spans import Span, SpanLog


@pytest.fixture
def recording():
    spans.begin("learner", "rank-0", device="cpu")
    yield
    spans.end()


def test_nothing_is_recorded_before_it_begins():
    spans.end()
    with spans.span("forward") as forward:
        forward.note(tokens=3)
    spans.add_span("paused", time.monotonic())
    assert spans.take() is None


def test_spans_hold_what_happened_in_between_and_are_given_once(recording):
    before_ns = time.monotonic_ns()
    with spans.span("train", step=3) as train:
        with spans.span("forward"):
            time.sleep(0.01)
        train.note(flops=2.0)
    batch = spans.take()
    assert (batch.kind, batch.source, batch.facts) == ("learner", "rank-0", {"device": "cpu"})
    forward, train = batch.spans
    assert train.args == {"step": 3, "flops": 2.0}
    assert before_ns <= train.start_ns <= forward.start_ns < forward.end_ns <= train.end_ns <= batch.taken_ns
    assert forward.end_ns - forward.start_ns >= 10_000_000
    assert spans.take().spans == []


def test_a_span_ends_with_an_error_too(recording):
    with pytest.raises(KeyError), spans.span("step"):
        raise KeyError
    assert [span.name for span in spans.take().spans] == ["step"]


def test_the_start_of_a_span_may_be_told_afterwards(recording):
    start_s = time.monotonic()
    spans.add_span("paused", start_s, "groups", ticket=4)
    (paused,) = spans.take().spans
    assert (paused.lane, paused.name, paused.args) == ("groups", "paused", {"ticket": 4})
    assert abs(paused.start_ns - start_s * 1e9) < 1e6 and paused.end_ns >= paused.start_ns


def test_a_function_in_a_span_gives_what_it_gave(recording):
    assert spans.in_span("pack", lambda rows: rows[::-1], "reader")([1, 2]) == [2, 1]
    assert [span[:2] for span in spans.take().spans] == [("reader", "pack")]


def test_beginning_again_keeps_what_is_recorded(recording):
    with spans.span("train"):
        pass
    spans.begin("learner", "rank-0", more="facts")
    batch = spans.take()
    assert len(batch.spans) == 1 and batch.facts == {"device": "cpu", "more": "facts"}


def test_memory_is_bounded_and_what_goes_is_counted():
    log = SpanLog("reward", "w0", capacity=3)
    for number in range(5):
        log.add(Span("", f"s{number}", number, number + 1, {}))
    batch = log.take()
    assert [span.name for span in batch.spans] == ["s2", "s3", "s4"] and batch.num_dropped == 2
    assert log.take().num_dropped == 0


def test_threads_lose_nothing():
    log = SpanLog("rollout", "engine-0", capacity=100_000)
    taken = []

    def add(number):
        for index in range(2000):
            log.add(Span("", f"{number}", index, index, {}))

    threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        taken += log.take().spans
    taken += log.take().spans
    assert len(taken) == 8000 and len(set(taken_key(span) for span in taken)) == 8000


def taken_key(span):
    return span.name, span.start_ns


def test_processes_of_a_machine_read_one_clock():
    assert spans.clock_id() == spans.clock_id() != ""
