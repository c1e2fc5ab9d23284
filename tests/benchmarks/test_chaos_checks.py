"""`benchmarks/chaos_checks.py` on made-up records: what is right passes, every kind of wrong is found."""

import json
from importlib import import_module
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alphadrive import metric_names as names
from alphadrive.checkpoints import CheckpointStore
from alphadrive.config import default_config

pytest.importorskip("ray")

ROOT = Path(__file__).resolve().parents[2]
STEPS = 24
GROUPS = 4


@pytest.fixture
def chaos_checks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return import_module("chaos_checks")


@pytest.fixture
def config():
    return default_config([f"grpo.groups_per_step={GROUPS}", "data.train=unused"])


def right_queries():
    """24 steps of 4 groups on 64 rows: one epoch is over, of the next 32 have ended, 2 are under way."""
    return {
        "closed_epochs": {"0": {"trained": 64}},
        "open_epochs": {"1": {str(number): "trained" for number in range(32)}},
        "issued": {"0": 64, "1": 34},
        "under_way": [[96, 1, 32], [97, 1, 33]],
        "failed": [],
        "dead_letters": [],
    }


def right_rows():
    """Ticket and row of every group that ended, and of those under way."""
    return [(ticket, ticket % 64) for ticket in range(98)]


def make_run(folder, queries, rows, steps=range(1, STEPS + 1), lag=1.0):
    store = CheckpointStore(folder / "checkpoints")
    ledger = {"queries": queries, "next_ticket": 99, "open_tickets": [96, 97]}
    (store.begin(STEPS) / "ledger.json").write_text(json.dumps(ledger))
    store.commit(STEPS)
    lines = [json.dumps({"step": step, names.POLICY_LAG_MAX: lag}) for step in steps]
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    (folder / "rollouts").mkdir()
    tickets, numbers = zip(*rows, strict=True)
    pq.write_table(pa.table({"ticket": tickets, "row": numbers}), folder / "rollouts" / "w0-00000.parquet")
    return folder


def test_a_run_that_lost_and_repeated_nothing_has_no_problems(chaos_checks, config, tmp_path):
    account = chaos_checks.account_of(make_run(tmp_path, right_queries(), right_rows()), config)
    assert account.problems == ()
    assert (account.steps, account.trained, account.lost, account.repeated) == (STEPS, 96, 0, 0)
    assert account.not_on_disk == 0


def test_groups_of_killed_reward_workers_are_counted_and_are_no_problem(chaos_checks, config, tmp_path):
    account = chaos_checks.account_of(make_run(tmp_path, right_queries(), right_rows()[3:]), config)
    assert (account.not_on_disk, account.problems) == (3, ())


def a_draw_never_ended(queries, rows):
    queries["closed_epochs"]["0"]["trained"] = 63
    return "1 groups were lost"


def a_draw_ended_twice(queries, rows):
    queries["closed_epochs"]["0"]["trained"] = 65
    return "97 groups were trained in 24 steps of 4"


def a_group_was_given_up(queries, rows):
    queries["dead_letters"].append({"query_id": "q7"})
    return "q7"


def a_draw_was_forgotten(queries, rows):
    queries["under_way"].pop()
    return "98 draws were issued, 97 ended or are under way"


def a_ticket_is_written_twice(queries, rows):
    rows.append(rows[0])
    return "1 groups were repeated"


def a_query_was_drawn_under_two_tickets(queries, rows):
    rows.append((98, 40))
    return "1 groups were repeated"


@pytest.mark.parametrize(
    "wrong",
    [
        a_draw_never_ended,
        a_draw_ended_twice,
        a_group_was_given_up,
        a_draw_was_forgotten,
        a_ticket_is_written_twice,
        a_query_was_drawn_under_two_tickets,
    ],
)
def test_what_is_wrong_with_the_groups_is_found(wrong, chaos_checks, config, tmp_path):
    queries, rows = right_queries(), right_rows()
    words = wrong(queries, rows)
    account = chaos_checks.account_of(make_run(tmp_path, queries, rows), config)
    assert any(words in problem for problem in account.problems), account.problems


@pytest.mark.parametrize(
    "steps", [[*range(1, 12), *range(13, 25)], [*range(1, 25), 24], [2, 1, *range(3, 25)]]
)
def test_steps_that_are_missing_repeated_or_out_of_order_are_found(steps, chaos_checks, config, tmp_path):
    run = make_run(tmp_path, right_queries(), right_rows(), steps=steps)
    assert any("metrics" in problem for problem in chaos_checks.account_of(run, config).problems)


def test_a_group_that_was_too_old_is_found(chaos_checks, config, tmp_path):
    run = make_run(tmp_path, right_queries(), right_rows(), lag=2.0)
    assert any("versions old" in problem for problem in chaos_checks.account_of(run, config).problems)
