"""Further terms: what each pays, how they are chosen, and that a failure never becomes a number."""

import math
import sys

import pytest
from reward_groups import answer, completions_of, group_of, query_of

from alphadrive.actions import Plan
from alphadrive.config import RewardConfig, default_config
from alphadrive.errors import ConfigError, RewardError
from alphadrive.prompts import answer_text
from rewards import score_group
from rewards.consistency import consistency_values, contradictions, named_actions
from rewards.further import FurtherTerm, load_terms
from rewards.length import length_values
from rewards.trajectory import average_displacement_m, bounds_kept, trajectory_values

STRAIGHT_8 = tuple((4.0 * i, 0.0) for i in range(1, 7))


def test_length_takes_nothing_up_to_the_limit_and_all_at_twice():
    texts = ["x" * count for count in (0, 40, 50, 60, 80, 500)]
    assert length_values(completions_of(texts), 40) == pytest.approx([0, 0, -0.25, -0.5, -1, -1])


@pytest.mark.parametrize(
    ("reasoning", "named"),
    [
        ("The light is red, so slow down and stop.", ["DECELERATE", "STOP"]),
        ("Nothing ahead: keep a steady speed and go straight.", ["KEEP", "STRAIGHT"]),
        ("There is no need to stop; speed up, then turn left.", ["ACCELERATE", "LEFT_TURN"]),
        ("A stop sign at 20 m, so reduce the speed.", ["DECELERATE"]),
        ("The lane is blocked, so change lanes to the right.", ["RIGHT_CHANGE"]),
        ("STOP, LEFT_CHANGE", ["STOP", "LEFT_CHANGE"]),
        ("We must not turn right\n here, but rather   turn\nleft", ["LEFT_TURN"]),
        ("Light red at 15 m, vehicle at 20 m braking.", []),
        ("unstoppable nonstop keepsake", []),
    ],
)
def test_actions_that_a_reasoning_names(reasoning, named):
    assert named_actions(reasoning) == named


def test_the_action_named_last_must_be_the_answers():
    go = Plan("ACCELERATE", "STRAIGHT")
    assert contradictions("We could stop, but the light is green: accelerate.", go) == []
    assert contradictions("Speed up now? No, stop, and turn left.", go) == ["STOP", "LEFT_TURN"]
    everything = "keep the speed, speed up, slow down, stop, go straight, turn left"
    assert contradictions(everything, go) == ["STOP", "LEFT_TURN"]


def test_consistency_of_whole_completions():
    texts = [
        answer("STOP, STRAIGHT", "the light is red, so stop"),
        answer("KEEP, STRAIGHT", "the light is red, so stop"),
        answer("KEEP, STRAIGHT", "stop and turn left"),
        answer("KEEP, STRAIGHT", "the road is clear"),
        "<think> stop </think>",
        "<answer> KEEP, STRAIGHT </answer> stop",
    ]
    assert consistency_values(completions_of(texts)) == [0, -0.5, -1, 0, -1, 0]


def test_consistency_of_a_very_long_reasoning_comes_back():
    texts = [answer("STOP, STRAIGHT", part * 20_000) for part in ("keep my ", "not  ", "keep ", "stop ", " ")]
    assert len(consistency_values(completions_of(texts))) == 5


def test_average_displacement_by_hand():
    shifted = tuple((x, y + 3.0) for x, y in STRAIGHT_8[:3]) + STRAIGHT_8[3:]
    assert average_displacement_m(shifted, STRAIGHT_8) == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("name", "points", "speed_mps", "kept"),
    [
        ("steady", STRAIGHT_8, 8.0, (True, True, True, True)),
        ("parked", ((0.0, 0.0),) * 6, 0.0, (True, True, True, True)),
        # 8 m/s to 0 within a quarter of a second, then nothing: -32 m/s2.
        ("wall", ((0.0, 0.0),) * 6, 8.0, (False, True, False, True)),
        # 10 m/s to the side from the second point on: a quarter turn in half a second.
        ("corner", ((5.0, 0.0), *((5.0, 5.0 * i) for i in range(1, 6))), 10.0, (True, False, True, False)),
        # A circle of 50 m at 12 m/s: 2.88 m/s2 to the side, 0.24 rad/s.
        (
            "bend",
            tuple((50 * math.sin(0.12 * i), 50 * (1 - math.cos(0.12 * i))) for i in range(1, 7)),
            12.0,
            (True, True, True, True),
        ),
    ],
)
def test_comfort_bounds(name, points, speed_mps, kept):
    assert bounds_kept(points, speed_mps) == kept


