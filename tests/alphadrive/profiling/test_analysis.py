"""Hand-made timelines whose answers are known."""

from dataclasses import replace

import pytest
from timelines import learner_bound, recording, span

from alphadrive.errors import InputError
from alphadrive.profiling.analysis import profile_of
from alphadrive.profiling.critical_path import critical_path, median_step
from alphadrive.profiling.intervals import length_ns
from alphadrive.profiling.states import LoopStates, worker_states
from alphadrive.profiling.steps import all_steps, measured_steps
from alphadrive.sizing.gpus import peak_flops


def near(expected):
    return pytest.approx(expected, abs=1e-9)


def test_steps_go_from_wait_to_wait_and_the_first_does_not_count():
    whole = learner_bound()
    assert [(step.number, step.duration_ns / 1e9) for step in all_steps(whole)] == [
        (1, 10.0),
        (2, 10.0),
        (3, 10.0),
        (4, 11.0),
    ]
    assert [step.number for step in measured_steps(whole)] == [2, 3, 4]


def test_steps_in_which_no_group_begins_do_not_count():
    whole = learner_bound()
    driver = whole.tracks["driver"]
    driver.spans[:] = [each for each in driver.spans if each.name != "generate" or each.start_ns < 20e9]
    assert [step.number for step in measured_steps(whole)] == [2]


def test_a_run_of_one_step_is_measured_as_it_is():
    assert [step.number for step in measured_steps(learner_bound(num_steps=1))] == [1]


def test_a_wait_that_led_to_no_step_is_no_step():
    whole = learner_bound()
    whole.tracks["driver"].spans.append(span("loop", "wait", 41, 45, take=9))
    assert len(all_steps(whole)) == 4


def test_shares_of_a_learner_bound_run():
    whole = learner_bound()
    del whole.tracks["driver"].spans[-1]  # the checkpoint
    profile = profile_of(whole)
    assert (profile.first_step, profile.last_step, profile.num_steps) == (2, 4, 3)
    assert (profile.wall_s, profile.step_s) == (near(30.0), near(10.0))
    assert profile.loop == {"weights": near(0.1), "train": near(0.8), "groups": near(0.1)}
    engines = profile.kinds["rollout"]
    assert engines.busy == near(0.3)  # 0.4 to 3.4, two groups or one
    assert engines.idle == {"weights": near(0.1), "tickets": near(0.56), "groups": near(0.04)}
    assert engines.groups_at_once == near(4.0 / 3.0)
    learner = profile.kinds["learner"]
    assert learner.busy == near(0.7)
    assert learner.idle == {"weights": near(0.1), "other": near(0.1), "groups": near(0.1)}
    reward = profile.kinds["reward"]
    assert (reward.busy, reward.idle) == (near(0.04), {"groups": near(0.96)})
    assert profile.overlap == near(0.7)
    assert profile.sync_share == near(0.1)
    assert profile.samples_per_s == near(2 * 3 * 4 / 30)
    assert profile.tokens_per_s == near(2 * 3 * 50 / 30)
    assert profile.mfu is None


def test_evaluation_and_checkpoints_are_causes_and_do_not_count_for_the_overlap():
    profile = profile_of(learner_bound())
    assert profile.wall_s == near(31.0)
    assert profile.loop["checkpoint"] == near(1 / 31)
    assert profile.kinds["learner"].idle["checkpoint"] == near(1 / 31)
    assert profile.kinds["rollout"].idle["checkpoint"] == near(1 / 31)
    assert profile.overlap == near(0.7)


def test_shares_of_a_kind_add_up_to_one():
    for kind in profile_of(learner_bound()).kinds.values():
        assert kind.busy + kind.idle_share == near(1.0)


def test_what_an_engine_is_frozen_for_is_the_weight_sync():
    whole = learner_bound()
    engine = whole.tracks["engine-0"]
    engine.spans.append(span("groups", "generate", 19.0, 19.8, ticket=99))
    steps = measured_steps(whole)
    states = worker_states(engine, LoopStates(whole, steps, [(10 * 10**9, 20 * 10**9)]))
    assert length_ns(states["generate"]) == 3.0e9 + 0.7e9  # all but the pause of 0.1 s
    assert length_ns(states["weights"]) == 0.3e9


def reward_bound():
    """Steps of 4 s: the learner waits 3 s, of them 2 while the group is scored."""
    loop, groups, engine, worker, rank = [], [], [], [], []
    for step in range(3):
        at = 4 * step
        loop += [
            span("loop", "wait", at, at + 3, take=step + 1),
            span("loop", "train", at + 3, at + 4, step=step + 1),
        ]
        groups += [
            span("groups", "generate", at + 0.2, at + 1, ticket=step),
            span("groups", "reward", at + 1, at + 3, ticket=step, tokens=7),
            span("groups", "ready", at + 3, at + 3, ticket=step, take=step + 1),
        ]
        engine.append(span("groups", "generate", at + 0.5, at + 0.9, ticket=step))
        worker.append(span("", "reward", at + 1.1, at + 2.9, groups=1))
        rank.append(span("", "train", at + 3, at + 4, step=step + 1))
    return recording(
        {
            ("driver", "driver"): loop + groups,
            ("rollout", "engine-0"): engine,
            ("reward", "w0"): worker,
            ("learner", "rank-0"): rank,
        }
    )


