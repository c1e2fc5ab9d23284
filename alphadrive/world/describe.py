"""What is to be seen in a scene, in words; never what to do about it.

The shipped tiny model is pre-trained on these descriptions alone. No plan word (keep, accelerate,
stop, straight, turn, change, …) occurs in them; a test checks that. Distances are rounded to 5 m.
"""

from alphadrive.world.scene import Scene, Side

DESCRIBE_PROMPT = "Describe the scene."


def metres(distance_m: float) -> str:
    """A distance as descriptions and explanations state it: the nearest 5 m, at least 5."""
    return f"{max(5, 5 * round(distance_m / 5))} m"


def describe(scene: Scene) -> str:
    """All visible facts that can matter, in a fixed order, about 50 words."""
    return ", ".join(
        (
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
