"""Balanced scenes: a plan is drawn first, then scenes are proposed until one accepts it.

So the recorded plans follow `PLAN_SHARES` whatever the proposals look like, and neither the
majority nor speed and route alone say much about them.
"""

import random
from collections.abc import Callable, Mapping

from alphadrive.actions import Plan, parse_plan
from alphadrive.world.kinematics import acceptable_plans, is_faultless
from alphadrive.world.scene import (
    Clutter,
    ClutterKind,
    Command,
    Junction,
    LightColour,
    Obstacle,
    Pedestrian,
    Road,
    Scene,
    Side,
    TrafficLight,
    Vehicle,
)

PLAN_SHARES = {
    "KEEP, STRAIGHT": 0.13,
    "ACCELERATE, STRAIGHT": 0.12,
    "DECELERATE, STRAIGHT": 0.14,
    "STOP, STRAIGHT": 0.15,
    "KEEP, LEFT_TURN": 0.05,
    "DECELERATE, LEFT_TURN": 0.06,
    "ACCELERATE, LEFT_TURN": 0.03,
    "KEEP, RIGHT_TURN": 0.05,
    "DECELERATE, RIGHT_TURN": 0.06,
    "ACCELERATE, RIGHT_TURN": 0.03,
    "KEEP, LEFT_CHANGE": 0.06,
    "ACCELERATE, LEFT_CHANGE": 0.03,
    "KEEP, RIGHT_CHANGE": 0.06,
    "ACCELERATE, RIGHT_CHANGE": 0.03,
}
"""Share of each recorded plan. STRAIGHT is 54 % of them; no plan is above 15 %."""

Adapt = Callable[[Scene], Scene | None]
_MAX_PROPOSALS = 2000

_CAR_COLOURS = ((150, 35, 35), (40, 60, 130), (215, 215, 215), (60, 60, 66), (125, 130, 135), (190, 165, 70))
_CLUTTER: tuple[ClutterKind, ...] = ("tree", "tree", "house", "parked_car", "sign", "lamp", "oncoming_car")
_COMMANDS: tuple[Command, ...] = ("ahead", "turn_left", "turn_right", "move_left", "move_right")


def sample_scene(
    seed: int, shares: Mapping[str, float] = PLAN_SHARES, adapt: Adapt | None = None
) -> tuple[Scene, Plan]:
    """A scene and the plan its driver followed, one of the acceptable ones. Same seed, same scene.

    The plan is drawn by `shares`. `adapt` turns a proposal into the kind of scene that is wanted, or
    refuses it (None); where it and a plan hardly go together, another plan is drawn.
    """
    rng = random.Random(f"scene-{seed}")
    while True:
        plan = parse_plan(rng.choices(list(shares), weights=list(shares.values()))[0])
        assert plan is not None
        for _ in range(_MAX_PROPOSALS):
            proposed = _propose(rng, plan)
            scene = proposed if adapt is None else adapt(proposed)
            if scene and is_faultless(scene, plan) and plan in acceptable_plans(scene):
                return scene, plan


def _propose(rng: random.Random, plan: Plan) -> Scene:
    """A scene in which `plan` may well be acceptable, with everything else left to chance."""
    command = _command(rng, plan)
    is_turn = plan.path.endswith("_TURN")
    is_change = plan.path.endswith("_CHANGE")
    has_junction = is_turn or rng.random() < (0.25 if is_change else 0.55)
    num_lanes = rng.choice((2, 3)) if is_change or command.startswith("move") else rng.choice((1, 2, 2, 3))
    road = Road(
        num_lanes=num_lanes,
        ego_lane=rng.randrange(num_lanes),
        curvature_1pm=0.0
        if has_junction or rng.random() < 0.5
        else rng.choice((-1, 1)) / rng.uniform(70, 160),
    )
    speed_mps = round(rng.uniform(2.0, 12.5), 1)
    junction = _junction(rng, command) if has_junction else None
    light = None
    if junction is not None and rng.random() < 0.65:
        light = TrafficLight(distance_m=max(2.0, junction.distance_m - 1.5), colour=_light_colour(rng))
    elif rng.random() < 0.12:
        light = TrafficLight(distance_m=round(rng.uniform(4, 45), 1), colour=_light_colour(rng))
    lead = None
    if rng.random() < 0.45:
        lead = _vehicle(rng, gap_m=round(rng.uniform(3.5, 40), 1), brake_lights=rng.random() < 0.5)
    obstacle = None
    if rng.random() < (0.45 if is_change and command == "ahead" else 0.08):
        near = lead.gap_m - 4.0 if lead else 45.0
        if near > 10:
            obstacle = Obstacle(
                distance_m=round(rng.uniform(8, near), 1), kind=rng.choice(("cones", "barrier", "crates"))
            )
            lead = None
    return Scene(
        speed_mps=speed_mps,
        command=command,
        road=road,
        junction=junction,
        light=light,
        lead=lead,
        neighbours=_neighbours(rng, road),
        pedestrian=_pedestrian(rng, road),
        obstacle=obstacle,
        weather=rng.choices(("clear", "rain", "fog", "snow"), weights=(55, 20, 13, 12))[0],
        daylight=rng.choices(("day", "dusk", "night"), weights=(60, 20, 20))[0],
        clutter=_clutter(rng, road, junction),
        seed=rng.randrange(1 << 30),
    )


