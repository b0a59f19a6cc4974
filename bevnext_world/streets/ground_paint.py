# SPDX-License-Identifier: Apache-2.0
"""The ground of a synthetic scene: one picture from above (albedo) and one of what each place is for."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from bevnext_world.streets.paths import Path
from bevnext_world.streets.roads import Junction, Road, RoadNetwork

ALBEDO_RESOLUTION = 0.1
"""Metres per pixel of the picture."""
USE_RESOLUTION = 0.2
LANE, SIDEWALK, TAKEN, STRIP = 1, 2, 4, 8
"""Bits of :class:`Site`: driven on, walked on, something stands there, parking strip."""


class Site:
    """What each place of a scene is used for, as bits in a raster; keeps things from standing in one another.

    Attributes:
        origin: ``[2]`` world position of the raster's corner; size: ``[2]`` metres.
    """

    def __init__(self, low: np.ndarray, high: np.ndarray) -> None:
        self.origin = np.floor(low)
        self.size = np.ceil(high - self.origin)
        columns, rows = (self.size / USE_RESOLUTION).astype(int)
        self.bits = np.zeros((rows, columns), np.uint8)

    def mark(self, polygon: np.ndarray, bit: int) -> None:
        """Set a bit inside a polygon ``[P, 2]``; what lies outside the site is left out."""
        window, inside = self._window(polygon)
        window[inside] |= bit

    def free(self, polygon: np.ndarray, forbidden: int) -> bool:
        """Whether no place inside a polygon has one of the ``forbidden`` bits; False when it leaves the site."""
        if not self.holds(polygon):
            return False
        window, inside = self._window(polygon)
        return not (window[inside] & forbidden).any()

    def take(self, polygon: np.ndarray, forbidden: int) -> bool:
        """Occupy a polygon when :meth:`free`; whether it was."""
        if not self.free(polygon, forbidden):
            return False
        self.mark(polygon, TAKEN)
        return True

    def _window(self, polygon: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The part of the raster around a polygon (a view), and which of its cells lie inside."""
        cells = (polygon - self.origin) / USE_RESOLUTION
        limit = np.array(self.bits.shape[::-1])
        low = np.clip(np.floor(cells.min(0)).astype(int), 0, limit)
        high = np.clip(np.ceil(cells.max(0)).astype(int) + 1, low, limit)
        window = self.bits[low[1] : high[1], low[0] : high[0]]
        layer = np.zeros(window.shape, np.uint8)
        if layer.size:
            cv2.fillPoly(layer, [np.rint((cells - low - 0.5) * 16).astype(np.int32)], 1, shift=4)
        return window, layer > 0

    def holds(self, points: np.ndarray, border: float = 1.0) -> bool:
        """Whether all points ``[P, 2]`` lie inside, ``border`` metres from the edge."""
        inside = points - self.origin
        return bool((inside > border).all() and (inside < self.size - border).all())

    def at(self, points: np.ndarray) -> np.ndarray:
        """Bits at points ``[..., 2]``; 0 outside."""
        cells = np.floor((points - self.origin) / USE_RESOLUTION).astype(int)
        rows, columns = self.bits.shape
        inside = (cells >= 0).all(-1) & (cells[..., 0] < columns) & (cells[..., 1] < rows)
        cells = np.where(inside[..., None], cells, 0)
        return np.where(inside, self.bits[cells[..., 1], cells[..., 0]], 0)


@dataclass
class Canvas:
    """The albedo picture while it is painted; ``rgb[y, x]`` with both growing in world coordinates."""

    rgb: np.ndarray
    origin: np.ndarray

    def polygon(self, outline: np.ndarray, color: np.ndarray) -> None:
        pixels = np.rint(((outline - self.origin) / ALBEDO_RESOLUTION - 0.5) * 16).astype(np.int32)
        cv2.fillPoly(self.rgb, [pixels], tuple(float(c) for c in color), cv2.LINE_AA, shift=4)

    def ribbon(self, path: Path, half_width: float, color: np.ndarray) -> None:
        """A band along a path."""
        self.polygon(
            np.concatenate([path.offset(half_width).points, path.offset(-half_width).points[::-1]]), color
        )


@dataclass(frozen=True)
class Colors:
    """Albedo (RGB, 0 to 255) of the surfaces of one scene."""

    asphalt: np.ndarray
    sidewalk: np.ndarray
    curb: np.ndarray
    strip: np.ndarray
    soil: np.ndarray
    paving: np.ndarray
    line: np.ndarray
    centre: np.ndarray


