"""How a scene looks: a pinhole camera, painted from far to near with Pillow.

`render(scene)` gives the front image at the size models see it (224 x 112, so 8 x 4 vision tokens
of 28 pixels). All that decides the plan is in it: lamps, brake lights, people, blocked lanes,
junction mouths and free lanes are drawn large enough to be told apart at that size.
"""

import math
import random
from collections.abc import Callable
from functools import partial

import numpy as np
from PIL import Image, ImageDraw

from alphadrive.world.look import HEIGHT, SUPERSAMPLING, USUAL_LOOK, WIDTH, Camera, Colour, Look
from alphadrive.world.scene import JUNCTION_DEPTH_M, LANE_WIDTH_M, Clutter, Scene, Vehicle

__all__ = ["HEIGHT", "WIDTH", "render"]

_SCALE = SUPERSAMPLING
_FAR_M = 140.0
_PATCH_M = 0.6

_SKY: dict[str, Colour] = {"day": (150, 190, 230), "dusk": (205, 150, 120), "night": (22, 26, 44)}
_HAZE: dict[str, Colour] = {"day": (196, 202, 208), "dusk": (170, 145, 135), "night": (48, 52, 62)}
_LIT = {"day": 1.0, "dusk": 0.72, "night": 0.42}
_LAMP: dict[str, Colour] = {"red": (255, 40, 30), "amber": (255, 185, 30), "green": (40, 255, 110)}
_BODY = {"car": (1.85, 1.45), "van": (2.0, 2.1), "truck": (2.4, 3.0)}


class _Painter:
    def __init__(self, scene: Scene, look: Look) -> None:
        self.scene = scene
        self.look = look
        self.camera: Camera = look.camera
        self.rng = random.Random(scene.seed)
        sight_m = {"clear": 260.0, "rain": 110.0, "fog": 42.0, "snow": 75.0}[scene.weather]
        self.sight_m = sight_m * look.sight
        self.image = Image.new("RGB", (WIDTH * _SCALE, HEIGHT * _SCALE), _SKY[scene.daylight])
        self.draw = ImageDraw.Draw(self.image)

    def shade(self, colour: Colour, x_m: float, glows: bool = False) -> Colour:
        """The colour as seen from `x_m` away: dimmed by daylight (unless it glows) and hazed."""
        lit = 1.0 if glows else _LIT[self.scene.daylight]
        haze = _HAZE[self.scene.daylight]
        share = math.exp(-x_m / (self.sight_m * (2.2 if glows else 1.0)))
        r, g, b = (round(c * lit * share + h * (1 - share)) for c, h in zip(colour, haze, strict=True))
        return r, g, b

    def quad(self, corners: list[tuple[float, float, float]], colour: Colour, glows: bool = False) -> None:
        x_m = min(x for x, _, _ in corners)
        self.draw.polygon(
            [self.camera.project(*corner) for corner in corners], fill=self.shade(colour, x_m, glows)
        )

    def strip(
        self, y_left: float, y_right: float, colour: Colour, start: float = 1.2, end: float = _FAR_M
    ) -> None:
        """A band along the road between two lateral positions, following its curve."""
        x = start
        while x < end:
            nxt = min(end, x + max(1.5, x * 0.18))
            here, there = self.scene.road.centre_y(x), self.scene.road.centre_y(nxt)
            self.quad(
                [
                    (x, here + y_left, 0),
                    (nxt, there + y_left, 0),
                    (nxt, there + y_right, 0),
                    (x, here + y_right, 0),
                ],
                colour,
            )
            x = nxt

    def box(
        self, x: float, y: float, half: float, z0: float, z1: float, colour: Colour, glows: bool = False
    ) -> None:
        """An upright rectangle facing the camera."""
        self.quad([(x, y + half, z0), (x, y + half, z1), (x, y - half, z1), (x, y - half, z0)], colour, glows)

    def disc(self, x: float, y: float, z: float, radius: float, colour: Colour, glows: bool = True) -> None:
        u, v = self.camera.project(x, y, z)
        r = max(self.camera.focal_px * radius / max(x, 0.8) * _SCALE, 1.6 * _SCALE if glows else 0.8)
        self.draw.ellipse((u - r, v - r, u + r, v + r), fill=self.shade(colour, x, glows))


