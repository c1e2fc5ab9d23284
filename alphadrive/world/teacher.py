"""The rule-made teacher: it sees everything, decides late or hastily, and explains.

It stands for the large model that explains driving decisions in the paper (section 3.4), with its
weakness made explicit: it names what it sees, but more often than not it does not yet act on what is
far away. Imitating it therefore has a ceiling; the reward, which knows every acceptable plan, does
not have it. `docs/world.md` states the error rate, a test measures it.
"""

import dataclasses
import random

from alphadrive.actions import Plan
from alphadrive.world.describe import (
    block_phrase,
    lane_state,
    lead_phrase,
    light_phrase,
    metres,
    person_phrase,
    situation,
)
from alphadrive.world.kinematics import acceptable_plans
from alphadrive.world.scene import Scene, Side

FAR_M = 10.0
IGNORES_FAR = 0.7
IGNORES_NEAR = 0.2
IGNORES_NEIGHBOUR = 0.5


def explain(scene: Scene, recorded: Plan, seed: int) -> tuple[str, Plan]:
    """The teacher's reasoning and the plan it decided on, for a scene and the plan its driver
    followed. The plan is none of the acceptable ones where it ignored something decisive."""
    rng = random.Random(f"teacher-{seed}")
    minded = _ignore(scene, rng)
    choices = acceptable_plans(minded)
    decided = recorded if recorded in choices or not choices else rng.choice(choices)
    return reasoning(scene, decided), decided


def _ignore(scene: Scene, rng: random.Random) -> Scene:
    """The scene as far as the teacher acts on it."""
    minded = scene

    def is_ignored(distance_m: float) -> bool:
        return rng.random() < (IGNORES_FAR if distance_m > FAR_M else IGNORES_NEAR)

    if scene.light and is_ignored(scene.light.distance_m):
        minded = dataclasses.replace(minded, light=None)
    if scene.lead and scene.lead.brake_lights and is_ignored(scene.lead.gap_m):
        minded = dataclasses.replace(minded, lead=dataclasses.replace(scene.lead, brake_lights=False))
    if scene.pedestrian and scene.pedestrian.is_on_road and is_ignored(scene.pedestrian.distance_m):
        minded = dataclasses.replace(minded, pedestrian=None)
    if scene.obstacle and is_ignored(scene.obstacle.distance_m):
        minded = dataclasses.replace(minded, obstacle=None)
    if scene.junction and is_ignored(scene.junction.distance_m) and scene.light is None:
        minded = dataclasses.replace(minded, junction=None)
    if scene.neighbours and rng.random() < IGNORES_NEIGHBOUR:
        minded = dataclasses.replace(minded, neighbours=())
    return minded


def reasoning(scene: Scene, plan: Plan) -> str:
    """The situation, then what decides the path, then what decides the speed."""
    told = situation(scene)
    return f"{told[0].upper()}{told[1:]}, {_path_reason(scene, plan)}. {_speed_reason(scene, plan)}."


def _path_reason(scene: Scene, plan: Plan) -> str:
    junction_at = f"junction at {metres(scene.junction.distance_m)}" if scene.junction else "no junction"
    if plan.path.endswith("_TURN"):
        return f"{junction_at}, so take it to the {'left' if plan.path == 'LEFT_TURN' else 'right'}"
    if plan.path.endswith("_CHANGE"):
        side: Side = "left" if plan.path == "LEFT_CHANGE" else "right"
        cause = f"{block_phrase(scene)}, " if scene.obstacle else ""
        return f"{cause}{side} lane {lane_state(scene, side)}, so move over"
    if scene.command in ("turn_left", "turn_right"):
        return f"{junction_at}, so not yet"
    if scene.command in ("move_left", "move_right"):
        side = "left" if scene.command == "move_left" else "right"
        return f"{side} lane {lane_state(scene, side)}, so stay in lane"
    return "so stay in lane"


def _speed_reason(scene: Scene, plan: Plan) -> str:
    facts = [
        light_phrase(scene) if scene.light else "",
        lead_phrase(scene) if scene.lead else "",
        person_phrase(scene) if scene.pedestrian and scene.pedestrian.is_on_road else "",
        block_phrase(scene) if scene.obstacle and not plan.path.endswith("_CHANGE") else "",
    ]
    seen = ", ".join(fact for fact in facts if fact) or "nothing in the way"
    result = {
        "KEEP": "so hold the speed",
        "ACCELERATE": "so go faster",
        "DECELERATE": "so slow down",
        "STOP": "so come to a halt",
    }[plan.speed]
    return f"{seen[0].upper()}{seen[1:]}, {result}"
