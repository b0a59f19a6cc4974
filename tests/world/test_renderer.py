# SPDX-License-Identifier: Apache-2.0
"""The renderer and ray caster against geometry computed here with numpy."""

import numpy as np
import pytest

from bevnext_world.models.mesh import Mesh, MeshError, merge
from bevnext_world.models.solids import box, cylinder, ellipsoid
from bevnext_world.renderer.renderer import Renderer
from bevnext_world.renderer.scene import Ground, Instance, Light, RenderError

K = np.array([[110.0, 0.0, 79.5], [0.0, 120.0, 49.5], [0.0, 0.0, 1.0]])
WIDTH, HEIGHT = 160, 100
GREY = Ground(np.full((64, 64, 3), 128, np.uint8), (-32.0, -32.0), 1.0, (128, 128, 128))


def pose(x: float, y: float, z: float, yaw: float = 0.0, roll: float = 0.0) -> np.ndarray:
    c, s, cr, sr = np.cos(yaw), np.sin(yaw), np.cos(roll), np.sin(roll)
    matrix = np.eye(4)
    matrix[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array(
        [[1, 0, 0], [0, cr, -sr], [0, sr, cr]]
    )
    matrix[:3, 3] = x, y, z
    return matrix


def camera(eye: tuple[float, float, float], pitch: float = 0.0) -> np.ndarray:
    """camera_from_world of a camera that looks along +x, ``pitch`` rad downwards."""
    c, s = np.cos(pitch), np.sin(pitch)
    rotation = np.array([[0, -1, 0], [-s, 0, -c], [c, 0, -s]])
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = -rotation @ np.array(eye)
    return matrix


def pixel_rays(camera_from_world: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eye [3], and the direction of depth 1 through each pixel centre [H, W, 3], world frame."""
    u, v = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    rays = np.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], np.ones_like(u)], -1)
    rotation = camera_from_world[:3, :3]
    return -rotation.T @ camera_from_world[:3, 3], rays @ rotation


def slab_depth(size, matrix, eye, rays) -> np.ndarray:
    """Where rays (any shape [..., 3]) enter a box, in units of their length; inf where they miss."""
    rotation = matrix[:3, :3]
    origin, direction = (eye - matrix[:3, 3]) @ rotation, rays @ rotation
    with np.errstate(divide="ignore"):
        a, b = (np.array(size) / 2 - origin) / direction, (-np.array(size) / 2 - origin) / direction
    near, far = np.minimum(a, b).max(-1), np.maximum(a, b).min(-1)
    return np.where((near <= far) & (near > 0), near, np.inf)


def covered(mesh: Mesh, matrix: np.ndarray, camera_from_world: np.ndarray) -> np.ndarray:
    """Pixels whose centre lies in the projection of any triangle [H, W] (all in front of the camera)."""
    points = mesh.vertices @ matrix[:3, :3].T + matrix[:3, 3]
    points = points @ camera_from_world[:3, :3].T + camera_from_world[:3, 3]
    pixels = points[:, :2] / points[:, 2:] * K[[0, 1], [0, 1]] + K[:2, 2]
    u, v = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    mask = np.zeros((HEIGHT, WIDTH), bool)
    for a, b, c in pixels[mesh.faces]:
        sides = [(q[0] - p[0]) * (v - p[1]) - (q[1] - p[1]) * (u - p[0]) for p, q in ((a, b), (b, c), (c, a))]
        mask |= np.all([side > 0 for side in sides], 0) | np.all([side < 0 for side in sides], 0)
    return mask


def render(renderer: Renderer, dynamic, view, noise: int | None = None):
    rng = None if noise is None else np.random.default_rng(noise)
    return renderer.render(dynamic, K, view, WIDTH, HEIGHT, rng)


@pytest.fixture(scope="module")
def empty() -> Renderer:
    return Renderer([], GREY, Light(), supersample=1)


@pytest.mark.parametrize("supersample", [1, 2])
def test_depth_is_that_of_the_plane_and_of_a_box(supersample) -> None:
    renderer = Renderer([], GREY, Light(), supersample=supersample)
    size, matrix, view = (3.0, 2.0, 1.5), pose(9.0, 1.0, 1.0, 0.6, 0.3), camera((0.5, -0.3, 1.7), 0.1)
    image = render(renderer, [Instance(box(size), matrix, 7)], view)
    eye, rays = pixel_rays(view)
    on_box = slab_depth(size, matrix, eye, rays)
    ground = np.where(rays[..., 2] < 0, -eye[2] / np.minimum(rays[..., 2], -1e-9), np.inf)
    expected = np.minimum(on_box, ground)
    wanted = np.where(on_box < ground, 7, np.where(np.isfinite(ground), 0, -1))
    # Samples of a pixel that straddles an edge may belong to both sides.
    edge = np.zeros_like(wanted, bool)
    if supersample == 2:
        for axis in (0, 1):
            for step in (-1, 1):
                edge |= np.roll(wanted, step, axis) != wanted
        top, left = np.roll(expected, 1, 0), np.roll(expected, 1, 1)
        edge |= wanted == 7  # two faces meet within the box: looked at with one sample
        edge |= ~np.isfinite(top) | ~np.isfinite(left)
    assert (image.ids == wanted)[~edge].all() and (image.ids == 7).sum() > 200
    near = np.isfinite(expected) & (expected < 300) & ~edge
    np.testing.assert_allclose(image.depth[near], expected[near], rtol=2e-4)
    assert np.isinf(image.depth[image.ids == -1]).all()
    if supersample == 2:
        both = (image.ids == 7) & np.isfinite(on_box)
        assert np.abs(image.depth / np.where(both, on_box, 1) - 1)[both].max() < 0.05


@pytest.mark.parametrize(
    "mesh",
    [
        ellipsoid((1.2, 0.8, 1.0), segments=9, rings=6),
        merge([cylinder(0.4, 2.0, axis="x"), box((0.3, 2.4, 0.5), (0.8, 0, 0.5))]),
    ],
)
def test_silhouette_is_the_union_of_the_projected_triangles(empty, mesh) -> None:
    for yaw in (0.0, 0.7, 2.1, 4.0):
        matrix, view = pose(4.0, 0.5, 1.6, yaw, 0.4), camera((0, 0, 1.8), 0.05)
        image = render(empty, [Instance(mesh, matrix, 3)], view)
        mask = covered(mesh, matrix, view)
        assert mask.sum() > 400
        # Only pixel centres that lie on an edge may differ.
        assert ((image.ids == 3) != mask).sum() <= 3
        assert image.pixels == {3: (int((image.ids == 3).sum()),) * 2}


def test_the_nearer_box_hides_the_farther_one_and_the_counts_say_so(empty) -> None:
    near, far = Instance(box((1, 1, 1)), pose(5, 0, 1), 1), Instance(box((1, 3, 2)), pose(9, 0, 1.05), 2)
    view = camera((0, 0, 1.2))
    image = render(empty, [near, far], view)
    swapped = render(empty, [far, near], view)
    np.testing.assert_array_equal(image.rgb, swapped.rgb)
    np.testing.assert_array_equal(image.ids, swapped.ids)
    alone = {item.id: render(empty, [item], view) for item in (near, far)}
    for key in (1, 2):
        seen, whole = image.pixels[key]
        assert seen == (image.ids == key).sum()
        assert whole == alone[key].pixels[key][0] == (alone[key].ids == key).sum()
    assert image.pixels[1][0] == image.pixels[1][1]
    assert 0 < image.pixels[2][0] < image.pixels[2][1]
    # What stands still hides as well.
    still = Renderer([Instance(near.mesh, near.world_from_object)], GREY, Light(), supersample=1)
    behind = render(still, [far], view)
    assert behind.pixels[2] == image.pixels[2]
    np.testing.assert_array_equal(behind.depth, image.depth)
    assert (behind.ids[image.ids == 1] == 0).all()


def test_what_crosses_the_camera_plane_is_cut_there(empty) -> None:
    size, matrix, view = (20.0, 0.5, 3.0), pose(2.0, 1.5, 1.6, 0.05), camera((0, 0, 1.5))
    image = render(empty, [Instance(box(size), matrix, 4)], view)
    eye, rays = pixel_rays(view)
    on_box = slab_depth(size, matrix, eye, rays)
    visible = image.ids == 4
    assert visible.sum() > 1500 and (visible != (on_box < np.inf)).sum() <= 3
    both = visible & np.isfinite(on_box)
    np.testing.assert_allclose(image.depth[both], on_box[both], rtol=5e-4)
    # Behind the camera: nothing at all, and no number overflows on the way.
    behind = render(empty, [Instance(box(size), pose(-11.0, 0.0, 1.5), 4)], view)
    assert behind.pixels == {4: (0, 0)} and not (behind.ids == 4).any()


def test_rays_hit_where_geometry_says(empty) -> None:
    rng = np.random.default_rng(3)
    size, matrix = (2.0, 3.0, 1.4), pose(6.0, -2.0, 1.2, 0.9, 0.2)
    origins = rng.uniform((-2, -3, 0.3), (2, 3, 4), (4000, 3))
    directions = rng.normal(0, 1, (4000, 3)) + (1.2, 0, -0.1)
    distances, ids, intensity = empty.raycast([Instance(box(size), matrix, 9)], origins, directions, 40.0)
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    on_box = np.array([slab_depth(size, matrix, o, d) for o, d in zip(origins, unit)])
    ground = np.where(unit[:, 2] < 0, -origins[:, 2] / np.minimum(unit[:, 2], -1e-12), np.inf)
    expected = np.minimum(on_box, ground)
    expected[expected > 40] = np.inf
    np.testing.assert_allclose(distances, expected, rtol=1e-4)
    wanted = np.where(np.isinf(expected), -1, np.where(on_box < ground, 9, 0))
    np.testing.assert_array_equal(ids, wanted)
    assert (ids == 9).sum() > 100 and (ids == 0).sum() > 500 and (ids == -1).sum() > 500
    assert (intensity[ids >= 0] > 0).all() and (intensity <= 255).all() and (intensity[ids < 0] == 0).all()


def crowd() -> tuple[list[Instance], list[Instance]]:
    rng = np.random.default_rng(0)
    shapes = [
        box((1.5, 1, 2)),
        ellipsoid((1, 0.7, 1.2), segments=8, rings=5),
        cylinder(0.6, 2.4, segments=9, end_radius=0.2),
        box((7, 1, 3)),
    ]

    def place(shape: Mesh, key: int) -> Instance:
        return Instance(shape, pose(rng.uniform(6, 30), rng.uniform(-9, 9), 1.1, rng.uniform(0, 6)), key)

    return [place(shapes[k % 4], 0) for k in range(30)], [place(shapes[k % 3], k + 1) for k in range(25)]


def test_rays_and_pixels_see_the_same() -> None:
    static, dynamic = crowd()
    renderer = Renderer(static, GREY, Light(), supersample=1)
    view = camera((0, 0, 2.2), 0.08)
    image = render(renderer, dynamic, view)
    eye, rays = pixel_rays(view)
    flat = rays.reshape(-1, 3)
    distances, ids, _ = renderer.raycast(dynamic, eye, flat, 5000.0)
    depth = (distances / np.linalg.norm(flat, axis=1)).reshape(HEIGHT, WIDTH)
    same = image.ids == ids.reshape(HEIGHT, WIDTH)
    assert same.mean() > 0.998  # a ray on an edge may fall to either side
    compared = same & (image.depth < 200)
    assert (np.abs(depth[compared] / image.depth[compared] - 1) < 1e-3).mean() > 0.999
    assert len(np.unique(image.ids)) > 6


def test_equal_inputs_give_equal_bytes() -> None:
    static, dynamic = crowd()
    view = camera((0, 0, 2.2), 0.08)
    first, second = (Renderer(static, GREY, Light(cloud_seed=5)) for _ in range(2))
    image = render(first, dynamic, view, noise=1)
    render(second, dynamic[::2], camera((3, 1, 2), 0.2), noise=3)  # what was drawn before leaves no trace
    again = render(second, dynamic, view, noise=1)
    assert image.rgb.tobytes() == again.rgb.tobytes() and image.depth.tobytes() == again.depth.tobytes()
    assert image.ids.tobytes() == again.ids.tobytes() and image.pixels == again.pixels
    other = render(second, dynamic, view, noise=2)
    assert 0.5 < np.abs(other.rgb.astype(int) - image.rgb).mean() < 6
    clouds = render(Renderer(static, GREY, Light(cloud_seed=6)), dynamic, view, noise=1)
    assert (clouds.rgb != image.rgb)[image.ids == -1].mean() > 0.3
    rays = pixel_rays(view)[1].reshape(-1, 3)
    assert all(
        a.tobytes() == b.tobytes()
        for a, b in zip(*(r.raycast(dynamic, (0, 0, 2), rays, 50.0) for r in (first, second)))
    )


def test_shadows_lie_where_the_sun_puts_them_and_darken_once() -> None:
    flat = Light(sun_direction=(0, 1, 1), haze_distance=1e6, vignette=0, noise=0)
    renderer = Renderer([], GREY, flat, supersample=1)
    view = camera((-6, 0, 6), 0.7)
    tower = Instance(box((1, 1, 4)), pose(2, 2, 2), 1)
    eye, rays = pixel_rays(view)
    with np.errstate(divide="ignore", invalid="ignore"):
        places = eye + rays * (-eye[2] / rays[..., 2])[..., None]
    bare, image = render(renderer, [], view), render(renderer, [tower], view)
    # The sun stands in +y at 45 degrees: the shadow reaches 4 m towards -y.
    x, y = places[..., 0], places[..., 1]
    inside = (np.abs(x - 2) < 0.45) & (y > -2.4) & (y < 1.4) & (image.ids == 0)
    outside = ((np.abs(x - 2) > 0.6) | (y < -2.7)) & (image.ids == 0)
    ratio = image.rgb.mean(-1) / bare.rgb.mean(-1)
    assert inside.sum() > 50 and ratio[inside].max() < 0.85
    assert (image.rgb == bare.rgb)[outside].mean() > 0.99
    # A second tower whose shadow falls onto the same place darkens nothing further.
    taller = Instance(box((1, 1, 5)), pose(2, 3, 2.5), 2)
    twice = render(renderer, [tower, taller], view)
    common = inside & (twice.ids == 0)
    np.testing.assert_array_equal(twice.rgb[common], image.rgb[common])
    # Without a sun nothing is thrown.
    dull = Renderer([], GREY, Light(sun=(0, 0, 0), haze_distance=1e6, noise=0), supersample=1)
    dull_bare, dull_image = render(dull, [], view), render(dull, [tower], view)
    away = inside & (np.abs(y - 2) > 0.7)
    np.testing.assert_array_equal(dull_bare.rgb[away], dull_image.rgb[away])


def test_haze_takes_colour_with_distance_and_the_sun_side_is_brighter() -> None:
    light = Light(sun_direction=(-1, 0, 0.5), haze_distance=60, haze=(0.7, 0.7, 0.7), vignette=0)
    renderer = Renderer([], GREY, light, supersample=1)
    view = camera((0, 0, 1.5))
    red = (0.6, 0.05, 0.05)
    gaps = []
    for distance in (6.0, 40.0, 120.0):
        size = distance / 5
        image = render(renderer, [Instance(box((1, size, size), color=red), pose(distance, 0, 1.5), 1)], view)
        mean = image.rgb[image.ids == 1].astype(float).mean(0)
        gaps.append(mean[0] - mean[1])
    assert gaps[0] > gaps[1] + 20 > gaps[2] + 30
    cube = [Instance(box((1, 1, 1)), pose(4, 0, 1.5), 1)]
    front = render(renderer, cube, view)
    against = render(Renderer([], GREY, Light(sun_direction=(1, 0, 0.5)), supersample=1), cube, view)
    assert front.rgb[front.ids == 1].mean() > against.rgb[against.ids == 1].mean() + 25


def test_an_object_in_the_shade_of_a_house_is_darker() -> None:
    light = Light(sun_direction=(-0.5, 1, 0.5), haze_distance=1e6)
    house, item = Instance(box((20, 2, 10)), pose(4, 6, 5)), [Instance(box((1, 1, 1)), pose(5, 0, 2.0), 1)]
    view = camera((0, 0, 4), 0.4)
    shaded, lit = (render(Renderer(part, GREY, light), item, view) for part in ([house], []))
    assert shaded.rgb[shaded.ids == 1].mean() < lit.rgb[lit.ids == 1].mean() - 15


def test_wrong_inputs_are_named(empty) -> None:
    good, view = Instance(box((1, 1, 1)), pose(5, 0, 1), 1), camera((0, 0, 1))
    broken = pose(5, 0, 1)
    broken[0, 3] = np.nan
    with pytest.raises(RenderError, match="instance 1 is not a rigid"):
        render(empty, [good, Instance(good.mesh, broken, 2)], view)
    with pytest.raises(RenderError, match="not a rigid"):
        render(empty, [Instance(good.mesh, np.diag([2.0, 1, 1, 1]), 2)], view)
    with pytest.raises(RenderError, match="not a rigid"):
        render(empty, [Instance(good.mesh, np.diag([-1.0, 1, 1, 1]), 2)], view)
    with pytest.raises(RenderError, match="same id"):
        render(empty, [good, good], view)
    with pytest.raises(RenderError, match="camera_from_world must be finite"):
        render(empty, [], np.full((4, 4), np.nan))
    with pytest.raises(RenderError, match="positive focal"):
        empty.render([], np.diag([0.0, 1, 1]), view, 10, 10)
    with pytest.raises(RenderError, match="0 x 10 pixels"):
        empty.render([], K, view, 0, 10)
    with pytest.raises(RenderError, match="length above 0"):
        empty.raycast([], np.zeros(3), np.zeros((1, 3)), 10.0)
    with pytest.raises(RenderError, match="max_range"):
        empty.raycast([], np.zeros(3), np.ones((1, 3)), float("nan"))
    with pytest.raises(RenderError, match="horizon"):
        Renderer([], GREY, Light(sun_direction=(1, 0, -1)))
    with pytest.raises(RenderError, match="albedo"):
        Renderer([], Ground(np.zeros((4, 4, 3), np.float32), (0, 0), 1.0), Light())
    with pytest.raises(MeshError, match="faces index"):
        Mesh(np.zeros((3, 3)), [[0, 1, 3]], np.zeros((1, 3)))
    with pytest.raises(MeshError, match="finite"):
        Mesh(np.full((3, 3), np.nan), [[0, 1, 2]], np.zeros((1, 3)))


def test_flat_and_tiny_things_do_no_harm(empty) -> None:
    line = Mesh(np.float32([[0, 0, 0], [1, 0, 0], [2, 0, 0]]), [[0, 1, 2]], np.full((1, 3), 0.5))
    image = render(
        empty,
        [Instance(line, pose(4, 0, 1), 1), Instance(box((1e-4,) * 3), pose(4, 0, 1), 2)],
        camera((0, 0, 1)),
    )
    assert image.pixels == {1: (0, 0), 2: (0, 0)}
    below = render(empty, [], camera((0, 0, -1)))
    assert (below.ids == -1).all()
    distances, ids, _ = empty.raycast([], np.zeros((0, 3)), np.zeros((0, 3)), 5.0)
    assert distances.shape == ids.shape == (0,)