def _command(rng: random.Random, plan: Plan) -> Command:
    if plan.path == "LEFT_TURN":
        return "turn_left"
    if plan.path == "RIGHT_TURN":
        return "turn_right"
    if plan.path.endswith("_CHANGE"):
        side: Command = "move_left" if plan.path == "LEFT_CHANGE" else "move_right"
        return side if rng.random() < 0.6 else "ahead"
    return rng.choices(_COMMANDS, weights=(24, 22, 22, 16, 16))[0]


def _junction(rng: random.Random, command: Command) -> Junction:
    exits = {"has_left": True, "has_right": True, "has_ahead": True}
    missing = rng.choice(("none", "has_left", "has_right", "has_ahead"))
    needed = {"turn_left": "has_left", "turn_right": "has_right"}.get(command, "has_ahead")
    if missing not in ("none", needed):
        exits[missing] = False
    return Junction(distance_m=round(rng.uniform(4, 45), 1), **exits)


def _light_colour(rng: random.Random) -> LightColour:
    return rng.choices(("red", "amber", "green"), weights=(45, 10, 45))[0]


def _vehicle(rng: random.Random, gap_m: float, lane_offset: int = 0, brake_lights: bool = False) -> Vehicle:
    return Vehicle(
        gap_m=gap_m,
        lane_offset=lane_offset,
        brake_lights=brake_lights,
        kind=rng.choices(("car", "van", "truck"), weights=(70, 20, 10))[0],
        colour=rng.choice(_CAR_COLOURS),
    )


def _neighbours(rng: random.Random, road: Road) -> tuple[Vehicle, ...]:
    vehicles = []
    sides: tuple[tuple[Side, int], ...] = (("left", 1), ("right", -1))
    for side, offset in sides:
        if road.has_lane(side) and rng.random() < 0.45:
            gap_m = rng.uniform(5, 10) if rng.random() < 0.65 else rng.uniform(18, 45)
            vehicles.append(_vehicle(rng, round(gap_m, 1), offset, rng.random() < 0.15))
    return tuple(vehicles)


def _pedestrian(rng: random.Random, road: Road) -> Pedestrian | None:
    if rng.random() > 0.3:
        return None
    distance_m = round(rng.uniform(5, 40), 1)
    right_edge = -(road.num_lanes - road.ego_lane - 0.5) * 3.5
    if rng.random() < 0.45:
        return Pedestrian(distance_m=distance_m, y_m=round(rng.uniform(-1.4, 1.4), 1), is_on_road=True)
    return Pedestrian(
        distance_m=distance_m, y_m=round(right_edge - rng.uniform(1.0, 2.5), 1), is_on_road=False
    )


def _clutter(rng: random.Random, road: Road, junction: Junction | None) -> tuple[Clutter, ...]:
    right = -(road.num_lanes - road.ego_lane - 0.5) * 3.5
    left = (road.ego_lane + 1.5) * 3.5
    things = []
    for _ in range(rng.randint(3, 8)):
        kind = rng.choice(_CLUTTER)
        distance_m = rng.uniform(8, 80)
        is_left = rng.random() < 0.5
        aside = {"parked_car": 1.4, "house": 11.0, "tree": 5.0, "sign": 2.2, "lamp": 2.0}.get(kind, 0.0)
        aside += rng.uniform(0, 6) if kind in ("tree", "house") else 0.0
        y_m = left + aside if is_left else right - aside
        if kind == "oncoming_car":
            y_m = left - 1.75
        in_the_mouth = junction is not None and -2 < distance_m - junction.distance_m < 12
        if in_the_mouth and kind != "oncoming_car":
            continue
        colour = (
            rng.choice(_CAR_COLOURS)
            if kind.endswith("car")
            else (rng.randint(70, 200), rng.randint(60, 180), rng.randint(50, 170))
        )
        things.append(
            Clutter(kind=kind, distance_m=distance_m, y_m=y_m, colour=colour, size=rng.uniform(0.8, 1.4))
        )
    return tuple(things)
