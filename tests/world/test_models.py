# SPDX-License-Identifier: Apache-2.0
"""The models of the synthetic world: true sizes, outer sides outside, parts where they belong."""

import numpy as np
import pytest

from bevnext_core.classes import CLASSES
from bevnext_world.models import scenery as scenery_models
from bevnext_world.models.all_classes import PHASES, build_object
from bevnext_world.models.mesh import MeshError, Pattern
from bevnext_world.renderer.renderer import Renderer
from bevnext_world.renderer.scene import Ground, Instance, Light
from bevnext_world.streets.actors import MEAN_SIZES

SIZES = {
    "car": (4.6, 1.95, 1.7),
    "truck": (7.0, 2.5, 2.9),
    "construction_vehicle": (6.4, 2.85, 3.2),
    "bus": (11.0, 2.95, 3.5),
    "trailer": (12.3, 2.9, 3.9),
    "barrier": (0.5, 2.5, 1.0),
    "motorcycle": (2.1, 0.77, 1.5),
    "bicycle": (1.7, 0.6, 1.4),
    "pedestrian": (0.73, 0.67, 1.77),
    "traffic_cone": (0.41, 0.41, 1.07),
}


def draw(name: str, seed: int):
    rng = np.random.default_rng(seed)
    size = np.array(SIZES[name]) * rng.uniform(0.7, 1.3, 3)
    return size, build_object(name, size, rng)


@pytest.mark.parametrize("name", CLASSES)
def test_a_model_fills_its_box(name) -> None:
    for seed in range(30):
        size, model = draw(name, seed)
        low, high = model.mesh().bounds
        np.testing.assert_allclose(high, size / 2, rtol=1e-4)
        np.testing.assert_allclose(low, -size / 2, rtol=1e-4)
        assert len(model.mesh().faces) < 700


@pytest.mark.parametrize("name", CLASSES)
def test_outer_sides_are_outside(name) -> None:
    """Rays hit faces from both sides, pixels show outer ones only: a face turned inside out would differ."""
    ground = Ground(np.full((4, 4, 3), 90, np.uint8), (-2, -2), 1.0)
    renderer = Renderer([], ground, Light(), supersample=1)
    intrinsics = np.array([[90.0, 0, 47.5], [0, 90, 35.5], [0, 0, 1]])
    u, v = np.meshgrid(np.arange(96), np.arange(72))
    rays = np.stack([(u - 47.5) / 90, (v - 35.5) / 90, np.ones_like(u)], -1).reshape(-1, 3)
    for seed in range(6):
        size, model = draw(name, seed)
        world = np.eye(4)
        world[2, 3] = size[2] / 2
        angle, far = 0.4 + seed, 1.3 * np.linalg.norm(size) + 0.3
        eye = np.array([far * np.cos(angle), far * np.sin(angle), 0.7 * size[2] + 0.2 * far])
        forward = np.array([0, 0, size[2] / 2]) - eye
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, (0, 0, 1))
        right /= np.linalg.norm(right)
        view = np.eye(4)
        view[:3, :3] = np.stack([right, np.cross(forward, right), forward])
        view[:3, 3] = -view[:3, :3] @ eye
        things = [Instance(model.mesh(seed / 6), world, 1)]
        image = renderer.render(things, intrinsics, view, 96, 72)
        distances, ids, _ = renderer.raycast(things, eye, rays @ view[:3, :3], 100.0)
        depth = (distances / np.linalg.norm(rays, axis=1)).reshape(72, 96)
        on = (image.ids == 1) | (ids.reshape(72, 96) == 1)
        assert on.sum() > 150
        with np.errstate(invalid="ignore"):  # sky in both
            wrong = on & ~(np.abs(depth - image.depth) < 0.02 + 0.01 * depth)
        assert wrong.sum() <= 2 + 0.012 * on.sum(), (seed, wrong.sum(), on.sum())


def test_a_pedestrian_walks_within_its_box() -> None:
    for seed in range(5):
        size, model = draw("pedestrian", seed)
        meshes = [model.mesh(k / PHASES) for k in range(PHASES)]
        for mesh in meshes:
            assert (np.abs(mesh.vertices) <= size / 2 * 1.0001).all()
            assert mesh.bounds[1][2] - mesh.bounds[0][2] > 0.93 * size[2]
        spread = [float(np.ptp(mesh.vertices[:, 0])) for mesh in meshes]
        assert spread[0] == pytest.approx(size[0], rel=1e-4) and min(spread) < 0.8 * size[0]
        assert model.mesh(1.25) is model.mesh(0.25) is not model.mesh(0.5)
    assert draw("car", 0)[1].mesh(0.3) is not None


