"""How a scene is photographed and painted: the camera, the surfaces, the strength of the weather.

The default `Look` is that of every scene for training. `unfamiliar` draws one outside of it, for the
out-of-distribution kinds: what there is and what is right stay as they were.
"""

import random
from dataclasses import dataclass
from typing import Literal

WIDTH, HEIGHT = 224, 112
SUPERSAMPLING = 2

Colour = tuple[int, int, int]
Shift = Literal["camera", "textures", "weather"]

_SURFACES: tuple[tuple[Colour, Colour, Colour], ...] = (
    ((152, 132, 112), (206, 178, 120), (120, 92, 70)),
    ((120, 74, 64), (134, 120, 92), (84, 60, 54)),
    ((140, 146, 152), (128, 84, 62), (92, 96, 100)),
    ((62, 70, 92), (150, 138, 70), (44, 48, 62)),
)
"""Road, verge and kerb: sandy, brick, pale concrete on red soil, blue asphalt in stubble."""


@dataclass(frozen=True, slots=True)
class Camera:
    """A pinhole camera `height_m` above the road; focal length and centre in final pixels. A camera
    that looks up or down is one whose horizon stands lower or higher."""

    height_m: float = 1.7
    focal_px: float = 170.0
    centre_u: float = WIDTH / 2
    horizon_v: float = 50.0

    def project(self, x_m: float, y_m: float, z_m: float) -> tuple[float, float]:
        """Pixel (u, v) of a point ahead of the camera, in the supersampled picture."""
        x = max(x_m, 0.8)
        u = self.centre_u - self.focal_px * y_m / x
        v = self.horizon_v + self.focal_px * (self.height_m - z_m) / x
        return u * SUPERSAMPLING, v * SUPERSAMPLING


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Camera, colours of the surfaces, and the weather's strength.

    `mottling` is the standard deviation, in grey levels, of patches of 0.6 m on the ground; `sight` and
    `precipitation` multiply how far one sees in each weather and how much rain or snow falls.
    """

    camera: Camera = Camera()
    asphalt: Colour = (96, 98, 102)
    wet_asphalt: Colour = (74, 78, 86)
    verge: Colour = (82, 112, 62)
    snowy_verge: Colour = (215, 218, 224)
    kerb: Colour = (150, 148, 142)
    mottling: float = 0.0
    sight: float = 1.0
    precipitation: float = 1.0


USUAL_LOOK = Look()


def unfamiliar(shift: Shift, rng: random.Random) -> Look:
    """A look that no scene for training has, in one respect.

    `camera`: 1.2 or 2.4 to 2.9 m high instead of 1.7, a shorter or longer focal length, tilted up or
    down. `textures`: other road, verge and kerb, all mottled. `weather`: half the sight in rain, fog or
    snow, and four times as much of it.
    """
    if shift == "camera":
        return Look(
            camera=Camera(
                height_m=rng.choice((rng.uniform(1.15, 1.3), rng.uniform(2.4, 2.9))),
                focal_px=rng.choice((rng.uniform(128, 145), rng.uniform(195, 212))),
                horizon_v=rng.choice((rng.uniform(38, 43), rng.uniform(57, 62))),
            )
        )
    if shift == "textures":
        road, verge, kerb = rng.choice(_SURFACES)
        return Look(asphalt=road, wet_asphalt=road, verge=verge, snowy_verge=verge, kerb=kerb, mottling=14.0)
    return Look(sight=0.5, precipitation=4.0)
