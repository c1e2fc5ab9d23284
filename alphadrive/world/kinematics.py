"""What may be done in a scene: every plan is driven for three seconds and judged.

Each SPEED word is a speed profile, each PATH word a line. A plan that hits something, runs a red
light, leaves the road, misses the route or follows too closely is wrong, with that severity. Of
the others, those are acceptable whose progress and comfort come near the best one's; the rest are
wrong too, mildly. `judge` is what other modules need; `is_faultless` answers for one plan, quickly.
"""

from dataclasses import dataclass
from itertools import pairwise

from alphadrive.actions import PATHS, SPEEDS, Path, Plan, Speed
from alphadrive.world.scene import LANE_WIDTH_M, Scene, Side

HORIZON_S = 3.0
STEP_S = 0.1
NUM_STEPS = round(HORIZON_S / STEP_S)

SPEED_LIMIT_MPS = 12.0
COMFORTABLE_BRAKE_MPS2 = 3.0
LEAD_BRAKE_MPS2 = 4.5
CLEARANCE_M = 1.5
TURN_SPEED_MPS = 6.5
LANE_CHANGE_S = 2.5
NEIGHBOUR_CLEAR_M = 14.0
TOLERATED_LOSS = 2.4
"""How far below the best plan's score, in m/s of final speed, a plan is still acceptable."""