def render(scene: Scene, look: Look = USUAL_LOOK) -> Image.Image:
    """The front image of a scene, 224 x 112 RGB. Same scene and look, same pixels."""
    painter = _Painter(scene, look)
    _ground(painter)
    _road(painter)
    if look.mottling:
        _mottle(painter)
    things: list[tuple[float, Callable[[], None]]] = []
    things += [(clutter.distance_m, partial(_clutter, painter, clutter)) for clutter in scene.clutter]
    vehicles = [*scene.neighbours, *([scene.lead] if scene.lead else [])]
    things += [(vehicle.gap_m + 2.0, partial(_vehicle, painter, vehicle)) for vehicle in vehicles]
    if scene.light:
        things.append((scene.light.distance_m + 1.0, partial(_light, painter)))
    if scene.pedestrian:
        things.append((scene.pedestrian.distance_m, partial(_pedestrian, painter)))
    if scene.obstacle:
        things.append((scene.obstacle.distance_m, partial(_obstacle, painter)))
    for _, paint in sorted(things, key=lambda thing: -thing[0]):
        paint()
    return _weather(painter, painter.image.reduce(_SCALE))


def _ground(painter: _Painter) -> None:
    scene, draw = painter.scene, painter.draw
    horizon = round(painter.camera.horizon_v * _SCALE)
    sky, haze = _SKY[scene.daylight], painter.shade((0, 0, 0), 1e6)
    hazed = {"clear": 0.25, "rain": 0.7, "fog": 0.97, "snow": 0.8}[scene.weather]
    for v in range(0, horizon, _SCALE):
        share = hazed * v / horizon + (0.3 if scene.weather != "clear" else 0.0) * (1 - v / horizon)
        r, g, b = (round(s * (1 - share) + h * share) for s, h in zip(sky, haze, strict=True))
        draw.rectangle((0, v, WIDTH * _SCALE, v + _SCALE), fill=(r, g, b))
    soil = painter.look.snowy_verge if scene.weather == "snow" else painter.look.verge
    for v in range(horizon, HEIGHT * _SCALE, _SCALE):
        x_m = painter.camera.focal_px * painter.camera.height_m / max((v - horizon) / _SCALE, 0.8)
        draw.rectangle((0, v, WIDTH * _SCALE, v + _SCALE), fill=painter.shade(soil, x_m))


def _road(painter: _Painter) -> None:
    scene, road = painter.scene, painter.scene.road
    left = (road.ego_lane + 0.5) * LANE_WIDTH_M
    right = -(road.num_lanes - road.ego_lane - 0.5) * LANE_WIDTH_M
    look = painter.look
    asphalt = look.asphalt if scene.weather != "rain" else look.wet_asphalt
    junction = scene.junction
    end = _FAR_M
    if junction is not None and not junction.has_ahead:
        end = junction.distance_m + JUNCTION_DEPTH_M
    painter.strip(left + LANE_WIDTH_M + 2.0, right - 2.0, look.kerb, end=end)
    painter.strip(left + LANE_WIDTH_M, right, asphalt, end=end)
    marked_to = end
    if junction is not None:
        near, far = junction.distance_m, junction.distance_m + JUNCTION_DEPTH_M
        y_left = 70.0 if junction.has_left else left + LANE_WIDTH_M
        y_right = -70.0 if junction.has_right else right
        painter.quad([(near, y_left, 0), (far, y_left, 0), (far, y_right, 0), (near, y_right, 0)], asphalt)
        marked_to = near
    white: Colour = (235, 235, 235)
    for start, stop in ((1.2, marked_to), (marked_to + JUNCTION_DEPTH_M, end)):
        if stop - start < 1:
            continue
        painter.strip(left + 0.12, left - 0.12, (225, 190, 60), start, stop)
        painter.strip(right + 0.25, right + 0.1, white, start, stop)
        for lane in range(1, road.num_lanes):
            y = left - lane * LANE_WIDTH_M
            x = start + 1.0
            while x < min(stop, 70.0):
                painter.strip(y + 0.09, y - 0.09, white, x, min(x + 2.5, stop))
                x += 6.0
    if scene.light is not None:
        x = scene.light.distance_m
        painter.quad([(x, left, 0), (x + 0.7, left, 0), (x + 0.7, right, 0), (x, right, 0)], white)
    if scene.pedestrian is not None and scene.pedestrian.is_on_road:
        x = scene.pedestrian.distance_m - 1.2
        y = left
        while y > right:
            painter.quad([(x, y, 0), (x + 2.4, y, 0), (x + 2.4, y - 0.5, 0), (x, y - 0.5, 0)], white)
            y -= 1.1


