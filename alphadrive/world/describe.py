"""What is to be seen in a scene, in words; never what to do about it.

The shipped tiny model is pre-trained on these descriptions alone. No plan word (keep, accelerate,
stop, straight, turn, change, …) occurs in them; a test checks that. Distances are rounded to 5 m.
"""

from alphadrive.world.scene import NAVIGATION, Command, Scene, Side

ROUTE: dict[Command, str] = {
    "ahead": "ahead",
    "turn_left": "left",
    "turn_right": "right",
    "move_left": "left lane",
    "move_right": "right lane",
}


def describe_prompt(scene: Scene) -> str:
    """What the tiny model is asked in pre-training: the beginning of the planning prompt, with speed and
    route, and a request for a description instead of a plan."""
    return (
        f"You are an expert driving assistant. Your current speed is {scene.speed_mps:.1f}m/s, the "
        f"navigation command is '{NAVIGATION[scene.command]}'. Describe the driving scene."
    )


def metres(distance_m: float) -> str:
    """A distance as descriptions and explanations state it: the nearest 5 m, at least 5."""
    return f"{max(5, 5 * round(distance_m / 5))} m"


def describe(scene: Scene) -> str:
    """Speed and route as told and all visible facts that can matter, in a fixed order, about 50 words."""
    return ", ".join(
        (
            situation(scene),
            _road(scene),
            _junction(scene),
            light_phrase(scene),
            lead_phrase(scene),
            person_phrase(scene),
            block_phrase(scene),
            f"left lane {lane_state(scene, 'left')}",
            f"right lane {lane_state(scene, 'right')}",
            scene.weather,
            scene.daylight,
        )
    )


def situation(scene: Scene) -> str:
    """`speed 8, route left`: what the prompt says, the speed in whole m/s."""
    return f"speed {scene.speed_mps:.0f}, route {ROUTE[scene.command]}"


def light_phrase(scene: Scene) -> str:
    """`light red at 15 m` or `no light`."""
    return f"light {scene.light.colour} at {metres(scene.light.distance_m)}" if scene.light else "no light"


def lead_phrase(scene: Scene) -> str:
    """`vehicle at 20 m braking`, `vehicle at 20 m rolling` or `no vehicle`."""
    if scene.lead is None:
        return "no vehicle"
    return f"vehicle at {metres(scene.lead.gap_m)} {'braking' if scene.lead.brake_lights else 'rolling'}"


def person_phrase(scene: Scene) -> str:
    """`person on the road at 10 m`, `person beside the road` or `no person`."""
    if scene.pedestrian is None:
        return "no person"
    if not scene.pedestrian.is_on_road:
        return "person beside the road"
    return f"person on the road at {metres(scene.pedestrian.distance_m)}"


def block_phrase(scene: Scene) -> str:
    """`lane blocked at 20 m` or `lane open`."""
    return f"lane blocked at {metres(scene.obstacle.distance_m)}" if scene.obstacle else "lane open"


def lane_state(scene: Scene, side: Side) -> str:
    """`missing`, `free` or `taken at 5 m` (a vehicle in the next lane)."""
    if not scene.road.has_lane(side):
        return "missing"
    neighbour = scene.neighbour(side)
    return "free" if neighbour is None else f"taken at {metres(neighbour.gap_m)}"


def _road(scene: Scene) -> str:
    curvature = scene.road.curvature_1pm
    bend = "no bend" if curvature == 0 else "bend left" if curvature > 0 else "bend right"
    return f"{bend}, {scene.road.num_lanes} lanes"


def _junction(scene: Scene) -> str:
    if scene.junction is None:
        return "no junction"
    exits = [
        name
        for name, is_open in (
            ("left", scene.junction.has_left),
            ("ahead", scene.junction.has_ahead),
            ("right", scene.junction.has_right),
        )
        if is_open
    ]
    return f"junction at {metres(scene.junction.distance_m)} open {' '.join(exits)}"
