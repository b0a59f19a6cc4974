# SPDX-License-Identifier: Apache-2.0
"""One synthetic scene: everything about it follows from its seed.

The scene's time runs from 0 to ``DURATION`` seconds; key frames are half a second apart from :data:`FIRST_KEY`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bevnext_world.streets.actors import Actor, footprints
from bevnext_world.streets.ground_paint import LANE, Site, mark_roads, paint
from bevnext_world.streets.lots import add_background, add_lots
from bevnext_world.streets.placing import Placer, SceneryItem
from bevnext_world.streets.roads import RoadNetwork, build_network
from bevnext_world.streets.roadside import add_construction, add_furniture, add_parked
from bevnext_world.streets.traffic import Ego, Traffic, draw_ego

KEY_FRAMES = 20
KEY_INTERVAL = 0.5
FIRST_KEY = 0.1
REACH = 92.0
"""Metres around the ego's way that a scene covers."""


@dataclass(frozen=True, eq=False)
class Scenario:
    """A scene before it is rendered.

    Attributes:
        ego: its drive; actors: everything annotated, still things first; scenery: everything else.
        network, site: roads and the use of the ground; its corner becomes the origin of the written scene.
        albedo: ``[Y, X, 3]`` uint8 picture of the ground; outside: colour beyond it.
    """

    ego: Ego
    actors: tuple[Actor, ...]
    scenery: tuple[SceneryItem, ...]
    network: RoadNetwork
    site: Site
    albedo: np.ndarray
    outside: tuple[int, int, int]


def build_scenario(seed: np.random.SeedSequence, painted: bool = True) -> Scenario:
    """The scene of a seed. ``painted`` False leaves the ground's picture out (for statistics)."""
    roads, drive, places, traffic, colors = (np.random.default_rng(child) for child in seed.spawn(5))
    network = build_network(roads)
    ego = draw_ego(network, drive)
    body = ego.body[:, :2]
    site = Site(body.min(0) - REACH, body.max(0) + REACH)
    mark_roads(site, network)
    for outline in footprints(ego.body[::5], (4.1, 1.8, 1.5), 0.4):
        site.mark(outline, LANE)
    layout = Placer(network, site, body[::10], float(places.uniform(0.75, 1.1)), places)
    for add in (add_construction, add_parked, add_lots, add_furniture, add_background):
        add(layout)
    movers = Traffic(network, site, ego, traffic)
    movers.vehicles(int(traffic.integers(22, 32)))
    movers.people(int(traffic.integers(12, 22)), int(traffic.integers(4, 8)), int(traffic.integers(2, 6)))
    if painted:
        albedo, palette = paint(site, network, layout.lots, layout.bays, colors)
        outside = tuple(int(c) for c in np.clip(palette.soil, 0, 255))
    else:
        albedo, outside = np.zeros((1, 1, 3), np.uint8), (0, 0, 0)
    return Scenario(
        ego=ego,
        actors=(*layout.actors, *movers.actors),
        scenery=tuple(layout.scenery),
        network=network,
        site=site,
        albedo=albedo,
        outside=outside,  # type: ignore[arg-type]
    )