def _mottle(painter: _Painter) -> None:
    """Patches on everything that lies flat, in perspective; finer than a pixel far away, so faded there."""
    camera, top = painter.camera, math.ceil(painter.camera.horizon_v * _SCALE) + 1
    pixels = np.asarray(painter.image, dtype=np.float32).copy()
    v, u = np.mgrid[top : HEIGHT * _SCALE, 0 : WIDTH * _SCALE] / _SCALE
    x_m = camera.focal_px * camera.height_m / (v - camera.horizon_v)
    y_m = (u - camera.centre_u) * x_m / camera.focal_px
    patches = np.random.default_rng(painter.scene.seed).normal(0.0, painter.look.mottling, (64, 64))
    shade = patches[(x_m / _PATCH_M).astype(int) % 64, np.floor(y_m / _PATCH_M).astype(int) % 64]
    pixels[top:] += (shade * np.exp(-x_m / 15.0) * _LIT[painter.scene.daylight])[:, :, None]
    painter.image.paste(Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)))


def _vehicle(painter: _Painter, vehicle: Vehicle) -> None:
    x = vehicle.gap_m + 2.0
    y = painter.scene.road.centre_y(x) + vehicle.lane_offset * LANE_WIDTH_M
    width, height = _BODY[vehicle.kind]
    half = width / 2
    painter.quad(
        [(x - 0.4, y + half, 0), (x + 3, y + half, 0), (x + 3, y - half, 0), (x - 0.4, y - half, 0)],
        (28, 28, 30),
    )
    painter.box(x, y, half, 0.28, height, vehicle.colour)
    painter.box(x, y, half * 0.8, height * 0.58, height * 0.93, (30, 36, 44))
    painter.box(x, y - half * 0.72, 0.16, 0.0, 0.45, (16, 16, 16))
    painter.box(x, y + half * 0.72, 0.16, 0.0, 0.45, (16, 16, 16))
    lamp_z = 0.85 if vehicle.kind == "car" else 1.0
    for side in (-1, 1):
        if vehicle.brake_lights:
            painter.disc(x, y + side * half * 0.74, lamp_z, 0.34, (255, 30, 25))
            painter.disc(x, y + side * half * 0.74, lamp_z, 0.14, (255, 170, 150))
        else:
            painter.box(x, y + side * half * 0.76, 0.16, lamp_z - 0.12, lamp_z + 0.12, (92, 16, 18))


def _light(painter: _Painter) -> None:
    scene = painter.scene
    assert scene.light is not None
    x = scene.light.distance_m + 1.0
    right = painter.scene.road.centre_y(x) - (scene.road.num_lanes - scene.road.ego_lane - 0.5) * LANE_WIDTH_M
    lamp_y = painter.scene.road.centre_y(x) - 1.9
    painter.box(x, right - 1.0, 0.12, 0.0, 5.6, (60, 60, 62))
    painter.box(x, (lamp_y + right - 1.0) / 2, abs(lamp_y - right + 1.0) / 2, 5.4, 5.6, (60, 60, 62))
    top = min(5.6, 1.2 + x * 0.26)
    painter.box(x, lamp_y, 0.55, top - 2.7, top, (20, 20, 22))
    for index, colour in enumerate(("red", "amber", "green")):
        z = top - 0.5 - index * 0.85
        if colour == scene.light.colour:
            painter.disc(x, lamp_y, z, 0.52, _LAMP[colour])
        else:
            painter.disc(x, lamp_y, z, 0.3, (48, 44, 44), glows=False)


