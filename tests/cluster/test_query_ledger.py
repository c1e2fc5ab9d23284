"""The order of the queries and the ledger of how each ended."""

import json

import pytest

from alphadrive.errors import CheckpointError, DeadLetterError, NonFiniteError
from alphadrive.types import DrivingQuery
from cluster.loop import Outcome
from cluster.queries import QueryLedger, sampling_seed
from cluster.row_order import balanced_order, uniform_order


def query_of_row(row):
    return DrivingQuery(
        query_id=f"q{row}", row=row, speed_mps=5.0, navigation="go", plans=("KEEP, STRAIGHT",)
    )


def make_ledger(num_rows=6, **changes):
    return QueryLedger(query_of_row, num_rows, **({"seed": 0, "max_dead_letters": 2} | changes))


def rows_of(ledger, num, first_ticket=0):
    return [ledger.take(ticket).row for ticket in range(first_ticket, first_ticket + num)]


def test_each_epoch_is_a_shuffle_of_all_rows_given_by_the_seed():
    rows = rows_of(make_ledger(), 12)
    assert sorted(rows[:6]) == sorted(rows[6:]) == list(range(6))
    assert rows[:6] != rows[6:]
    assert rows == rows_of(make_ledger(), 12)
    assert rows != rows_of(make_ledger(seed=1), 12)


def test_a_run_that_resumes_asks_for_what_had_not_ended_and_nothing_else():
    ledger = make_ledger()
    rows = rows_of(ledger, 9)
    for ticket in (0, 1, 2, 3, 4, 5, 7):
        ledger.settle(ticket, Outcome.TRAINED, has_signal=True)
    resumed = make_ledger(state=json.loads(json.dumps(ledger.state())))
    second_epoch = rows_of(make_ledger(), 12)[6:]
    again = rows_of(resumed, 5)
    assert again == [row for row in second_epoch if row != rows[7]]
    for ticket in range(5):
        resumed.settle(ticket, Outcome.TRAINED, has_signal=True)
    assert resumed.num_ended == 12


def test_a_query_cannot_end_twice():
    ledger = make_ledger()
    ledger.take(0)
    ledger.settle(0, Outcome.SKIPPED)
    with pytest.raises(KeyError):
        ledger.settle(0, Outcome.TRAINED)


def test_an_epoch_with_one_signal_is_no_end_and_one_without_is():
    ledger = make_ledger(num_rows=3)
    rows_of(ledger, 6)
    for ticket in range(3):
        ledger.settle(ticket, Outcome.TRAINED, has_signal=ticket == 1)
    assert not ledger.has_no_signal
    for ticket in range(3, 6):
        ledger.settle(ticket, Outcome.SKIPPED)
    assert ledger.has_no_signal


def test_dead_letters_are_kept_with_their_reason_and_bounded():
    ledger = make_ledger()
    rows_of(ledger, 3)
    ledger.settle(0, Outcome.DEAD_LETTERED, error=RuntimeError("boom"))
    ledger.settle(1, Outcome.DEAD_LETTERED, error=RuntimeError("boom"))
    with pytest.raises(DeadLetterError, match="3 groups were dead-lettered, 2 are allowed"):
        ledger.settle(2, Outcome.DEAD_LETTERED, error=RuntimeError("boom"))
    assert ledger.dead_letters[0]["reason"] == "RuntimeError: boom"


def test_a_ledger_of_other_data_is_refused():
    state = make_ledger().state()
    with pytest.raises(CheckpointError, match="num_rows=6, this run 7"):
        make_ledger(num_rows=7, state=state)


PLANS = ["KEEP"] * 4 + ["STOP"]


def test_in_a_balanced_epoch_every_draw_ends_exactly_once():
    """Five rows of two plans: two or three draws of the one STOP row an epoch, each a query of its own."""
    ledger = make_ledger(num_rows=5, order=balanced_order(PLANS, seed=0))
    rows = rows_of(ledger, 10)
    assert rows.count(4) == 5
    for ticket in range(10):
        ledger.settle(ticket, Outcome.TRAINED, has_signal=True)
    assert ledger.counts() == {0: {"issued": 5, "trained": 5}, 1: {"issued": 5, "trained": 5}}
    with pytest.raises(KeyError):
        ledger.settle(3, Outcome.TRAINED)


def test_a_balanced_run_that_resumes_asks_for_the_draws_that_had_not_ended():
    ledger = make_ledger(num_rows=5, order=balanced_order(PLANS, seed=0))
    rows = rows_of(ledger, 5)
    ended = [rows.index(4), (rows.index(4) + 1) % 5]
    for ticket in ended:
        ledger.settle(ticket, Outcome.TRAINED, has_signal=True)
    state = json.loads(json.dumps(ledger.state()))
    resumed = make_ledger(num_rows=5, order=balanced_order(PLANS, seed=0), state=state)
    again = rows_of(resumed, 3)
    assert sorted(again) == sorted(row for ticket, row in enumerate(rows) if ticket not in ended)
    assert again.count(4) == rows.count(4) - sum(rows[ticket] == 4 for ticket in ended)
    for ticket in range(3):
        resumed.settle(ticket, Outcome.TRAINED, has_signal=True)
    assert resumed.counts()[0]["trained"] == 5


def test_a_run_does_not_resume_under_another_sampling():
    state = make_ledger(num_rows=5).state()
    with pytest.raises(CheckpointError, match="sampling=uniform, this run balanced"):
        make_ledger(num_rows=5, order=balanced_order(PLANS, seed=0), state=state)
    assert make_ledger(num_rows=5, order=uniform_order(5, seed=0), state=state).num_ended == 0


