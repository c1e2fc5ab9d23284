"""Pairs of scenes that differ in one deciding fact: the colour of the light, or the brake lights ahead.

Nothing else differs, in the scene or in the picture, and no plan is acceptable in both. So whoever
does not look at that fact is right in one scene of a pair at most; `alphadrive.metrics.pairs` counts pairs.
"""

import dataclasses
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from alphadrive.actions import Plan
from alphadrive.world.kinematics import acceptable_plans
from alphadrive.world.render import render
from alphadrive.world.sampling import sample_scene
from alphadrive.world.scene import Scene

MIN_VISIBLE_PIXELS = 8
"""So many pixels at least differ by more than 40 of 255 grey levels in a colour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One thing that decides. `value` reads it (None: it is not there, or in a state that is not used),
    `flipped` gives the same scene with the other value."""

    name: str
    value: Callable[[Scene], str | None]
    flipped: Callable[[Scene], Scene]

    def adapt(self, scene: Scene) -> Scene | None:
        """For `sample_scene`: the scene itself where the fact is there."""
        return scene if self.value(scene) else None


def _light(scene: Scene) -> str | None:
    return scene.light.colour if scene.light and scene.light.colour != "amber" else None


def _other_light(scene: Scene) -> Scene:
    assert scene.light is not None
    light = dataclasses.replace(scene.light, colour="green" if scene.light.colour == "red" else "red")
    return dataclasses.replace(scene, light=light)


def _brake_lights(scene: Scene) -> str | None:
    return None if scene.lead is None else "on" if scene.lead.brake_lights else "off"


def _other_brake_lights(scene: Scene) -> Scene:
    assert scene.lead is not None
    lead = dataclasses.replace(scene.lead, brake_lights=not scene.lead.brake_lights)
    return dataclasses.replace(scene, lead=lead)


FACTS = (
    Fact(name="light", value=_light, flipped=_other_light),
    Fact(name="brake_lights", value=_brake_lights, flipped=_other_brake_lights),
)


def sample_pair(seed: int, fact: Fact) -> tuple[tuple[Scene, Plan], tuple[Scene, Plan]]:
    """Two scenes with the plan recorded in each; the first plan is drawn as in any balanced scene, as far
    as it goes with the fact. Same seed, same pair."""
    for attempt in itertools.count():
        scene, plan = sample_scene((attempt << 96) + seed, adapt=fact.adapt)
        twin = fact.flipped(scene)
        good, good_in_twin = acceptable_plans(scene), acceptable_plans(twin)
        if good_in_twin and not set(good) & set(good_in_twin) and _is_visible(scene, twin):
            return (scene, plan), (twin, random.Random(f"twin-{seed}").choice(good_in_twin))
    raise AssertionError("unreachable")


def _is_visible(scene: Scene, twin: Scene) -> bool:
    """Whether the fact is seen: it may be hidden behind something nearer."""
    here, there = (np.asarray(render(each), dtype=np.int16) for each in (scene, twin))
    return int((np.abs(here - there).max(axis=2) > 40).sum()) >= MIN_VISIBLE_PIXELS
