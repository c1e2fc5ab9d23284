"""What is said of runs whose limit is known."""

import re

import pytest
from timelines import FACTS, learner_bound

from alphadrive.profiling.analysis import KindProfile, Profile, profile_of
from alphadrive.profiling.report import report_json, report_text
from alphadrive.profiling.verdict import cores_note, verdict_of


def kind(count, busy, **idle):
    return KindProfile(count=count, busy=busy, idle=idle, workers={})


def profile(loop, rollout, learner, reward=None, **facts):
    kinds = {"rollout": rollout, "learner": learner, "reward": reward or kind(1, 0.05, groups=0.95)}
    return Profile(
        facts=FACTS | facts,
        first_step=2,
        last_step=11,
        num_steps=10,
        wall_s=100.0,
        step_s=10.0,
        samples_per_s=3.0,
        tokens_per_s=90.0,
        loop=loop,
        kinds={name: each for name, each in kinds.items() if each is not None},
        overlap=0.9,
        sync_share=loop.get("weights", 0.0),
        mfu=None,
        mfu_of_wall=None,
        median_step=5,
        critical_path=[],
        clock_error_s=0.0,
        dropped_spans=0,
    )


def test_learner_bound():
    verdict = verdict_of(
        profile(
            {"train": 0.95, "weights": 0.05},
            kind(3, 0.59, tickets=0.4, weights=0.01),
            kind(1, 0.95, weights=0.05),
        )
    )
    assert verdict.bound == "learner"
    assert verdict.words == (
        "learner-bound: rollout engines idle 41% (tickets 40%, weights 1%); drop to 2 rollout workers or add "
        "learner ranks"
    )


def test_a_whole_timeline_is_judged():
    verdict = verdict_of(profile_of(learner_bound()))
    assert verdict.words.startswith("learner-bound: rollout engines idle 71% (tickets 54%, weights 10%")


def test_learner_bound_with_nothing_to_drop():
    verdict = verdict_of(profile({"train": 0.95}, kind(1, 0.5, tickets=0.5), kind(1, 0.95, weights=0.05)))
    assert verdict.words.endswith("; add learner ranks")


def test_rollout_bound():
    verdict = verdict_of(
        profile(
            {"train": 0.5, "groups": 0.45, "weights": 0.05},
            kind(2, 0.97, weights=0.03),
            kind(1, 0.5, groups=0.45, weights=0.05),
        )
    )
    assert verdict.bound == "rollout"
    assert "the learner idle 50% (groups 45%" in verdict.words
    assert verdict.words.endswith("raise rollout.num_workers from 2 to 4")


def test_balanced():
    verdict = verdict_of(
        profile({"train": 0.93, "groups": 0.07}, kind(2, 0.95, tickets=0.05), kind(1, 0.93, groups=0.07))
    )
    assert verdict.bound == "balanced"


def test_reward_bound_by_busy_workers_and_by_waits():
    slow = kind(1, 0.96, groups=0.04)
    waits = kind(1, 0.4, reward=0.6)
    for engines in (kind(1, 0.5, reward=0.5), kind(1, 0.2, reward=0.8)):
        verdict = verdict_of(profile({"train": 0.4, "reward": 0.6}, engines, waits, slow))
        assert verdict.bound == "reward"
        assert "raise rewards.num_workers from 1 to 3" in verdict.words


def test_sync_bound():
    verdict = verdict_of(
        profile(
            {"train": 0.5, "weights": 0.4, "groups": 0.1},
            kind(1, 0.5, weights=0.4, tickets=0.1),
            kind(1, 0.5, weights=0.4, groups=0.1),
        )
    )
    assert verdict.bound == "sync" and "weight sync takes 40%" in verdict.words


def test_taking_turns():
    parts = ({"train": 0.5, "groups": 0.5}, kind(1, 0.5, tickets=0.5), kind(1, 0.5, groups=0.5))
    verdict = verdict_of(profile(*parts, **{"grpo.max_policy_lag": 0}))
    assert verdict.bound == "turns" and "grpo.max_policy_lag=1" in verdict.words
    assert verdict_of(profile(*parts)).bound == "rollout"


@pytest.mark.parametrize(
    ("name", "remedy"), [("checkpoint", "checkpoint.every_steps"), ("evaluation", "eval.every_steps")]
)
def test_what_takes_more_than_anything_else(name, remedy):
    verdict = verdict_of(
        profile({name: 0.6, "train": 0.4}, kind(1, 0.9, **{name: 0.1}), kind(1, 0.4, **{name: 0.6}))
    )
    assert verdict.bound == name and remedy in verdict.words


def test_a_learner_alone():
    alone = profile({"train": 0.9, "checkpoint": 0.1}, kind(1, 0.0), kind(1, 0.9, checkpoint=0.1))
    del alone.kinds["rollout"]
    verdict = verdict_of(alone)
    assert verdict.bound == "learner-only" and "train 90%" in verdict.words


def test_cores_that_are_shared_are_told_of():
    parts = ({"train": 0.95}, kind(3, 0.59, tickets=0.41), kind(1, 0.95, weights=0.05))
    assert "4 engines and learner ranks share 2 cores" in cores_note(profile(*parts, cores=2))
    assert cores_note(profile(*parts, cores=16)) is None
    assert cores_note(profile(*parts, cores=2, gpus=1.0)) is None


def test_the_text_has_all_of_it_and_ends_in_the_verdict():
    text = report_text("runs/first", profile_of(learner_bound()))
    assert re.search(r"train +77.4% +#{31}\n", text)
    assert re.search(r"rollout +1 +29.0% +71.0%", text)
    assert "1.3 groups at once" in text
    assert re.search(r"train +backward +4.000 s +40.0%", text)
    assert "overlap      0.70" in text and "weight sync  9.7%" in text and "MFU          not known" in text
    assert text.splitlines()[-1].startswith("verdict: ")


def test_the_json_has_the_same():
    told = report_json("runs/first", profile_of(learner_bound()))
    assert told["kinds"]["rollout"]["busy"] == pytest.approx(9 / 31)
    assert told["critical_path"][0] == {"phase": "wait", "what": "other groups", "seconds": 1.0}
    assert set(told["verdict"]) == {"bound", "words"}