FAILED_STEP = NonFiniteError("step 3: the loss is nan")


def test_a_query_whose_step_was_not_applied_is_asked_once_more_and_then_dead_lettered():
    ledger = make_ledger()
    rows = rows_of(ledger, 3)
    for ticket in (0, 1):
        ledger.give_back(ticket, FAILED_STEP)
    assert rows_of(ledger, 3, first_ticket=3)[:2] == rows[:2]
    assert ledger.counts() == {0: {"issued": 4}}
    ledger.settle(3, Outcome.TRAINED, has_signal=True)
    ledger.give_back(4, FAILED_STEP)
    assert ledger.counts() == {0: {"issued": 4, "trained": 1, "dead_lettered": 1}}
    assert ledger.dead_letters[0]["row"] == rows[1]
    assert ledger.dead_letters[0]["reason"] == "NonFiniteError: step 3: the loss is nan"
    with pytest.raises(KeyError):
        ledger.give_back(4, FAILED_STEP)


def test_more_second_failures_than_dead_letters_allowed_end_the_run():
    ledger = make_ledger(max_dead_letters=0)
    ledger.take(0)
    ledger.give_back(0, FAILED_STEP)
    ledger.take(1)
    with pytest.raises(DeadLetterError, match="the loss is nan"):
        ledger.give_back(1, FAILED_STEP)


def test_a_failed_try_is_remembered_by_a_checkpoint():
    ledger = make_ledger()
    rows = rows_of(ledger, 4)
    ledger.settle(0, Outcome.TRAINED, has_signal=True)
    ledger.give_back(1, FAILED_STEP)
    ledger.give_back(2, FAILED_STEP)
    ledger.take(4)
    resumed = make_ledger(state=json.loads(json.dumps(ledger.state())))
    assert resumed.counts() == {0: {"issued": 3, "trained": 1}}
    assert rows_of(resumed, 3, first_ticket=10) == rows[1:]
    assert resumed.counts() == {0: {"issued": 4, "trained": 1}}
    resumed.give_back(10, FAILED_STEP)
    assert [letter["row"] for letter in resumed.dead_letters] == [rows[1]]


def test_a_query_given_back_after_the_end_of_the_stream_is_dead_lettered():
    ledger = make_ledger(num_rows=2, max_epochs=1)
    rows_of(ledger, 2)
    assert ledger.take(2) is None
    ledger.give_back(0, FAILED_STEP)
    assert ledger.counts() == {0: {"issued": 2, "dead_lettered": 1}}


def test_issued_queries_are_counted_over_all_attempts():
    ledger = make_ledger()
    rows_of(ledger, 8)
    for ticket in (0, 1, 2, 6):
        ledger.settle(ticket, Outcome.TRAINED, has_signal=True)
    state = json.loads(json.dumps(ledger.state()))
    assert state["issued"] == {"0": 6, "1": 2}
    resumed = make_ledger(state=state)
    assert resumed.counts() == {0: {"issued": 3, "trained": 3}, 1: {"issued": 1, "trained": 1}}
    rows_of(resumed, 4)
    assert resumed.counts() == {0: {"issued": 6, "trained": 3}, 1: {"issued": 2, "trained": 1}}


def test_a_ledger_that_does_not_add_up_is_refused():
    ledger = make_ledger()
    rows_of(ledger, 3)
    ledger.settle(0, Outcome.TRAINED)
    state = json.loads(json.dumps(ledger.state()))
    state["open_epochs"]["0"] = {}
    with pytest.raises(CheckpointError, match=r"epoch 0: 1 queries issued .* but 0 ended and 0 given back"):
        make_ledger(state=state)


def test_a_resumed_run_goes_on_after_the_highest_ticket_that_has_ended():
    ledger = make_ledger()
    rows_of(ledger, 5)
    assert (ledger.next_ticket, ledger.open_tickets) == (0, [0, 1, 2, 3, 4])
    ledger.settle(2, Outcome.TRAINED)
    ledger.give_back(1, FAILED_STEP)
    assert (ledger.next_ticket, ledger.open_tickets) == (3, [0, 3, 4])


def test_the_seed_of_a_query_follows_from_run_epoch_query_and_try_not_from_its_ticket():
    queries = [make_ledger().take(ticket) for ticket in (0, 7)]
    assert queries[0].seed == queries[1].seed
    ledger = make_ledger(num_rows=1)
    first = ledger.take(0).seed
    ledger.give_back(0, FAILED_STEP)
    second_try = ledger.take(1).seed
    ledger.settle(1, Outcome.TRAINED, has_signal=True)
    next_epoch = ledger.take(2).seed
    other_run = make_ledger(num_rows=1, seed=1).take(0).seed
    assert len({first, second_try, next_epoch, other_run}) == 4
    assert first == sampling_seed(0, 0, "q0", 0, 1) == 209938535962017
    assert all(0 <= seed < 2**48 for seed in (first, second_try))


def test_the_draws_of_one_row_in_a_balanced_epoch_have_seeds_of_their_own():
    ledger = make_ledger(num_rows=5, order=balanced_order(PLANS, seed=0))
    queries = [ledger.take(ticket) for ticket in range(5)]
    assert [query.row for query in queries].count(4) in (2, 3)
    assert len({query.seed for query in queries}) == 5
