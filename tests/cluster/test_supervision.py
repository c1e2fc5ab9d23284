"""How workers are restarted, watched and staffed, and groups retried: pure rules, no Ray, no sleeping."""

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from alphadrive.errors import GarbageError
from alphadrive.types import DrivingQuery, WeightVersion
from cluster.headers import check_receipt, receipt_of
from cluster.restarts import RestartPolicy
from cluster.staffing import changes_to
from cluster.trials import Trials
from cluster.watchdog import ProgressWatch
from cluster.workers import WorkerState
from rollout.fake import SPOILERS, FakeEngine
from rollout.settings import EngineSettings, Sampling


def test_an_engine_that_works_between_its_deaths_is_always_restarted_at_once():
    policy = RestartPolicy(max_restarts=2)
    for _ in range(100):
        policy.died(0, had_worked=True)
        assert not policy.is_used_up(0)
        assert policy.delay_s(0) == 0.0


def test_restarts_in_a_row_are_spaced_and_then_used_up():
    policy = RestartPolicy(max_restarts=3)
    delays = []
    for _ in range(3):
        policy.died(0, had_worked=False)
        assert not policy.is_used_up(0)
        delays.append(policy.delay_s(0))
    assert delays == [0.0, 1.0, 2.0]
    policy.died(0, had_worked=False)
    assert policy.is_used_up(0)
    assert policy.delay_s(0) == 60.0
    assert not policy.is_used_up(1)
    policy.died(0, had_worked=True)
    assert not policy.is_used_up(0)


def test_a_death_that_is_a_groups_fault_does_not_count_against_the_engine():
    policy = RestartPolicy(max_restarts=0)
    policy.died(0, had_worked=False, counts=False)
    assert not policy.is_used_up(0)
    policy.cannot_start(0)
    assert policy.is_used_up(0)


def test_an_engine_hangs_when_its_tokens_stand_still_whatever_it_answers():
    watch = ProgressWatch(limit_s=60.0, now_s=0.0)
    for now_s in range(5, 60, 5):
        watch.answered(now_s, tokens=7)
        assert watch.complaint(now_s, num_under_way=3) is None
    watch.answered(65.0, tokens=7)
    assert "drawn no token for 60 s with 3 groups" in watch.complaint(65.0, num_under_way=3)
    assert watch.complaint(65.0, num_under_way=0) is None
    watch.answered(66.0, tokens=8)
    assert watch.complaint(66.0, num_under_way=3) is None


def test_an_engine_that_answers_nothing_hangs_even_when_it_is_idle():
    watch = ProgressWatch(limit_s=60.0, now_s=0.0)
    watch.answered(10.0, tokens=7)
    assert watch.complaint(69.0, num_under_way=0) is None
    assert "answered nothing for 60 s" in watch.complaint(70.0, num_under_way=0)


def test_the_clock_of_an_idle_engine_starts_with_its_first_group():
    watch = ProgressWatch(limit_s=60.0, now_s=0.0)
    watch.answered(500.0, tokens=0)
    watch.restart(500.0)
    watch.answered(505.0, tokens=0)
    assert watch.complaint(505.0, num_under_way=1) is None


def test_what_the_driver_did_not_hear_while_it_stood_still_is_no_hang():
    watch = ProgressWatch(limit_s=60.0, now_s=0.0)
    watch.answered(5.0, tokens=7)
    watch.forgive(300.0)
    assert watch.complaint(305.0, num_under_way=1) is None
    assert watch.complaint(365.0, num_under_way=1) is not None


def test_a_group_alone_on_two_engines_that_die_is_given_up_and_not_before():
    trials = Trials("ticket 3", 3, max_attempts=2)
    trials.engine_died("killed", was_alone=False)
    assert trials.must_be_alone and trials.verdict() is None
    trials.engine_died("killed", was_alone=True)
    assert trials.verdict() is None
    trials.engine_died("killed", was_alone=True)
    assert "ticket 3: given up: 2 engines died" in str(trials.verdict())