def test_cars_have_panes_wheels_and_lamps_where_they_belong() -> None:
    for seed in range(20):
        size, model = draw("car", seed)
        mesh = model.mesh()
        corners = mesh.vertices[mesh.faces]
        normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        normal /= np.linalg.norm(normal, axis=1, keepdims=True)
        middle = corners.mean(1)
        panes = mesh.gloss > 0.8
        for axis, sign in ((0, 1), (0, -1), (1, 1), (1, -1)):
            assert (panes & (sign * normal[:, axis] > 0.4)).any()
        assert (middle[panes, 2] > 0).all()
        flat = panes | (mesh.pattern == Pattern.LAMP)
        assert (np.einsum("fk,fk->f", normal, middle)[flat] > 0).all()  # seen from outside
        lamps = mesh.pattern == Pattern.LAMP
        front, rear = lamps & (middle[:, 0] > 0), lamps & (middle[:, 0] < 0)
        assert (mesh.colors[front].min(1) > 0.8).all() and (mesh.colors[rear][:, 1] < 0.2).all()
        down = corners[..., 2].min(1) < -size[2] / 2 + 0.01
        for x, y in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
            assert (down & (np.sign(middle[:, 0]) == x) & (np.sign(middle[:, 1]) == y)).any()


@pytest.mark.parametrize("name", ["motorcycle", "bicycle"])
def test_a_rider_sits_on_it_or_not(name) -> None:
    size = np.array([*SIZES[name][:2], 1.5])
    with_one, without = (
        build_object(name, size, np.random.default_rng(1), rider=rider).mesh() for rider in (True, False)
    )
    assert len(with_one.faces) > len(without.faces) + 80
    assert build_object(name, (2, 0.7, 1.7), np.random.default_rng(0)).rider
    assert not build_object(name, (2, 0.7, 1.1), np.random.default_rng(0)).rider


def test_the_same_draw_gives_the_same_model() -> None:
    for name in CLASSES:
        first, second, other = (draw(name, seed)[1].mesh() for seed in (4, 4, 5))
        for part in ("vertices", "faces", "colors", "pattern", "gloss"):
            assert getattr(first, part).tobytes() == getattr(second, part).tobytes()
        assert first.vertices.tobytes() != other.vertices.tobytes()


@pytest.mark.parametrize(
    ("name", "faces", "extent"),
    [
        *(("car", 246, 601.10), ("truck", 308, 977.97), ("bus", 232, 1234.77), ("trailer", 296, 1202.93)),
        *(("construction_vehicle", 316, 619.27), ("motorcycle", 558, 307.55), ("bicycle", 388, 169.41)),
        *(("pedestrian", 262, 123.11), ("barrier", 72, 72.54), ("traffic_cone", 48, 19.24)),
    ],
)
def test_models_of_version_1_of_the_world_are_these(name, faces, extent) -> None:
    mesh = build_object(name, MEAN_SIZES[name], np.random.default_rng(0)).mesh()
    assert len(mesh.faces) == faces
    assert np.abs(mesh.vertices).sum() == pytest.approx(extent, abs=0.01)


def test_colours_say_nothing_about_the_class() -> None:
    """The large faces of vehicles and houses, by share of red, green, blue and brightness."""

    def body(mesh) -> np.ndarray:
        corners = mesh.vertices[mesh.faces]
        area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
        # Neither panes and lamps nor what is nearly black, as tyres are.
        dull = (mesh.gloss < 0.7) & (mesh.pattern != Pattern.LAMP) & (mesh.colors.max(1) > 0.2)
        if not dull.any():
            return np.full(3, np.nan)
        colors, index = np.unique(mesh.colors[dull], axis=0, return_inverse=True)
        return colors[np.argmax(np.bincount(index.ravel(), area[dull]))]

    means = {}
    for name in ("car", "bus", "truck", "trailer"):
        means[name] = np.nanmean([body(draw(name, 1000 + seed)[1].mesh()) for seed in range(120)], 0)
    boxes = [scenery_models.box_clutter((1, 1, 1), np.random.default_rng(seed)) for seed in range(120)]
    means["box"] = np.nanmean([body(mesh) for mesh in boxes], 0)
    values = np.array(list(means.values()))
    # The standard error of a mean of 120 is about 0.025.
    assert np.ptp(values, axis=0).max() < 0.13, means


def test_scenery_stands_on_the_ground() -> None:
    for seed in range(25):
        rng = np.random.default_rng(seed)
        size = rng.uniform((6, 6, 4), (30, 20, 40))
        meshes = [
            (scenery_models.building(size, rng), size[2]),
            (scenery_models.tree(7.0, rng), 7.0),
            (scenery_models.pole(6.0, rng), 6.0),
            (scenery_models.pole(2.5, rng), 2.5),
            (scenery_models.box_clutter((1, 0.8, 1.2), rng), 1.2),
            (scenery_models.bush((2, 1.5, 1.4), rng), 1.4),
            (scenery_models.wall((9, 0.3, 1.6), rng), 1.6),
            (scenery_models.fence((9, 0.1, 1.3), rng), 1.3),
        ]
        for k, (mesh, height) in enumerate(meshes):
            low, high = mesh.bounds
            assert -0.35 < low[2] < 0.15, (k, seed)
            assert 0.75 * height < high[2] < 1.15 * height, (k, seed)


def test_impossible_models_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(MeshError, match="no class 'boat'"):
        build_object("boat", (1, 1, 1), rng)
    for size in ((1, np.nan, 1), (1, 1), (0, 1, 1), (500, 1, 1)):
        with pytest.raises(MeshError, match="needs a size"):
            build_object("car", size, rng)
    with pytest.raises(MeshError, match="tree"):
        scenery_models.tree(float("nan"), rng)