def test_trajectory_pays_nearness_times_comfort_and_nothing_for_what_cannot_be_read():
    off = tuple((x, y + 1.5) for x, y in STRAIGHT_8)
    far = tuple((x, y + 9.0) for x, y in STRAIGHT_8)
    texts = [answer_text("a", "KEEP, STRAIGHT", points) for points in (STRAIGHT_8, off, far)]
    completions = completions_of([*texts, answer("KEEP, STRAIGHT")])
    query = query_of(waypoints=STRAIGHT_8, speed_mps=8.0)
    exact, near, far_off, unread = trajectory_values(query, completions, cap_m=3.0)
    assert (exact, far_off, unread) == (1.0, 0.0, 0.0)
    # 1.5 m of 3 m; the jump to the side in the first half second breaks lateral and yaw rate bounds.
    assert near == pytest.approx(0.5 * sum(bounds_kept(off, 8.0)) / 4)


@pytest.mark.parametrize("waypoints", [None, STRAIGHT_8[:4]])
def test_a_query_without_waypoints_is_an_error_and_never_a_zero(waypoints):
    with pytest.raises(RewardError, match="waypoints: got"):
        trajectory_values(query_of(waypoints=waypoints), completions_of(["x"]), cap_m=3.0)


def test_terms_are_weighted_and_added_to_the_total():
    terms = load_terms(RewardConfig(weights={"length": 0.5, "consistency": 0.0}, length_chars=10), ".")
    assert [term.name for term in terms] == ["length"]
    (reward, _) = score_group(group_of([answer("ACCELERATE, STRAIGHT")] * 2), further=terms).rewards
    assert list(reward.terms) == ["speed", "path", "format", "length"]
    assert reward.terms["length"] == -0.5
    assert reward.total == sum(reward.terms.values())


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda query, completions: 1 / 0, "raised ZeroDivisionError: division by zero"),
        (lambda query, completions: [math.nan] * 2, "gave nan for completion 0, expected a finite number"),
        (lambda query, completions: [1.0, math.inf], "gave inf for completion 1"),
        (lambda query, completions: [1.0], "gave 1 values, expected 2"),
        (lambda query, completions: [1.0, None], "gave None for completion 1"),
        (lambda query, completions: [1.0, "0.5"], "gave '0.5' for completion 1"),
        (lambda query, completions: None, "raised TypeError"),
        (lambda query, completions: 0.5, "raised TypeError"),
    ],
)
def test_a_broken_term_is_an_error_that_names_query_and_term(function, reason):
    term = FurtherTerm(name="mine:f", weight=1.0, function=function)
    with pytest.raises(RewardError, match="query q0: reward term 'mine:f' ") as caught:
        score_group(group_of(["a", "b"]), further=[term])
    assert reason in str(caught.value)


def test_numbers_of_other_libraries_count_as_numbers():
    numpy = pytest.importorskip("numpy")
    term = FurtherTerm(name="m:f", weight=2.0, function=lambda query, completions: numpy.float32([0.5, 1]))
    rewards = score_group(group_of(["a", "b"]), further=[term]).rewards
    assert [reward.total for reward in rewards] == [1.0, 2.0]


