"""The ledger under random takes, ends, failed steps, checkpoints and rollbacks: every draw ends exactly once.

The model keeps, for every draw, how often it was asked and how it ended, and takes that back at a rollback.
"""

import copy
import json
from collections import Counter
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from alphadrive.types import DrivingQuery
from cluster.loop import Outcome
from cluster.queries import QueryLedger, sampling_seed
from cluster.row_order import RowOrder, balanced_order, uniform_order

NUM_ROWS = 7
PLANS = ["KEEP"] * 4 + ["STOP"] * 2 + ["SLOW"]


def query_of_row(row: int) -> DrivingQuery:
    return DrivingQuery(query_id=f"q{row}", row=row, speed_mps=5.0, navigation="", plans=("KEEP, STRAIGHT",))


class LedgerMachine(RuleBasedStateMachine):
    """`open` has the seed of each ticket's query, `ended` and `failed` seeds: one names a draw and a try."""

    def __init__(self) -> None:
        super().__init__()
        self.next_ticket = 0
        self.open: dict[int, tuple[int, int]] = {}
        self.given_back: list[int] = []
        self.ended: Counter[int] = Counter()
        self.saved: tuple[str, Any] | None = None

    @initialize(is_balanced=st.booleans(), seed=st.integers(0, 3))
    def start(self, is_balanced: bool, seed: int) -> None:
        self.order: RowOrder = balanced_order(PLANS, seed) if is_balanced else uniform_order(NUM_ROWS, seed)
        self.seed = seed
        self.second_seeds = {
            sampling_seed(seed, epoch, f"q{row}", turn, 2)
            for epoch in range(12)
            for row in range(NUM_ROWS)
            for turn in range(4)
        }
        self.ledger = self.make(None)

    def make(self, state: Any) -> QueryLedger:
        return QueryLedger(
            query_of_row, NUM_ROWS, seed=self.seed, order=self.order, max_dead_letters=10**9, state=state
        )

    @precondition(lambda self: len(self.open) < 12)
    @rule()
    def take(self) -> None:
        query = self.ledger.take(self.next_ticket)
        assert query is not None and query.seed is not None
        assert query.seed not in {seed for seed, _ in self.open.values()}, "under way twice"
        assert not self.ended[query.seed], "asked after its end"
        if self.given_back:
            assert query.row == self.given_back.pop(0), "what was given back comes first"
        self.open[self.next_ticket] = (query.seed, query.row)
        self.next_ticket += 1

    @precondition(lambda self: self.open)
    @rule(data=st.data(), outcome=st.sampled_from(list(Outcome)))
    def settle(self, data: st.DataObject, outcome: Outcome) -> None:
        ticket = data.draw(st.sampled_from(sorted(self.open)))
        seed, _ = self.open.pop(ticket)
        self.ledger.settle(ticket, outcome, has_signal=True, error=RuntimeError("boom"))
        self.ended[seed] += 1

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        """The step of some groups was not applied."""
        ticket = data.draw(st.sampled_from(sorted(self.open)))
        seed, row = self.open.pop(ticket)
        num_dead = len(self.ledger.dead_letters)
        self.ledger.give_back(ticket, RuntimeError("the loss is nan"))
        if len(self.ledger.dead_letters) > num_dead:
            assert seed in self.second_seeds, "dead-lettered at its first try"
            self.ended[seed] += 1
        else:
            self.given_back.append(row)

    @rule()
    def checkpoint(self) -> None:
        state = json.dumps(self.ledger.state())
        self.saved = (
            state,
            copy.deepcopy((self.ended, self.ledger.next_ticket, self.ledger.counts(), self.open)),
        )

    @precondition(lambda self: self.saved is not None)
    @rule()
    def roll_back(self) -> None:
        """Go on from the checkpoint: what was under way or ended after it is asked again."""
        assert self.saved is not None
        state, model = self.saved
        self.ended, self.next_ticket, counts, was_open = copy.deepcopy(model)
        self.ledger = self.make(json.loads(state))
        assert self.ledger.next_ticket == self.next_ticket
        num_firsts = sum(seed not in self.second_seeds for seed, _ in was_open.values())
        before = sum(each["issued"] for each in counts.values())
        assert sum(each["issued"] for each in self.ledger.counts().values()) == before - num_firsts
        self.open, self.given_back = {}, []

    @invariant()
    def every_draw_ends_at_most_once(self) -> None:
        assert all(count == 1 for count in self.ended.values())
        assert self.ledger.num_ended == self.ended.total()

    @invariant()
    def what_was_issued_is_under_way_waits_or_has_ended(self) -> None:
        counts = self.ledger.counts().values()
        num_issued = sum(each["issued"] for each in counts)
        num_waiting = len(json.loads(json.dumps(self.ledger.state()))["failed"])
        num_open_firsts = sum(seed not in self.second_seeds for seed, _ in self.open.values())
        assert num_issued == self.ended.total() + num_waiting + num_open_firsts

    @invariant()
    def a_whole_epoch_has_ended_completely(self) -> None:
        for counts in json.loads(json.dumps(self.ledger.state()))["closed_epochs"].values():
            assert sum(counts.values()) == NUM_ROWS

    @invariant()
    def tickets_under_way_are_known(self) -> None:
        assert self.ledger.open_tickets == sorted(self.open)
        assert self.ledger.next_ticket <= self.next_ticket


LedgerMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
TestLedger = LedgerMachine.TestCase
