"""The values a scene is made of. Drawn by `sampling`, judged by `kinematics`, painted by `render`."""

from dataclasses import dataclass
from typing import Literal

LANE_WIDTH_M = 3.5
JUNCTION_DEPTH_M = 9.0

Side = Literal["left", "right"]
Weather = Literal["clear", "rain", "fog", "snow"]
Daylight = Literal["day", "dusk", "night"]
LightColour = Literal["red", "amber", "green"]
ClutterKind = Literal["tree", "house", "parked_car", "sign", "oncoming_car", "lamp"]
Command = Literal["ahead", "turn_left", "turn_right", "move_left", "move_right"]

NAVIGATION: dict[Command, str] = {
    "ahead": "follow the road",
    "turn_left": "left at the next junction",
    "turn_right": "right at the next junction",
    "move_left": "take the left lane",
    "move_right": "take the right lane",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Road:
    """`num_lanes` lanes in the ego's direction, lane 0 the leftmost, and one opposing lane left of
    them. `curvature_1pm` is in 1/m, positive to the left."""

    num_lanes: int
    ego_lane: int
    curvature_1pm: float = 0.0

    def has_lane(self, side: Side) -> bool:
        """Whether there is a lane of the ego's direction on that side."""
        return self.ego_lane > 0 if side == "left" else self.ego_lane < self.num_lanes - 1

    def centre_y(self, x_m: float) -> float:
        """Lateral position of the ego lane's centre at `x_m` ahead."""
        return 0.5 * self.curvature_1pm * x_m * x_m


@dataclass(frozen=True, slots=True, kw_only=True)
class Junction:
    """A crossing road whose near edge is `distance_m` ahead; the exits that exist."""

    distance_m: float
    has_left: bool = True
    has_right: bool = True
    has_ahead: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficLight:
    """A light and its stop line, `distance_m` ahead."""

    distance_m: float
    colour: LightColour


@dataclass(frozen=True, slots=True, kw_only=True)
class Vehicle:
    """A vehicle driving the ego's way, `lane_offset` lanes to the left of the ego (0: ahead of it,
    -1: on the right). `gap_m` is bumper to bumper."""

    gap_m: float
    lane_offset: int = 0
    brake_lights: bool = False
    kind: Literal["car", "van", "truck"] = "car"
    colour: tuple[int, int, int] = (90, 90, 160)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pedestrian:
    """Somebody `distance_m` ahead at lateral `y_m`; on the road or waiting beside it."""

    distance_m: float
    y_m: float
    is_on_road: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Obstacle:
    """Something that blocks the ego's lane `distance_m` ahead."""

    distance_m: float
    kind: Literal["cones", "barrier", "crates"] = "cones"


@dataclass(frozen=True, slots=True, kw_only=True)
class Clutter:
    """Something beside the road that decides nothing; `y_m` is its lateral position."""

    kind: ClutterKind
    distance_m: float
    y_m: float
    colour: tuple[int, int, int]
    size: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One moment: all that is there, the ego's speed and where it is sent."""

    speed_mps: float
    command: Command
    road: Road
    junction: Junction | None = None
    light: TrafficLight | None = None
    lead: Vehicle | None = None
    neighbours: tuple[Vehicle, ...] = ()
    pedestrian: Pedestrian | None = None
    obstacle: Obstacle | None = None
    weather: Weather = "clear"
    daylight: Daylight = "day"
    clutter: tuple[Clutter, ...] = ()
    seed: int = 0
    """Of the picture's grain."""

    def neighbour(self, side: Side) -> Vehicle | None:
        """The vehicle in the next lane on that side, if any."""
        offset = 1 if side == "left" else -1
        return next((vehicle for vehicle in self.neighbours if vehicle.lane_offset == offset), None)