def draw_colors(rng: np.random.Generator) -> Colors:
    grey = rng.uniform(55, 105)
    tint = rng.normal(0, 4, 3)
    walk = rng.uniform(115, 175) + rng.normal(0, 8, 3)
    soil = (
        np.array([74.0, 96.0, 48.0]) * rng.uniform(0.7, 1.3)
        if rng.random() < 0.6
        else np.array([128.0, 112.0, 88.0]) * rng.uniform(0.7, 1.2)
    )
    white = rng.uniform(175, 235)
    yellow = np.array([205.0, 165.0, 50.0]) * rng.uniform(0.8, 1.1)
    return Colors(
        asphalt=grey + tint,
        sidewalk=walk,
        curb=walk * 0.8 + 40,
        strip=grey * rng.uniform(0.8, 1.15) + tint,
        soil=soil,
        paving=rng.uniform(80, 150) + rng.normal(0, 6, 3),
        line=np.full(3, white),
        centre=yellow if rng.random() < 0.6 else np.full(3, white),
    )


def mark_roads(site: Site, network: RoadNetwork) -> None:
    """Set the bits of lanes, strips and sidewalks."""
    for road in network.roads:
        _mark(site, road, road.edge, SIDEWALK)
    for road in network.roads:
        _mark(site, road, road.curb, STRIP)
    for road in network.roads:
        _mark(site, road, road.carriageway, LANE)
    for junction in network.junctions:
        for corner in corners(network.main, junction):
            site.mark(corner, LANE)
    site.bits[(site.bits & LANE) > 0] = LANE
    site.bits[(site.bits & STRIP) > 0] = STRIP


def _mark(site: Site, road: Road, half: float, bit: int) -> None:
    left, right = road.path.offset(half).points, road.path.offset(-half).points
    site.mark(np.concatenate([left, right[::-1]]), bit)


def corners(main: Road, junction: Junction) -> list[np.ndarray]:
    """Rounded corners of a junction's asphalt: outlines ``[P, 2]``, one per pair of neighbouring arms."""
    side, found = junction.side, []
    middle, heading = main.path.at(junction.s)
    for along in (1, -1):
        for arm in junction.arms:
            towards = side.path.at(junction.side_s + arm * junction.side_reach)[0] - middle
            cross = np.cos(heading) * towards[1] - np.sin(heading) * towards[0]
            main_edge = np.copysign(main.carriageway, cross)
            # Seen along the side road's centre line, the main road's direction lies on the other hand.
            side_edge = np.copysign(side.carriageway, -cross * along * arm)
            a = side.at(junction.side_s + arm * junction.side_reach, side_edge)[0]
            b = main.at(junction.s + along * junction.main_reach, main_edge)[0]
            pivot = main.at(junction.s + along * side.carriageway, main_edge)[0]
            u = np.linspace(0, 1, 12)[:, None]
            curve = (1 - u) ** 2 * a + 2 * u * (1 - u) * pivot + u**2 * b
            found.append(np.concatenate([curve, middle[None]]))
    return found


def paint(
    site: Site,
    network: RoadNetwork,
    lots: list[tuple[np.ndarray, str]],
    bays: list[np.ndarray],
    rng: np.random.Generator,
) -> tuple[np.ndarray, Colors]:
    """Picture ``[Y, X, 3]`` uint8 of a site at :data:`ALBEDO_RESOLUTION`.

    Args:
        lots: (outline, ``asphalt`` | ``paving`` | ``soil``) beside the roads.
        bays: lines of parking bays, each ``[2, 2]``.
    """
    colors = draw_colors(rng)
    shape = np.rint(site.size / ALBEDO_RESOLUTION).astype(int)[::-1]
    canvas = Canvas(np.empty((*shape, 3), np.uint8), site.origin)
    canvas.rgb[:] = np.clip(colors.soil, 0, 255)
    for outline, surface in lots:
        base = getattr(colors, surface) * rng.uniform(0.85, 1.15)
        canvas.polygon(outline, np.clip(base, 0, 255))
    for line in bays:
        _line(canvas, line, 0.12, colors.line)
    for road in network.roads:
        canvas.ribbon(road.path, road.edge, colors.sidewalk)
        _slabs(canvas, road, colors)
    for road in network.roads:
        canvas.ribbon(road.path, road.curb + 0.15, colors.curb)
    for road in network.roads:
        canvas.ribbon(road.path, road.curb, colors.strip)
    for road in network.roads:
        canvas.ribbon(road.path, road.carriageway, colors.asphalt)
    for junction in network.junctions:
        for corner in corners(network.main, junction):
            canvas.polygon(corner, colors.asphalt)
    _patches(canvas, network, colors, rng)
    for road in network.roads:
        for interval in network.clear_intervals(road, margin=1.0):
            _lines(canvas, road, interval, colors)
    for junction in network.junctions:
        _crossings(canvas, network.main, junction, colors, rng)
    return _worn(canvas.rgb, rng), colors


