# SPDX-License-Identifier: Apache-2.0
"""What the renderer is given and what it gives: meshes at places, ground, light, images."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from bevnext_core.errors import BevnextError
from bevnext_world.models.mesh import Mesh


class RenderError(BevnextError):
    """Something given to the renderer is impossible: NaN, wrong shape, not a rigid transform."""


@dataclass(frozen=True, eq=False)
class Instance:
    """A mesh at a place.

    Attributes:
        mesh: the triangles, in the object's frame.
        world_from_object: [4, 4] float64, rigid.
        id: 0 is scenery; above 0 an annotated object (unique within one call).
    """

    mesh: Mesh
    world_from_object: np.ndarray
    id: int = 0


@dataclass(frozen=True, eq=False)
class Ground:
    """The plane z = 0.

    Attributes:
        albedo: [Y, X, 3] uint8 RGB, display values; row along +y, column along +x.
        origin: world (x, y) of the outer corner of pixel [0, 0], metres.
        resolution: metres per pixel.
        outside: RGB 0..255 where the map ends.
    """

    albedo: np.ndarray
    origin: tuple[float, float]
    resolution: float
    outside: tuple[int, int, int] = (95, 105, 70)


@dataclass(frozen=True)
class Light:
    """Sun, sky, air and camera exposure of a scene. Colours are linear RGB.

    Attributes:
        sun_direction: from the scene towards the sun (z > 0), any length.
        sun: colour times strength; (0, 0, 0) is an overcast sky without shadows.
        ambient: light of the sky from above.
        zenith, horizon: colours of the sky.
        clouds: share of the sky that they cover, 0..1.
        cloud_seed: their shape.
        haze_distance: metres after which 63 % of a surface's colour is lost.
        haze: colour of the haze.
        exposure: factor on everything.
        noise: standard deviation of the sensor's noise, of full scale.
        vignette: darkening in the corners, 0..1.
    """

    sun_direction: tuple[float, float, float] = (0.4, 0.3, 0.7)
    sun: tuple[float, float, float] = (1.0, 0.95, 0.85)
    ambient: tuple[float, float, float] = (0.42, 0.47, 0.55)
    zenith: tuple[float, float, float] = (0.20, 0.38, 0.75)
    horizon: tuple[float, float, float] = (0.70, 0.78, 0.88)
    clouds: float = 0.4
    cloud_seed: int = 0
    haze_distance: float = 600.0
    haze: tuple[float, float, float] = (0.68, 0.74, 0.82)
    exposure: float = 1.0
    noise: float = 0.008
    vignette: float = 0.15


@dataclass(frozen=True, eq=False)
class Image:
    """A rendered camera image.

    Attributes:
        rgb: [H, W, 3] uint8.
        depth: [H, W] float32, distance along the optical axis, metres; inf where the sky is.
        ids: [H, W] int32, the instance's id; 0 scenery and ground, -1 sky.
        pixels: for each dynamic instance with an id above 0: how many pixels show it, and how many would
            if nothing else stood in the image.
    """

    rgb: np.ndarray
    depth: np.ndarray
    ids: np.ndarray
    pixels: dict[int, tuple[int, int]] = field(default_factory=dict)
