"""Combinations kept from training, to see whether what was learnt apart is put together.

Each half of a combination is frequent in `familiar` scenes, the two together never occur there;
`withheld` scenes hold one combination each at least. A planner trained on the first kind meets the
second kind for the first time when it is tested.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from alphadrive.world.sampling import Adapt
from alphadrive.world.scene import Scene


@dataclass(frozen=True, slots=True, kw_only=True)
class Combination:
    """Two things that occur together only where they are `withheld`.

    `has_first` is about what stands in the scene; `with_second` changes a scene to have the other half,
    without a change to where anything stands.
    """

    name: str
    has_first: Callable[[Scene], bool]
    with_second: Callable[[Scene], Scene]

    def is_in(self, scene: Scene) -> bool:
        """Whether a scene shows both."""
        return self.has_first(scene) and self.with_second(scene) == scene

    def adapt(self, scene: Scene) -> Scene | None:
        """The scene with both, or None where the first is missing."""
        return self.with_second(scene) if self.has_first(scene) else None


def _braking_truck(scene: Scene) -> Scene:
    assert scene.lead is not None
    return dataclasses.replace(scene, lead=dataclasses.replace(scene.lead, kind="truck"))


COMBINATIONS = (
    Combination(
        name="red light at night",
        has_first=lambda scene: scene.light is not None and scene.light.colour == "red",
        with_second=lambda scene: dataclasses.replace(scene, daylight="night"),
    ),
    Combination(
        name="person on the road in rain",
        has_first=lambda scene: scene.pedestrian is not None and scene.pedestrian.is_on_road,
        with_second=lambda scene: dataclasses.replace(scene, weather="rain"),
    ),
    Combination(
        name="blocked lane at dusk",
        has_first=lambda scene: scene.obstacle is not None,
        with_second=lambda scene: dataclasses.replace(scene, daylight="dusk"),
    ),
    Combination(
        name="braking truck ahead",
        has_first=lambda scene: scene.lead is not None and scene.lead.brake_lights,
        with_second=_braking_truck,
    ),
    Combination(
        name="left turn in snow",
        has_first=lambda scene: scene.command == "turn_left" and scene.junction is not None,
        with_second=lambda scene: dataclasses.replace(scene, weather="snow"),
    ),
)


def is_familiar(scene: Scene) -> bool:
    """Whether a scene shows none of the withheld combinations."""
    return not any(combination.is_in(scene) for combination in COMBINATIONS)


def familiar(scene: Scene) -> Scene | None:
    """For `sample_scene`: the scene itself where it is familiar."""
    return scene if is_familiar(scene) else None


def with_combination(index: int) -> tuple[Combination, Adapt]:
    """The combination that scene `index` of a withheld split must show (each in its turn), and the
    adaptation that makes it show it."""
    combination = COMBINATIONS[index % len(COMBINATIONS)]
    return combination, combination.adapt