def _pedestrian(painter: _Painter) -> None:
    scene = painter.scene
    assert scene.pedestrian is not None
    x = scene.pedestrian.distance_m
    y = scene.road.centre_y(x) + scene.pedestrian.y_m
    coat = painter.rng.choice(((190, 60, 50), (50, 80, 170), (220, 180, 60), (210, 210, 215), (70, 130, 80)))
    painter.box(x, y + 0.14, 0.12, 0.0, 0.8, (35, 35, 50))
    painter.box(x, y - 0.18, 0.12, 0.0, 0.8, (35, 35, 50))
    painter.box(x, y, 0.32, 0.75, 1.5, coat)
    painter.disc(x, y, 1.68, 0.2, (214, 170, 140), glows=False)


def _obstacle(painter: _Painter) -> None:
    scene = painter.scene
    assert scene.obstacle is not None
    x = scene.obstacle.distance_m
    y0 = scene.road.centre_y(x)
    orange: Colour = (245, 120, 25)
    if scene.obstacle.kind == "cones":
        for y in (-1.1, 0.0, 1.1):
            painter.quad([(x, y0 + y + 0.36, 0), (x, y0 + y, 1.05), (x, y0 + y - 0.36, 0)], orange)
            painter.box(x, y0 + y, 0.17, 0.45, 0.65, (245, 245, 240))
    elif scene.obstacle.kind == "barrier":
        painter.box(x, y0, 1.5, 0.35, 1.15, (240, 240, 236))
        for y in (-1.2, -0.4, 0.4, 1.2):
            painter.box(x, y0 + y, 0.2, 0.35, 1.15, (225, 60, 30))
    else:
        for y, z in ((-0.75, 0.0), (0.75, 0.0), (0.0, 0.85)):
            painter.box(x, y0 + y, 0.7, z, z + 0.85, (176, 120, 62))
            painter.box(x, y0 + y, 0.7, z + 0.35, z + 0.45, (110, 70, 34))


def _clutter(painter: _Painter, thing: Clutter) -> None:
    x, size = thing.distance_m, thing.size
    y = painter.scene.road.centre_y(x) + thing.y_m
    if thing.kind == "tree":
        painter.box(x, y, 0.18 * size, 0.0, 2.2 * size, (84, 62, 44))
        painter.disc(x, y, 3.4 * size, 1.7 * size, (46, 96, 48), glows=False)
    elif thing.kind == "house":
        painter.box(x, y, 4.0 * size, 0.0, 6.0 * size, thing.colour)
        for floor in (1.4, 4.0):
            for column in (-2.4, 0.0, 2.4):
                painter.box(
                    x, y + column * size, 0.6 * size, floor * size, (floor + 1.2) * size, (52, 58, 70)
                )
    elif thing.kind == "parked_car":
        painter.box(x, y, 0.9, 0.25, 1.4, thing.colour)
        painter.box(x, y, 0.7, 0.85, 1.3, (30, 36, 44))
    elif thing.kind == "oncoming_car":
        painter.box(x, y, 0.92, 0.25, 1.45, thing.colour)
        painter.box(x, y, 0.74, 0.85, 1.35, (40, 46, 56))
        for side in (-0.66, 0.66):
            painter.disc(x, y + side, 0.7, 0.18, (250, 246, 220))
    elif thing.kind == "sign":
        painter.box(x, y, 0.05, 0.0, 2.2, (120, 120, 124))
        painter.box(x, y, 0.38 * size, 1.7, 2.4, thing.colour)
    else:
        painter.box(x, y, 0.08, 0.0, 6.0, (84, 84, 88))
        if painter.scene.daylight != "day":
            painter.disc(x, y, 6.0, 0.22, (255, 228, 170))


def _weather(painter: _Painter, image: Image.Image) -> Image.Image:
    scene, rng = painter.scene, painter.rng
    draw = ImageDraw.Draw(image)
    if scene.weather == "rain":
        for _ in range(round(60 * painter.look.precipitation)):
            u, v = rng.uniform(0, WIDTH), rng.uniform(0, HEIGHT)
            draw.line((u, v, u - 1.5, v + 6), fill=painter.shade((170, 176, 188), 20.0))
    elif scene.weather == "snow":
        for _ in range(round(70 * painter.look.precipitation)):
            u, v = rng.uniform(0, WIDTH), rng.uniform(0, HEIGHT)
            draw.point((u, v), fill=(236, 238, 242))
    grain = np.random.default_rng(scene.seed).normal(0.0, 3.0, (HEIGHT, WIDTH, 1))
    pixels = np.asarray(image, dtype=np.float32) + grain
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