def test_waits_are_divided_into_groups_and_rewards():
    profile = profile_of(reward_bound())
    assert profile.kinds["learner"].idle == {"reward": near(0.5), "groups": near(0.25)}
    assert profile.kinds["rollout"].idle["reward"] == near(0.5)
    assert profile.kinds["reward"].busy == near(0.45)


def test_the_critical_path_of_a_wait_is_the_life_of_the_group_that_came_last():
    whole = reward_bound()
    path = critical_path(whole, measured_steps(whole)[0])
    assert [(each.phase, each.what, round(each.seconds, 6)) for each in path] == [
        ("wait", "other groups", 0.2),
        ("wait", "order, answer and proof", 0.4),
        ("wait", "generate", 0.4),
        ("wait", "reward", 2.0),
        ("train", "other", 1.0),
    ]


def test_the_critical_path_is_as_long_as_the_step():
    whole = learner_bound()
    step = median_step(measured_steps(whole))
    path = critical_path(whole, step)
    assert sum(each.seconds for each in path) == near(step.duration_ns / 1e9)
    assert {(each.phase, each.what): round(each.seconds, 6) for each in path} == {
        ("wait", "other groups"): 1.0,  # all its groups were there
        ("train", "data_wait"): 0.5,
        ("train", "forward"): 2.0,
        ("train", "backward"): 4.0,
        ("train", "step"): 0.4,
        ("train", "other"): 1.1,
        ("sync", "export"): 0.1,
        ("sync", "canary, learner"): 0.1,
        ("sync", "engines paused"): 0.1,
        ("sync", "engines update and draw canaries"): 0.5,
        ("sync", "telling workers"): 0.2,
    }


def test_training_is_divided_by_the_spans_of_the_slowest_rank():
    whole = learner_bound()
    whole.tracks["rank-1"] = replace(
        whole.tracks["rank-0"],
        source="rank-1",
        spans=[span("", "train", 11.5, 8.9 + 10, step=2), span("", "forward", 11.5, 18.0)],
    )
    path = critical_path(whole, measured_steps(whole)[0])
    forward = next(each.seconds for each in path if each.what == "forward")
    assert forward == near(6.5)


def test_training_is_divided_where_all_is_one_process():
    whole = learner_bound()
    driver = whole.tracks["driver"]
    driver.spans = sorted(driver.spans + whole.tracks.pop("rank-0").spans, key=lambda each: each.start_ns)
    path = critical_path(whole, measured_steps(whole)[0])
    assert next(each.seconds for each in path if each.what == "forward") == near(2.0)


def test_a_worker_counts_for_the_time_that_it_was_there():
    whole = learner_bound()
    late = replace(whole.tracks["engine-0"], source="engine-1", seen_ns=[], spans=[])
    late.spans += [
        span("groups", "generate", 30, 35, ticket=50),
        span("groups", "generate", 35, 40, ticket=51),
    ]
    whole.tracks["engine-1"] = late
    workers = profile_of(whole).kinds["rollout"].workers
    assert workers["engine-1"] == near(1.0)
    assert workers["engine-0"] == near(9.0 / 31.0)


def test_mfu_is_the_arithmetic_by_what_the_gpus_could_do():
    whole = learner_bound()
    rank = whole.tracks["rank-0"]
    rank.facts["device"] = "NVIDIA H100 80GB HBM3"
    whole.facts["model.dtype"] = "bfloat16"
    rank.spans[:] = [
        each._replace(args=each.args | {"flops": 7.0 * 0.4 * 989e12}) if each.name == "train" else each
        for each in rank.spans
    ]
    profile = profile_of(whole)
    assert (profile.mfu, profile.mfu_of_wall) == (near(0.4), near(0.4 * 21 / 31))


def test_a_gpu_without_a_known_peak_has_no_mfu():
    assert peak_flops("NVIDIA H200", "bfloat16") == 989e12
    assert peak_flops("NVIDIA L40", "bfloat16") is None
    assert peak_flops("", "bfloat16") is None


def test_sft_has_a_learner_only():
    loop, rank = [], []
    for step in range(4):
        loop += [
            span("loop", "wait", 2 * step, 2 * step + 0.1),
            span("loop", "train", 2 * step + 0.1, 2 * step + 1.5, step=step + 1, tokens=100),
        ]
        rank.append(span("", "train", 2 * step + 0.2, 2 * step + 1.2, step=step + 1))
    whole = recording({("driver", "driver"): loop, ("learner", "rank-0"): rank}, **{"sft.batch_size": 8})
    profile = profile_of(whole)
    assert (profile.overlap, profile.samples_per_s) == (None, near(3 * 8 / 5.5))
    assert profile.kinds["learner"].busy == near(3 / 5.5)


@pytest.mark.parametrize("spans", [[], [span("loop", "wait", 0, 1, take=1)]])
def test_a_recording_without_a_step_is_an_input_error(spans):
    with pytest.raises(InputError, match="no whole step"):
        profile_of(recording({("driver", "driver"): spans}))
