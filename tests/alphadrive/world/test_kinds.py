"""The kinds of scenes that test something: pairs, withheld combinations, other looks, real frequencies."""

import io
import random
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from alphadrive.actions import Plan
from alphadrive.data.checks import record_problems
from alphadrive.data.records import DrivingRecord
from alphadrive.errors import ConfigError
from alphadrive.world.choices import KINDS, Kind
from alphadrive.world.counterfactual import FACTS
from alphadrive.world.dataset import synthesize
from alphadrive.world.frequencies import BOREAS_PATHS, BOREAS_SPEEDS, plan_shares
from alphadrive.world.kinds import Population, views
from alphadrive.world.kinematics import acceptable_plans, is_faultless, judge
from alphadrive.world.look import Look, unfamiliar
from alphadrive.world.sampling import PLAN_SHARES, sample_scene
from alphadrive.world.scene import Scene
from alphadrive.world.withheld import COMBINATIONS, is_familiar


def records(kind: Kind, num: int, split: str = "eval", **options: object) -> list[DrivingRecord]:
    return list(synthesize(num, 0, split, 1, kind=kind, **options))  # type: ignore[arg-type]


def pixels(record: DrivingRecord) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(record.images[0].data)), dtype=np.int16)


def scenes(kind: Kind, num: int, split: str = "eval") -> list[tuple[Scene, Plan]]:
    population = Population(kind=kind, frequencies="balanced", split=split, seed=0)
    return [(view.scene, view.recorded) for index in range(num) for view in views(population, index)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_valid_rows_with_names_of_their_own(kind: Kind) -> None:
    made = records(kind, 3)
    assert [problem for record in made for problem in record_problems(record)] == []
    assert len({record.query_id for record in made}) == len(made) == (6 if kind == "counterfactual" else 3)
    assert made == records(kind, 3)


def test_a_pair_differs_in_one_fact_and_no_plan_suits_both() -> None:
    for (scene, plan), (twin, other_plan) in zip(*[iter(scenes("counterfactual", 8))] * 2, strict=True):
        fact = next(fact for fact in FACTS if fact.value(scene) and fact.flipped(scene) == twin)
        assert fact.flipped(twin) == scene != twin
        good, good_in_twin = set(acceptable_plans(scene)), set(acceptable_plans(twin))
        assert plan in good and other_plan in good_in_twin
        assert not good & good_in_twin


def test_the_pictures_of_a_pair_differ_at_the_lamps_only() -> None:
    for one, other in zip(*[iter(records("counterfactual", 6))] * 2, strict=True):
        differs = np.abs(pixels(one) - pixels(other)).max(axis=2) > 0
        rows, columns = np.flatnonzero(differs.any(axis=1)), np.flatnonzero(differs.any(axis=0))
        assert differs.sum() >= 8
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert height * width < 0.25 * differs.size, (one.query_id, height, width)
        assert one.scene_id == other.scene_id and one.query_id != other.query_id


def test_pairs_are_found_by_their_ids_and_take_the_facts_in_turn() -> None:
    made = records("counterfactual", 4)
    marks = [record.query_id.removeprefix(record.scene_id) for record in made]
    assert {frozenset(pair) for pair in zip(marks[::2], marks[1::2], strict=True)} == {
        frozenset({"#light=red", "#light=green"}),
        frozenset({"#brake_lights=on", "#brake_lights=off"}),
    }


@pytest.fixture(scope="module")
def familiar() -> list[Scene]:
    return [scene for scene, _ in scenes("familiar", 120, "train")]


def test_training_never_shows_a_withheld_combination_and_the_test_always_does(familiar: list[Scene]) -> None:
    assert all(is_familiar(scene) for scene in familiar)
    for index, (scene, plan) in enumerate(scenes("withheld", 10)):
        assert COMBINATIONS[index % len(COMBINATIONS)].is_in(scene)
        assert plan in acceptable_plans(scene)


def test_without_the_rule_training_would_show_them() -> None:
    plain = [scene for scene, _ in scenes("plain", 60, "train")]
    assert sum(not is_familiar(scene) for scene in plain) >= 6


def test_both_halves_of_a_combination_are_familiar(familiar: list[Scene]) -> None:
    for combination in COMBINATIONS:
        assert sum(combination.has_first(scene) for scene in familiar) >= 5, combination.name
    assert min(Counter(scene.weather for scene in familiar).values()) >= 5
    assert min(Counter(scene.daylight for scene in familiar).values()) >= 5
    assert any(scene.lead is not None and scene.lead.kind == "truck" for scene in familiar)


@pytest.mark.parametrize("kind", ["ood-camera", "ood-textures", "ood-weather"])
def test_an_unfamiliar_look_changes_the_picture_and_nothing_that_is_asked(kind: Kind) -> None:
    for usual, other in zip(records("plain", 4), records(kind, 4), strict=True):
        assert other.scene_id == usual.scene_id
        assert (other.plans, other.speed_mps, other.navigation) == (
            usual.plans,
            usual.speed_mps,
            usual.navigation,
        )
        assert np.abs(pixels(usual) - pixels(other)).mean() > 2


def test_no_look_of_training_is_unfamiliar() -> None:
    usual = Look()
    for seed in range(50):
        camera = unfamiliar("camera", random.Random(seed)).camera
        assert abs(camera.height_m - usual.camera.height_m) > 0.3
        assert abs(camera.focal_px - usual.camera.focal_px) > 20
        assert abs(camera.horizon_v - usual.camera.horizon_v) > 5
        textures = unfamiliar("textures", random.Random(seed))
        assert textures.asphalt != usual.asphalt and textures.verge != usual.verge and textures.mottling
    population = Population(kind="ood-weather", frequencies="balanced", split="eval", seed=0)
    for index in range(20):
        assert views(population, index)[0].scene.weather != "clear"


def test_the_shares_of_real_drives_have_the_counted_margins() -> None:
    shares = plan_shares("boreas")
    total = sum(BOREAS_SPEEDS.values())
    assert total == sum(BOREAS_PATHS.values()) == 4258
    for word, count in (*BOREAS_SPEEDS.items(), *BOREAS_PATHS.items()):
        margin = sum(share for plan, share in shares.items() if word in plan.split(", "))
        assert margin * total == pytest.approx(count)
    assert plan_shares("balanced") is PLAN_SHARES


def test_scenes_follow_the_shares_they_are_given() -> None:
    recorded = Counter(str(sample_scene(seed, plan_shares("boreas"))[1]) for seed in range(200))
    speeds = Counter[str]()
    for plan, count in recorded.items():
        speeds[plan.split(", ")[0]] += count
    for speed, count in BOREAS_SPEEDS.items():
        assert speeds[speed] / 200 == pytest.approx(count / 4258, abs=0.1)
    turns = sum(count for plan, count in recorded.items() if plan.endswith("_TURN"))
    assert turns / 200 < 0.2


def test_kinds_that_choose_their_plans_refuse_other_frequencies() -> None:
    with pytest.raises(ConfigError, match="--kind withheld with --frequencies boreas"):
        synthesize(4, 0, "eval", 1, kind="withheld", frequencies="boreas")


def test_populations_share_no_scene_unless_they_look_at_the_same() -> None:
    names = {
        (Population(kind=kind, frequencies="balanced", split=split, seed=0)).scene_seed(7)
        for kind in KINDS
        for split in ("train", "eval")
    }
    assert len(names) == 8


def test_one_plan_is_judged_as_all_of_them_are() -> None:
    for seed in range(10):
        scene, _ = sample_scene(seed)
        for plan, verdict in judge(scene).items():
            assert is_faultless(scene, plan) == (verdict.reason in ("", "little progress"))
