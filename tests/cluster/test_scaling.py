"""Requests and the autoscaler, carried out on pools without workers."""

import pytest
from fake_pools import FakePool

from alphadrive.config import AutoscaleConfig
from cluster.buffer import SlotBuffer
from cluster.control import Wishes
from cluster.scaling import Scaling
from cluster.watched import Watched, num_in_service, pending_of
from cluster.workers import WorkerState, WorkerStatus

NOTHING = Wishes()


def watched(rollout=1, reward=1):
    return Watched(
        rollouts=FakePool("rollout", rollout), rewards=FakePool("reward", reward), buffer=SlotBuffer(4, 100)
    )


def fields(step, share=0.0):
    return {"step": step, "throughput": {"loop_s": 10.0 * step, "learner_waited_s": 10.0 * step * share}}


def worker(state, pid=1, groups_done=0, kind="rollout"):
    return WorkerStatus(
        kind=kind,
        id="w",
        pid=pid,
        node=None,
        state=state,
        weight_version=None,
        groups_done=groups_done,
        last_progress_s=None,
    )


def test_a_request_is_carried_out_once():
    parts = watched()
    scaling = Scaling(parts, AutoscaleConfig())
    for second in range(3):
        scaling.act(Wishes(rollout_workers=3), fields(1), second)
    assert (parts.rollouts.resizes, parts.rewards.resizes) == ([3], [])
    scaling.act(Wishes(rollout_workers=3, reward_workers=2), fields(1), 3)
    scaling.act(Wishes(rollout_workers=1, reward_workers=2), fields(1), 4)
    assert (parts.rollouts.resizes, parts.rewards.resizes) == ([3, 1], [2])


def test_a_request_of_before_the_loop_runs_is_kept_for_it():
    parts = watched()
    buffer, parts.buffer = parts.buffer, None
    scaling = Scaling(parts, AutoscaleConfig())
    scaling.act(Wishes(rollout_workers=3), {"step": 0}, 0)
    assert parts.rollouts.resizes == []
    parts.buffer = buffer
    scaling.act(Wishes(rollout_workers=3), {"step": 0}, 1)
    assert parts.rollouts.resizes == [3]


def test_the_autoscaler_grows_the_pool_and_says_why():
    parts = watched()
    scaling = Scaling(parts, AutoscaleConfig(min=1, max=2))
    for step in range(5):
        scaling.act(NOTHING, fields(step, share=0.5), 10.0 * step)
    assert parts.rollouts.resizes == [2]
    told = scaling.as_fields()
    assert (told["min"], told["max"], told["is_on"], told["num_ups"], told["num_downs"]) == (1, 2, True, 1, 0)
    assert (told["last"]["step"], told["last"]["from"], told["last"]["to"]) == (4, 1, 2)
    assert told["last"]["reason"] == "the learner waited 50% of the last 30 s (3 steps), more than 10%"
    assert parts.metrics() == {
        "rollout/num_workers": 1.0,  # the second one starts
        "rollout/num_workers_lost": 0.0,
        "rollout/autoscale_ups": 1.0,
        "rollout/autoscale_downs": 0.0,
    }


def test_a_request_sets_autoscale_aside_even_one_for_the_number_that_is_there():
    parts = watched()
    scaling = Scaling(parts, AutoscaleConfig(min=1, max=4))
    scaling.act(Wishes(rollout_workers=1), fields(0, 0.9), 0.0)
    for step in range(1, 50):
        scaling.act(Wishes(rollout_workers=1), fields(step, 0.9), 10.0 * step)
    assert parts.rollouts.resizes == [1]
    assert scaling.as_fields()["is_on"] is False
    assert scaling.as_fields()["note"] == "set aside until the end of the run by `alphadrive scale`"


def test_a_request_for_reward_workers_leaves_autoscale_on():
    scaling = Scaling(watched(), AutoscaleConfig(min=1, max=4))
    scaling.act(Wishes(reward_workers=3), fields(0), 0.0)
    assert scaling.as_fields()["is_on"] is True


def test_without_bounds_there_is_no_autoscaler():
    parts = watched()
    scaling = Scaling(parts, AutoscaleConfig())
    for step in range(50):
        scaling.act(NOTHING, fields(step, 0.9), 10.0 * step)
    assert (parts.rollouts.resizes, scaling.as_fields()) == ([], None)
    assert parts.metrics() == {"rollout/num_workers": 1.0, "rollout/num_workers_lost": 0.0}


def test_an_engine_that_takes_new_weights_is_in_service_one_that_has_never_served_is_not():
    states = [
        worker(WorkerState.SERVING),
        worker(WorkerState.STALE, groups_done=3),
        worker(WorkerState.STALE, groups_done=0),
        worker(WorkerState.STARTING),
        worker(WorkerState.DRAINING, groups_done=3),
        worker(WorkerState.DEAD, groups_done=3),
        worker(WorkerState.SERVING, kind="reward"),
    ]
    assert num_in_service(states, "rollout") == 2


@pytest.mark.parametrize(
    ("states", "wanted", "waiting", "expected"),
    [
        ([worker(WorkerState.SERVING)], 1, 5, {}),
        ([worker(WorkerState.SERVING), worker(WorkerState.STARTING, pid=None)], 2, 0, {"starting": 1}),
        ([worker(WorkerState.SERVING), worker(WorkerState.STARTING, pid=None)], 2, 5, {"waiting": 1}),
        ([worker(WorkerState.STARTING, pid=None)] * 3, 3, 1, {"waiting": 1, "starting": 2}),
        (
            [worker(WorkerState.SERVING), worker(WorkerState.STARTING), worker(WorkerState.STALE)],
            3,
            5,
            {"starting": 2},
        ),
        (
            [worker(WorkerState.SERVING), worker(WorkerState.DRAINING), worker(WorkerState.DEAD)],
            1,
            0,
            {"draining": 1},
        ),
        ([worker(WorkerState.SERVING)], 2, 0, {"starting": 1}),
    ],
)
def test_pending_is_what_is_missing_and_what_still_drains(states, wanted, waiting, expected):
    pending = pending_of(states, {"rollout": wanted, "reward": 0}, {"rollout": waiting})
    assert {entry["what"]: entry["count"] for entry in pending} == expected
    assert {entry["kind"] for entry in pending} <= {"rollout"}
