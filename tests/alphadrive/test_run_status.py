"""A run's status as text."""

from typing import Any

import pytest

from alphadrive.run_status import age_text, pending_lines, status_text

NOW_S = 10_000.0


def status(**changes: Any) -> dict[str, Any]:
    whole: dict[str, Any] = {
        "live": True,
        "status": "running",
        "stage": "grpo",
        "step": 12,
        "steps": 100,
        "attempt": 0,
        "pid": 4711,
        "host": "node-a",
        "started_s": 9_800.0,
        "updated_s": NOW_S - 1.0,
        "checkpoint_step": 10,
        "weight_version": "0.12",
        "throughput": {"samples_per_s": 84.26, "tokens_per_s": 5310.4, "learner_idle_share": 0.123},
        "buffer": {"slots": 16, "held": 12, "ready": 4},
        "validation": {"step": 10, "val/planning_accuracy": 0.612},
        "dead_letters": 1,
        "pending": [],
        "workers": [
            worker("rollout", "engine-0", pid=4720, node="a1b2c3d4e5f6", groups_done=96),
            worker("rollout", "engine-1", state="STARTING", weight_version=None, last_progress_s=None),
            worker("learner", "rank-0", pid=4721, node="a1b2c3d4e5f6", groups_done=96),
        ],
    }
    return whole | changes


def worker(kind: str, name: str, **changes: Any) -> dict[str, Any]:
    whole: dict[str, Any] = {
        "kind": kind,
        "id": name,
        "pid": None,
        "node": None,
        "state": "SERVING",
        "weight_version": "0.12",
        "groups_done": 0,
        "last_progress_s": NOW_S - 1.4,
    }
    return whole | changes


def test_a_live_run_on_one_screen() -> None:
    assert status_text("runs/first", status(), NOW_S).splitlines() == [
        "runs/first: running",
        "  stage        grpo, attempt 0, process 4711 on node-a, 3 min 19 s long",
        "  step         12 of 100, newest checkpoint of step 10",
        "  weights      0.12",
        "  throughput   84.3 samples/s, 5310 tokens/s, learner idle 12%",
        "  buffer       16 slots, 12 held, 4 ready",
        "  validation   planning accuracy 61.2% at step 10",
        "  dead letters 1",
        "",
        "  kind     id        pid   node      state     weights  groups  last progress",
        "  rollout  engine-0  4720  a1b2c3d4  SERVING   0.12     96      0.4 s ago",
        "  rollout  engine-1  -     -         STARTING  -        0       -",
        "  learner  rank-0    4721  a1b2c3d4  SERVING   0.12     96      0.4 s ago",
    ]


def test_what_a_run_that_starts_does_not_know_yet_is_left_out() -> None:
    early = status(status="starting", step=0, workers=[], checkpoint_step=None)
    for key in ("throughput", "buffer", "validation", "dead_letters", "weight_version"):
        del early[key]
    assert status_text("r", early, NOW_S).splitlines() == [
        "r: starting",
        "  stage        grpo, attempt 0, process 4711 on node-a, 3 min 19 s long",
        "  step         0 of 100, no checkpoint yet",
    ]


def test_a_run_that_is_not_live_says_so_first() -> None:
    dead = status(live=False, status="crashed", note="r: it crashed", updated_s=NOW_S - 75)
    assert status_text("r", dead, NOW_S).splitlines()[:3] == [
        "r: crashed",
        "  not live, this is from status.json, written 1 min 15 s ago",
        "  r: it crashed",
    ]


def test_why_a_run_ended_stands_in_the_first_line() -> None:
    ended = status(live=False, status="failed", reason="LearnerError: no", note="n")
    assert status_text("r", ended, NOW_S).splitlines()[0] == "r: failed (LearnerError: no)"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {
                "is_on": True,
                "last": {"from": 2, "to": 3, "step": 8, "reason": "the learner waited 50% of the last 30 s"},
            },
            "1 to 4 workers, 2 up, 1 down; last 2 -> 3 at step 8: the learner waited 50% of the last 30 s",
        ),
        ({"is_on": False, "note": "set aside", "last": None}, "1 to 4 workers, 2 up, 1 down; set aside"),
        ({"is_on": True, "last": None}, "1 to 4 workers, 2 up, 1 down"),
    ],
)
def test_autoscale_is_told_with_its_last_decision(changes: dict[str, Any], expected: str) -> None:
    autoscale = {"min": 1, "max": 4, "num_ups": 2, "num_downs": 1, "note": ""} | changes
    lines = status_text("r", status(autoscale=autoscale), NOW_S).splitlines()
    assert f"  autoscale    {expected}" in lines


def test_workers_that_the_cluster_has_no_room_for_are_told_with_what_they_need() -> None:
    pending = [
        {"kind": "rollout", "count": 2, "what": "waiting", "needs": {"CPU": 2.0, "GPU": 1.0}},
        {"kind": "reward", "count": 1, "what": "draining"},
    ]
    lines = [
        "2 rollout workers waiting for room in the cluster: 2 CPU and 1 GPU each; Ray has been asked for it",
        "1 reward worker draining",
    ]
    waiting = status(pending=pending)
    assert pending_lines(waiting) == lines
    in_pool = status(pending=[pending[0] | {"pool": "pool=rollout"}])
    assert pending_lines(in_pool) == [lines[0].replace("each", "each on a node with pool=rollout")]
    assert status_text("r", waiting, NOW_S).splitlines()[8:10] == [
        f"  pending      {lines[0]}",
        f"               {lines[1]}",
    ]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.0, "0.0 s"), (9.94, "9.9 s"), (59.4, "59 s"), (60.0, "1 min 0 s"), (3600.0, "1 h 0 min")],
)
def test_ages(seconds: float, expected: str) -> None:
    assert age_text(seconds) == expected
