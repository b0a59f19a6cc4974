# SPDX-License-Identifier: Apache-2.0
"""A scenario with shapes and light: what its cameras and its lidar record at a time."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from bevnext_core.geometry import invert_rigid
from bevnext_world.models import scenery as scenery_models
from bevnext_world.models.all_classes import build_object
from bevnext_world.recording.rig import LIDAR_RANGE, Camera, Rig, turned
from bevnext_world.renderer.renderer import Renderer
from bevnext_world.renderer.scene import Ground, Instance, Light
from bevnext_world.streets.actors import TIMES
from bevnext_world.streets.ground_paint import ALBEDO_RESOLUTION
from bevnext_world.streets.placing import SceneryItem
from bevnext_world.streets.scenario import Scenario

JPEG_QUALITY = 90
DRAW_DISTANCE = 125.0
"""Metres from the ego beyond which annotated objects are not drawn."""


@dataclass(frozen=True, eq=False)
class Sweep:
    """One revolution of the lidar, taken at one moment (the ego's motion during it is not modelled).

    Attributes:
        points: ``[P, 5]`` float32 x, y, z in the lidar frame, intensity, beam.
        hits: ``[number of actors]`` points on each actor.
    """

    points: np.ndarray
    hits: np.ndarray


class Stage:
    """Renders a scenario.

    Args:
        seed: of colours, shapes and light (not of the scenario, which is given).
        supersample: as for the renderer.
    """

    def __init__(
        self, scenario: Scenario, rig: Rig, seed: np.random.SeedSequence, supersample: int = 2
    ) -> None:
        self.scenario, self.rig = scenario, rig
        look, light = (np.random.default_rng(child) for child in seed.spawn(2))
        self.light = draw_light(light)
        self._models = [
            build_object(
                actor.class_name,
                actor.size,
                np.random.default_rng(look.integers(2**63)),
                rider=actor.rider,
            )
            for actor in scenario.actors
        ]
        self._still: dict[int, Instance] = {}
        ground = Ground(
            scenario.albedo,
            (float(scenario.site.origin[0]), float(scenario.site.origin[1])),
            ALBEDO_RESOLUTION,
            scenario.outside,
        )
        scenery = [_scenery(item) for item in scenario.scenery]
        self.renderer = Renderer(scenery, ground, self.light, supersample=supersample)
        self._rays, self._beams = rig.lidar_directions()

    def world_from_ego(self, time: float) -> np.ndarray:
        """``[4, 4]`` pose of the ego frame at a time in seconds."""
        x, y, yaw = (float(np.interp(time, TIMES, self.scenario.ego.track[:, axis])) for axis in range(3))
        return turned(yaw, (x, y, 0.0))

    def instances(self, time: float) -> list[Instance]:
        """The annotated objects at a time; ids are 1 + their index in the scenario."""
        centre = self.world_from_ego(time)[:2, 3]
        found = []
        for index, (actor, model) in enumerate(zip(self.scenario.actors, self._models)):
            if index in self._still:
                found.append(self._still[index])
                continue
            x, y, yaw = actor.poses(time)
            place = turned(yaw, (x, y, actor.size[2] / 2))
            instance = Instance(model.mesh(actor.phase(time)), place, index + 1)
            if actor.static:
                self._still[index] = instance
            found.append(instance)
        return [
            instance
            for instance in found
            if np.hypot(*(instance.world_from_object[:2, 3] - centre)) <= DRAW_DISTANCE
        ]

    def photograph(
        self, camera: Camera, time: float, noise: np.random.Generator
    ) -> tuple[np.ndarray, dict[int, tuple[int, int]]]:
        """Image ``[H, W, 3]`` RGB, and (visible pixels, pixels without occluders) of each actor in it."""
        camera_from_world = invert_rigid(self.world_from_ego(time) @ camera.ego_from_camera)
        image = self.renderer.render(
            self.instances(time), camera.intrinsics, camera_from_world, self.rig.width, self.rig.height, noise
        )
        return image.rgb, {number - 1: counts for number, counts in image.pixels.items()}

    def scan(self, time: float) -> Sweep:
        """The lidar's revolution at a time."""
        pose = self.world_from_ego(time) @ self.rig.ego_from_lidar
        directions = self._rays @ pose[:3, :3].T
        distances, ids, intensity = self.renderer.raycast(
            self.instances(time), pose[:3, 3], directions, LIDAR_RANGE
        )
        hit = np.isfinite(distances)
        points = np.empty((int(hit.sum()), 5), np.float32)
        points[:, :3] = self._rays[hit] * distances[hit, None]
        points[:, 3] = np.clip(np.rint(intensity[hit]), 0, 255)
        points[:, 4] = self._beams[hit]
        objects = ids[hit & (ids > 0)] - 1
        return Sweep(points, np.bincount(objects, minlength=len(self.scenario.actors)))


def jpeg(rgb: np.ndarray) -> bytes:
    """An image ``[H, W, 3]`` RGB as JPEG."""
    _, data = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return data.tobytes()


def draw_light(rng: np.random.Generator) -> Light:
    """Time of day and weather of a scene."""
    overcast = rng.random() < 0.3
    azimuth, elevation = rng.uniform(0, 2 * np.pi), np.deg2rad(rng.uniform(18, 65))
    direction = (
        float(np.cos(elevation) * np.cos(azimuth)),
        float(np.cos(elevation) * np.sin(azimuth)),
        float(np.sin(elevation)),
    )
    warm = float(np.clip(1.4 - np.rad2deg(elevation) / 40, 0, 1))
    strength = 0.0 if overcast else rng.uniform(0.75, 1.15)
    sun = (strength, strength * (0.96 - 0.14 * warm), strength * (0.88 - 0.34 * warm))
    sky = rng.uniform(0.75, 0.95) if overcast else rng.uniform(0.42, 0.6)
    blue = 0.0 if overcast else rng.uniform(0.4, 1.0)
    horizon = (0.74 - 0.02 * blue + 0.1 * warm, 0.77 + 0.0 * blue, 0.80 + 0.06 * blue - 0.08 * warm)
    return Light(
        sun_direction=direction,
        sun=tuple(float(v) for v in sun),  # type: ignore[arg-type]
        ambient=(float(sky * (0.98 - 0.1 * blue)), float(sky), float(sky * (1.02 + 0.12 * blue))),
        zenith=(float(0.66 - 0.44 * blue), float(0.70 - 0.3 * blue), float(0.75 + 0.02 * blue)),
        horizon=tuple(float(v) for v in horizon),  # type: ignore[arg-type]
        clouds=0.95 if overcast else float(rng.uniform(0.05, 0.7)),
        cloud_seed=int(rng.integers(2**31)),
        haze_distance=float(np.exp(rng.uniform(np.log(250), np.log(1200)))),
        haze=tuple(float(v * 0.95) for v in horizon),  # type: ignore[arg-type]
        exposure=float(rng.uniform(0.82, 1.12)),
        noise=float(rng.uniform(0.004, 0.014)),
        vignette=float(rng.uniform(0.05, 0.22)),
    )


def _scenery(item: SceneryItem) -> Instance:
    rng = np.random.default_rng(item.seed)
    if item.kind == "tree":
        mesh = scenery_models.tree(item.size[2], rng)
    elif item.kind == "pole":
        mesh = scenery_models.pole(item.size[2], rng)
    else:
        build = {
            "building": scenery_models.building,
            "bush": scenery_models.bush,
            "box": scenery_models.box_clutter,
            "wall": scenery_models.wall,
            "fence": scenery_models.fence,
        }[item.kind]
        mesh = build(item.size, rng)
    x, y, yaw = item.pose
    return Instance(mesh, turned(yaw, (x, y, -float(mesh.bounds[0][2]))))