def _line(canvas: Canvas, ends: np.ndarray, width: float, color: np.ndarray) -> None:
    along = ends[1] - ends[0]
    normal = np.array([-along[1], along[0]]) / max(float(np.hypot(*along)), 1e-6) * width / 2
    canvas.polygon(np.array([ends[0] + normal, ends[1] + normal, ends[1] - normal, ends[0] - normal]), color)


def _slabs(canvas: Canvas, road: Road, colors: Colors) -> None:
    for s in np.arange(1.0, road.path.length, 3.0):
        for side in (1, -1):
            ends = np.stack([road.at(s, side * road.curb)[0], road.at(s, side * road.edge)[0]])
            _line(canvas, ends, 0.1, colors.sidewalk * 0.82)


def _patches(canvas: Canvas, network: RoadNetwork, colors: Colors, rng: np.random.Generator) -> None:
    """Repairs of the asphalt."""
    for road in network.roads:
        for _ in range(int(road.path.length / 18)):
            s, d = rng.uniform(0, road.path.length), rng.uniform(-1, 1) * road.carriageway * 0.8
            length, width = rng.uniform(1, 9), rng.uniform(0.5, 2.2)
            canvas.polygon(
                road.strip((s, s + length), (d, d + width)), colors.asphalt * rng.uniform(0.72, 1.2)
            )


def _lines(canvas: Canvas, road: Road, interval: tuple[float, float], colors: Colors) -> None:
    path = road.path.cut(*interval)
    if road.lanes > 1:
        for d in (0.14, -0.14):
            canvas.ribbon(path.offset(d), 0.06, colors.centre)
        for sign in (1, -1):
            for s in np.arange(interval[0], interval[1] - 3, 9.0):
                canvas.polygon(
                    road.strip((s, s + 3), (sign * road.lane_width - 0.07, sign * road.lane_width + 0.07)),
                    colors.line,
                )
    else:
        for s in np.arange(interval[0], interval[1] - 3, 7.0):
            canvas.polygon(road.strip((s, s + 3), (-0.07, 0.07)), colors.centre)
    for sign in (1, -1):
        canvas.ribbon(path.offset(sign * road.carriageway), 0.06, colors.line)


def _crossings(
    canvas: Canvas, main: Road, junction: Junction, colors: Colors, rng: np.random.Generator
) -> None:
    """Zebra stripes and stop lines before a junction."""
    ends = [(main, junction.s, along, junction.main_reach) for along in (1, -1)]
    ends += [(junction.side, junction.side_s, arm, junction.side_reach) for arm in junction.arms]
    for road, place, along, reach in ends:
        if rng.random() < 0.75:
            for d in np.arange(-road.carriageway + 0.3, road.carriageway - 0.5, 1.0):
                near, far = place + along * (reach - 3.4), place + along * (reach - 0.6)
                canvas.polygon(road.strip((near, far), (d, d + 0.5)), colors.line)
        # Traffic towards the junction drives on the right: against ``along``.
        stop = place + along * reach
        canvas.polygon(
            road.strip((stop, stop + along * 0.35), (along * 0.1, along * road.carriageway)), colors.line
        )


def _worn(rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Stains and slow changes of brightness, so that no surface is one colour."""
    rows, columns = rgb.shape[:2]
    total = np.ones((rows, columns), np.float32)
    for cell, strength in ((12.0, 0.05), (3.0, 0.05), (0.6, 0.05)):
        pixels = cell / ALBEDO_RESOLUTION
        small = rng.normal(0, strength, (int(rows / pixels) + 2, int(columns / pixels) + 2)).astype(
            np.float32
        )
        total += cv2.resize(small, (columns, rows), interpolation=cv2.INTER_CUBIC)
    for channel in range(3):
        plane = rgb[..., channel]
        plane[:] = np.clip(plane * total, 0, 255).astype(np.uint8)
    return rgb