def test_deaths_of_engines_that_drew_other_groups_too_are_never_held_against_a_group():
    trials = Trials("ticket 3", 3, max_attempts=2)
    for _ in range(10):
        trials.engine_died("killed", was_alone=False)
    trials.failed("refused")
    assert trials.verdict() is None
    trials.failed("refused")
    assert "given up after rollout.max_attempts=2: refused" in str(trials.verdict())


@dataclass
class Hand:
    """A worker as the staffing sees it."""

    index: int
    state: WorkerState = WorkerState.SERVING
    num_under_way: int = 0
    id: str = field(init=False)

    def __post_init__(self):
        self.id = f"hand-{self.index}"


def test_more_workers_fill_the_lowest_free_places():
    changes = changes_to(5, [Hand(0), Hand(2)], vacant=[1], recallable=[])
    assert changes.fill == [3, 4]
    assert (changes.drain, changes.cancel, changes.take_back) == ([], [], [])


def test_draining_workers_are_taken_back_before_new_ones_are_started():
    draining = Hand(1, WorkerState.DRAINING)
    changes = changes_to(3, [Hand(0), draining], vacant=[], recallable=[draining])
    assert changes.take_back == [draining]
    assert changes.fill == [2]


def test_a_worker_that_drains_because_its_node_goes_away_is_replaced_not_taken_back():
    changes = changes_to(2, [Hand(0), Hand(1, WorkerState.DRAINING)], vacant=[], recallable=[])
    assert changes.fill == [2]


def test_what_has_least_to_lose_goes_first():
    busy, idle = Hand(0, num_under_way=5), Hand(1, num_under_way=1)
    starting = Hand(2, WorkerState.STARTING)
    workers = [busy, idle, starting]
    assert changes_to(3, workers, vacant=[3], recallable=[]).cancel == [3]
    assert changes_to(2, workers, vacant=[3], recallable=[]).drain == [starting]
    changes = changes_to(1, workers, vacant=[3], recallable=[])
    assert (changes.cancel, changes.drain) == ([3], [starting, idle])


def test_nothing_is_done_where_all_are_there():
    changes = changes_to(2, [Hand(0), Hand(1)], vacant=[], recallable=[])
    assert not (changes.cancel or changes.drain or changes.take_back or changes.fill)


@dataclass
class Bench:
    """An engine as the dispatcher's choice sees it."""

    num_under_way: int = 0
    state: WorkerState = WorkerState.SERVING
    reserved_for: object = None
    number: int = 0

    @property
    def draws(self):
        return [None] * self.num_under_way

    @property
    def is_up(self):
        return self.state in (WorkerState.STALE, WorkerState.SERVING)


def suspect(ticket):
    trials = Trials(f"ticket {ticket}", ticket, max_attempts=2)
    trials.must_be_alone = True
    return trials


def chosen(engines, trials):
    """What the dispatcher chooses among engines that have just changed."""
    from cluster.dispatch import Dispatcher

    dispatcher = Dispatcher(SimpleNamespace(engines=engines))
    for number, engine in enumerate(engines):
        engine.number = number
        dispatcher.note(engine)
    return dispatcher._choose(trials)


def test_a_group_goes_to_the_engine_with_the_fewest_and_after_a_failure_to_another():
    engines = [Bench(3), Bench(1), Bench(2), Bench(0, WorkerState.STALE), Bench(0, WorkerState.DRAINING)]
    trials = Trials("ticket 1", 1, max_attempts=2)
    assert chosen(engines, trials) is engines[1]
    trials.last_engine = engines[1]
    assert chosen(engines, trials) is engines[2]
    assert chosen(engines[1:2], trials) is engines[1]
    assert chosen(engines[3:], trials) is None