SEVERITY = {
    "collision": 1.0,
    "red light": 0.9,
    "off the road": 0.8,
    "off the route": 0.5,
    "too close": 0.4,
    "too fast for the turn": 0.4,
    "little progress": 0.2,
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What driving a plan led to. `severity` is in [0, 1], 0 for an acceptable plan; `reason` is a
    key of SEVERITY, or "" where the severity is 0."""

    severity: float
    reason: str


def speed_profile(speed_mps: float, word: Speed) -> list[float]:
    """Speeds [m/s] at 0, 0.1, … 3.0 s (31 values) for a SPEED word.

    ACCELERATE +1.5 m/s² up to 14 m/s; DECELERATE -2 m/s² down to a walk of 1 m/s; STOP halts within
    2.5 s.
    """
    times = [step * STEP_S for step in range(NUM_STEPS + 1)]
    if word == "KEEP":
        return [speed_mps] * len(times)
    if word == "ACCELERATE":
        return [min(max(14.0, speed_mps), speed_mps + 1.5 * t) for t in times]
    if word == "DECELERATE":
        return [max(min(1.0, speed_mps), speed_mps - 2.0 * t) for t in times]
    return [max(0.0, speed_mps * (1 - t / 2.5)) for t in times]


def travelled(speeds_mps: list[float]) -> list[float]:
    """Distances [m] from the start for a speed profile (trapezoids), same length."""
    distances = [0.0]
    for before, after in pairwise(speeds_mps):
        distances.append(distances[-1] + 0.5 * (before + after) * STEP_S)
    return distances


def lateral_shift(path: Path, t_s: float) -> float:
    """Lateral offset [m, left positive] from the own lane's centre during a lane change."""
    if path not in ("LEFT_CHANGE", "RIGHT_CHANGE"):
        return 0.0
    share = min(1.0, t_s / LANE_CHANGE_S)
    shift = LANE_WIDTH_M * share * share * (3 - 2 * share)
    return shift if path == "LEFT_CHANGE" else -shift


def judge(scene: Scene) -> dict[Plan, Verdict]:
    """The verdict on each of the 20 plans."""
    faults: dict[Plan, str] = {}
    scores: dict[Plan, float] = {}
    for speed in SPEEDS:
        speeds_mps = speed_profile(scene.speed_mps, speed)
        distances_m = travelled(speeds_mps)
        for path in PATHS:
            plan = Plan(speed, path)
            fault = _worst_fault(scene, path, speeds_mps, distances_m)
            if fault:
                faults[plan] = fault
            else:
                scores[plan] = _score(scene, speeds_mps)
    best = max(scores.values(), default=0.0)
    verdicts = {}
    for plan in (Plan(speed, path) for speed in SPEEDS for path in PATHS):
        if plan in faults:
            verdicts[plan] = Verdict(SEVERITY[faults[plan]], faults[plan])
        elif scores[plan] < best - TOLERATED_LOSS:
            verdicts[plan] = Verdict(SEVERITY["little progress"], "little progress")
        else:
            verdicts[plan] = Verdict(0.0, "")
    return verdicts


def acceptable_plans(scene: Scene) -> list[Plan]:
    """The plans with severity 0, in the order of the vocabulary."""
    return [plan for plan, verdict in judge(scene).items() if verdict.severity == 0]


def is_faultless(scene: Scene, plan: Plan) -> bool:
    """Whether driving this one plan does nothing wrong; it may still make too little progress. Twenty
    times as quick as `judge`."""
    speeds_mps = speed_profile(scene.speed_mps, plan.speed)
    return not _worst_fault(scene, plan.path, speeds_mps, travelled(speeds_mps))


def _score(scene: Scene, speeds_mps: list[float]) -> float:
    """Final speed within the limit, less twice the excess over it, less half the mean |acceleration|."""
    final = speeds_mps[-1]
    excess = max(0.0, final - max(SPEED_LIMIT_MPS, scene.speed_mps))
    return final - 3.0 * excess - 0.5 * abs(final - scene.speed_mps) / HORIZON_S


def _worst_fault(scene: Scene, path: Path, speeds_mps: list[float], distances_m: list[float]) -> str:
    faults = [
        *_road_faults(scene, path, speeds_mps, distances_m),
        *_light_faults(scene, speeds_mps, distances_m),
        *_traffic_faults(scene, path, speeds_mps, distances_m),
    ]
    return max(faults, key=lambda fault: SEVERITY[fault], default="")


def _road_faults(scene: Scene, path: Path, speeds_mps: list[float], distances_m: list[float]) -> list[str]:
    end_m = distances_m[-1]
    junction, command = scene.junction, scene.command
    faults = []
    if path in ("LEFT_CHANGE", "RIGHT_CHANGE"):
        side: Side = "left" if path == "LEFT_CHANGE" else "right"
        if not scene.road.has_lane(side):
            return ["off the road"]
        reaches_junction = junction is not None and end_m > junction.distance_m
        is_wanted = command == f"move_{side}" or _lane_is_blocked(scene)
        if not is_wanted or reaches_junction or end_m < 6.0:
            faults.append("off the route")
    elif path in ("LEFT_TURN", "RIGHT_TURN"):
        side = "left" if path == "LEFT_TURN" else "right"
        has_exit = junction is not None and (junction.has_left if side == "left" else junction.has_right)
        if junction is None or not has_exit or end_m < junction.distance_m + 2.0:
            return ["off the road"]
        if command != f"turn_{side}":
            faults.append("off the route")
        if _speed_at(junction.distance_m, speeds_mps, distances_m) > TURN_SPEED_MPS:
            faults.append("too fast for the turn")
    elif path == "STRAIGHT":
        if junction is not None and not junction.has_ahead and end_m > junction.distance_m + 3.0:
            faults.append("off the road")
        if junction is not None and command in ("turn_left", "turn_right"):
            if end_m > junction.distance_m + 2.0:
                faults.append("off the route")
            elif not _can_slow(speeds_mps[-1], TURN_SPEED_MPS, junction.distance_m - end_m):
                faults.append("too fast for the turn")
        if _should_move_now(scene) and speeds_mps[-1] > 2.0:
            faults.append("off the route")
    return faults


def _light_faults(scene: Scene, speeds_mps: list[float], distances_m: list[float]) -> list[str]:
    light = scene.light
    if light is None or light.colour == "green":
        return []
    if light.colour == "amber" and not _can_slow(scene.speed_mps, 0.0, light.distance_m):
        return []
    left_m = light.distance_m - distances_m[-1]
    if left_m < 0 or not _can_slow(speeds_mps[-1], 0.0, left_m + 0.5):
        return ["red light"]
    return []


def _traffic_faults(scene: Scene, path: Path, speeds_mps: list[float], distances_m: list[float]) -> list[str]:
    faults = []
    stays = path not in ("LEFT_CHANGE", "RIGHT_CHANGE")
    if scene.lead is not None:
        faults += _lead_faults(scene, stays, speeds_mps, distances_m)
    if scene.pedestrian is not None and scene.pedestrian.is_on_road:
        faults += _standing_faults(scene.pedestrian.distance_m - CLEARANCE_M, speeds_mps, distances_m)
    if scene.obstacle is not None:
        at_m = scene.obstacle.distance_m - CLEARANCE_M
        if stays:
            faults += _standing_faults(at_m, speeds_mps, distances_m)
        else:
            reached = next((i for i, d in enumerate(distances_m) if d >= at_m), None)
            if reached is not None and abs(lateral_shift(path, reached * STEP_S)) < 2.2:
                faults.append("collision")
    if not stays:
        neighbour = scene.neighbour("left" if path == "LEFT_CHANGE" else "right")
        if neighbour is not None and neighbour.gap_m < NEIGHBOUR_CLEAR_M:
            faults.append("collision")
    return faults


def _lead_faults(scene: Scene, stays: bool, speeds_mps: list[float], distances_m: list[float]) -> list[str]:
    """The lead drives at the ego's speed; with brake lights on it brakes at 4.5 m/s² to a halt."""
    lead = scene.lead
    assert lead is not None
    brake = LEAD_BRAKE_MPS2 if lead.brake_lights else 0.0
    lead_speed = max(scene.speed_mps, 3.0) if not lead.brake_lights else scene.speed_mps
    steps = NUM_STEPS if stays else round(1.2 / STEP_S)
    lead_m = lead.gap_m
    for step in range(1, steps + 1):
        lead_m += lead_speed * STEP_S
        lead_speed = max(0.0, lead_speed - brake * STEP_S)
        if lead_m - distances_m[step] < CLEARANCE_M:
            return ["collision"]
    if not stays:
        return []
    gap_m = lead_m - distances_m[-1]
    halt_m = lead_speed * lead_speed / (2 * LEAD_BRAKE_MPS2) if lead.brake_lights else 0.0
    if lead.brake_lights and not _can_slow(speeds_mps[-1], 0.0, gap_m + halt_m - CLEARANCE_M):
        return ["collision"]
    closing = speeds_mps[-1] > lead_speed
    return ["too close"] if closing and gap_m < 2.0 + 0.8 * speeds_mps[-1] else []


def _standing_faults(at_m: float, speeds_mps: list[float], distances_m: list[float]) -> list[str]:
    left_m = at_m - distances_m[-1]
    if left_m < 0 or not _can_slow(speeds_mps[-1], 0.0, left_m):
        return ["collision"]
    return []


def _can_slow(speed_mps: float, target_mps: float, within_m: float) -> bool:
    """Whether braking at 3 m/s² reaches the target speed within the distance."""
    if speed_mps <= target_mps:
        return True
    return (speed_mps**2 - target_mps**2) / (2 * COMFORTABLE_BRAKE_MPS2) <= within_m


def _speed_at(distance_m: float, speeds_mps: list[float], distances_m: list[float]) -> float:
    return next((v for v, d in zip(speeds_mps, distances_m, strict=True) if d >= distance_m), speeds_mps[-1])


def _lane_is_blocked(scene: Scene) -> bool:
    return scene.obstacle is not None and scene.obstacle.distance_m < 45.0


def _should_move_now(scene: Scene) -> bool:
    """Whether the route asks for the next lane, which exists and is free."""
    if scene.command not in ("move_left", "move_right") or scene.speed_mps < 3.0:
        return False
    side: Side = "left" if scene.command == "move_left" else "right"
    neighbour = scene.neighbour(side)
    is_free = neighbour is None or neighbour.gap_m >= NEIGHBOUR_CLEAR_M
    has_room = scene.junction is None or scene.junction.distance_m > scene.speed_mps * HORIZON_S + 7.0
    return scene.road.has_lane(side) and is_free and has_room