@pytest.fixture
def users_folder(tmp_path):
    """A folder with a module and a package of the user's, found there and nowhere else."""
    path = list(sys.path)
    (tmp_path / "my_module_for_rewards.py").write_text(
        "def longest(query, completions):\n    return [float(len(c.text)) for c in completions]\n"
        "def one(query):\n    return [1.0]\nNOT_A_FUNCTION = 3\n"
    )
    (tmp_path / "broken_module_for_rewards.py").write_text("import not_installed_anywhere\n")
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards" / "__init__.py").write_text("raise RuntimeError('not ours')\n")
    (tmp_path / "rewards" / "beside.py").write_text("FACTOR = 3\n")
    (tmp_path / "rewards" / "smooth.py").write_text(
        "import beside\nfrom rewards.strict import DIVERSITY_SHARE\n"
        "def smooth(query, completions):\n    return [beside.FACTOR * DIVERSITY_SHARE for c in completions]\n"
    )
    yield tmp_path
    sys.path[:] = path
    for name in ("my_module_for_rewards", "beside"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("name", "value"), [("my_module_for_rewards:longest", 2.0), ("rewards/smooth.py:smooth", 0.6)]
)
def test_a_function_of_the_users_is_found_by_module_or_file(users_folder, name, value):
    (term,) = load_terms(RewardConfig(weights={name: 1.0}), users_folder)
    rewards = score_group(group_of(["aa", "bb"]), further=[term]).rewards
    assert [reward.terms[name] for reward in rewards] == pytest.approx([value] * 2)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no_such_module_at_all:f", "cannot be imported: ModuleNotFoundError"),
        ("my_module_for_rewards:shortest", "my_module_for_rewards.py has no 'shortest'"),
        ("my_module_for_rewards:NOT_A_FUNCTION", "has a int, no function"),
        ("my_module_for_rewards:one", "cannot be called with a query and a list of completions"),
        ("broken_module_for_rewards:f", "cannot be imported: ModuleNotFoundError.*not_installed_anywhere"),
        ("nowhere.py:f", "cannot be imported: FileNotFoundError"),
        ("rewards.smooth:smooth", r"hides: name the file instead, as in rewards/smooth\.py:function"),
    ],
)
def test_a_function_that_cannot_be_used_is_a_configuration_error(users_folder, name, reason):
    with pytest.raises(ConfigError, match=f"rewards\\.weights\\.{name}: .*{reason}"):
        load_terms(RewardConfig(weights={name: 1.0}), users_folder)


def test_weights_come_from_overrides_with_dots_and_slashes_in_their_names():
    config = default_config(
        ["rewards.weights.length=0.1", "rewards.weights.a.b:f=0.5", "rewards.weights.x/y.py:g=2"]
    )
    assert config.rewards.weights == {"length": 0.1, "a.b:f": 0.5, "x/y.py:g": 2.0}


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("rewards.weights.lenght=0.1", r"rewards\.weights\.lenght: no such term; did you mean 'length'\?"),
        ("rewards.weights.beauty=1", r"rewards\.weights\.beauty: no such term; expected one of trajectory"),
        ("rewards.weights.length=.nan", r"rewards\.weights\.length=nan: expected a finite number"),
        ("rewards.weights.length=much", "rewards.weights=.*has the wrong type"),
        ("rewards.weights.trajectory=1", r"while data\.trajectory=False"),
        ("rewards.weights.judge=1", r"rewards\.judge_url=None: expected an http.*\n.*judge_model=None"),
        (
            "rewards.variant=strickt",
            "variant=strickt: expected one of strict, paper, released, random",
        ),
        ("rewards.length_chars=0", r"rewards\.length_chars=0: expected 1 or more"),
    ],
)
def test_a_wrong_key_of_the_rewards_is_refused(override, reason):
    with pytest.raises(ConfigError, match=reason):
        default_config([override])


def test_a_judge_may_not_outlast_its_worker():
    judge = ["rewards.weights.judge=1", "rewards.judge_url=http://h/v1", "rewards.judge_model=m"]
    default_config(judge)
    with pytest.raises(ConfigError, match=r"= 40\.0 reaches rewards\.timeout_s=30\.0"):
        default_config([*judge, "rewards.judge_timeout_s=20"])