def test_suspects_wait_until_an_engine_of_their_own_is_empty_and_nobody_else_gets_it():
    from cluster.dispatch import reserve

    engines = [Bench(3), Bench(1), Bench(2)]
    first, second, third = suspect(5), suspect(6), suspect(7)
    reserve(engines, [first, second, third])
    assert [engine.reserved_for for engine in engines] == [None, first, second]
    assert chosen(engines, first) is None
    assert chosen(engines, Trials("ticket 9", 9, 2)) is engines[0]
    engines[1].num_under_way = 0
    assert chosen(engines, first) is engines[1]
    assert chosen(engines, third) is None


def test_the_only_engine_is_given_to_suspects_one_after_another():
    from cluster.dispatch import reserve

    (engine,) = engines = [Bench(0)]
    first, second = suspect(5), suspect(6)
    reserve(engines, [first, second])
    assert chosen(engines, first) is engine and chosen(engines, second) is None
    assert chosen(engines, Trials("ticket 9", 9, 2)) is None
    engine.reserved_for = None
    reserve(engines, [second])
    assert chosen(engines, second) is engine


def test_an_engine_that_drains_is_reserved_for_nobody():
    from cluster.dispatch import reserve

    engines = [Bench(0), Bench(0)]
    waiting = suspect(5)
    reserve(engines, [waiting])
    engines[0].state = WorkerState.DRAINING
    reserve(engines, [waiting])
    assert [engine.reserved_for for engine in engines] == [None, waiting]


QUERY = DrivingQuery(query_id="q", row=3, speed_mps=5.0, navigation="left", plans=("KEEP, STRAIGHT",))
VERSION = WeightVersion(0, 4)


def drawn_group():
    engine = FakeEngine(EngineSettings(model_folder="none", initial_version=VERSION), "engine-0")
    return asyncio.run(engine.generate(7, QUERY, Sampling(num_samples=2)))


def checked(group, versions=(VERSION, VERSION)):
    check_receipt(receipt_of(group), "engine-0", 7, QUERY, 2, versions)


def test_a_whole_group_passes_also_when_its_engine_was_updated_meanwhile():
    checked(drawn_group())
    checked(drawn_group(), (VERSION, WeightVersion(0, 6)))


@pytest.mark.parametrize("kind", sorted(SPOILERS))
def test_every_kind_of_garbage_is_named(kind):
    with pytest.raises(GarbageError, match=r"engine-0 returned garbage for ticket 7 \(q\)"):
        checked(SPOILERS[kind](drawn_group()))


def test_a_close_that_is_cut_off_kills_all_workers(monkeypatch):
    from types import SimpleNamespace

    from cluster.fleet import Craft, Fleet
    from cluster.reward_pool import RewardWorker

    killed = []
    monkeypatch.setattr("cluster.remote.kill", killed.append)

    async def nothing(worker):
        worker.enter(WorkerState.SERVING)

    def make(index, worker_id):
        answered = asyncio.get_running_loop().create_future()
        answered.set_result((index, "node"))
        never = asyncio.get_running_loop().create_future()
        where, close = (SimpleNamespace(remote=lambda reply=reply: reply) for reply in (answered, never))
        return RewardWorker(index, worker_id, SimpleNamespace(where=where, close=close, name=worker_id))

    async def main():
        craft = Craft(
            kind="reward",
            prefix="w",
            make=make,
            start=nothing,
            taken_back_as=WorkerState.SERVING,
            take_back=nothing,
            until_empty=nothing,
            none_left=RuntimeError,
            needs="nothing",
        )
        fleet = Fleet(craft, RestartPolicy(1), 10.0)
        await fleet.start(2)
        closing = asyncio.create_task(fleet.close())
        await asyncio.sleep(0.01)
        assert killed == []
        closing.cancel()
        await asyncio.wait([closing])

    asyncio.run(main())
    assert sorted(actor.name for actor in killed) == ["w0", "w1"]
