# SPDX-License-Identifier: Apache-2.0
"""Each block against the reference's module outputs: inputs are exact, so only rounding may differ."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torchvision

from bevnext_core.classes import CAMERAS
from bevnext_core.geometry import invert_rigid
from bevnext_core.network.backbone import Bottleneck
from bevnext_core.network.camera_geometry import CameraGeometry
from bevnext_core.network.crf import DepthCrf, color_kernel, patch_colors
from bevnext_core.network.perspective_refinement import CameraCrossAttention
from bevnext_core.network.view_transform import ViewTransform
from bevnext_core.ops.bev_pool.plain import bev_pool
from bevnext_core.streaming.decode import boxes_from_maps, decode
from bevnext_core.streaming.preprocess import ImageTransform, image_transform, normalize, resize_and_crop
from tests import recipe
from tests.paths import BUNDLED
from tests.published import build, config_of, from_bottom_center, load_reference, rms_error, window_inputs

TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def geometry_reference() -> dict[str, np.ndarray]:
    return dict(np.load(BUNDLED / "mod_geometry.npz"))


@pytest.fixture(scope="module")
def module_reference() -> dict[str, np.ndarray]:
    return dict(np.load(BUNDLED / "mod_modules.npz"))


@pytest.fixture(scope="module")
def scalars() -> dict:
    return json.loads((BUNDLED / "modules.json").read_text())


@pytest.fixture(scope="module")
def small2() -> torch.nn.Module:
    return build("small2")


def test_the_bottleneck_is_torchvisions() -> None:
    """Same names, same numbers; drawn from the same seed the same weights."""
    for stride in (1, 2):
        blocks = []
        for kind in (Bottleneck, torchvision.models.resnet.Bottleneck):
            torch.manual_seed(0)
            blocks.append(kind(16, 4, stride, torch.nn.Conv2d(16, 16, 1, stride)))
        ours, theirs = (block.state_dict() for block in blocks)
        assert list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)
        x = torch.randn(2, 16, 6, 6)
        assert torch.equal(*(block(x) for block in blocks))


def stored_geometry(arrays: dict[str, np.ndarray], case: int) -> CameraGeometry:
    def take(name: str) -> torch.Tensor:
        return torch.from_numpy(arrays[f"geo{case}.{name}"])

    rotation = take("rots").unsqueeze(1)
    shape = rotation.shape[:3]
    return CameraGeometry(
        rotation,
        take("trans").unsqueeze(1),
        take("intrins").unsqueeze(1),
        take("post_rot").expand(*shape, 3, 3),
        take("post_tran").expand(*shape, 3),
        take("bda").unsqueeze(0),
    )


def small_geometry(arrays: dict[str, np.ndarray], bda: torch.Tensor) -> CameraGeometry:
    """Key frame of the small input with another BEV augmentation."""
    end_to_end, _ = load_reference(BUNDLED, "small_stage2")
    matrices = [
        torch.from_numpy(end_to_end[f"in.{n}"])[:, None, :6]
        for n in ("rots", "trans", "intrins", "post_rots", "post_trans")
    ]
    return CameraGeometry(*matrices, bda)


def full_view_transform() -> ViewTransform:
    config = config_of("full1")
    return ViewTransform(config.image, config.depth, config.bev)


# ------------------------------------------------------------------------------------------ geometry
def test_frustum(geometry_reference: dict[str, np.ndarray], scalars: dict) -> None:
    view = full_view_transform()
    assert [*view.shape, 3] == scalars["frustum_shape"]
    assert view.shape[0] == scalars["D"]
    frustum = view.frustum.t().reshape(*view.shape, 3)
    corners = frustum[:, [0, -1]][:, :, [0, -1]]
    np.testing.assert_array_equal(corners, geometry_reference["frustum_corners"])


@pytest.mark.parametrize("case", range(4))
def test_pooling_geometry(case: int, geometry_reference: dict[str, np.ndarray], scalars: dict) -> None:
    geometry = stored_geometry(geometry_reference, case)
    view = full_view_transform()
    points = view.points(geometry).transpose(1, 2).reshape(-1, 3)
    stored_points = geometry_reference[f"geo{case}.coor_sub"]
    assert rms_error(points[::1009], stored_points) <= 1e-6
    counts = view.plan(geometry).counts()[0].numpy()
    stored = geometry_reference[f"geo{case}.count_per_cell"]
    # A point on a cell's border may fall to either side by rounding; floor() would move 300,000 of them.
    # On the reference's own library the counts are equal; another one gets this much room.
    assert np.abs(counts - stored).sum() <= 8
    assert abs(int(counts.sum()) - scalars[f"geo{case}"]["n_kept"]) <= 4
    assert abs(int((counts > 0).sum()) - scalars[f"geo{case}"]["n_intervals"]) <= 1


@pytest.mark.parametrize("case", range(4))
def test_camera_parameters(case: int, geometry_reference: dict[str, np.ndarray]) -> None:
    parameters = stored_geometry(geometry_reference, case).camera_parameters()[:, 0]
    assert rms_error(parameters, geometry_reference[f"geo{case}.mlp_input"]) <= 1e-7


def test_refinement_projection(geometry_reference: dict[str, np.ndarray]) -> None:
    config = config_of("full1")
    attention = CameraCrossAttention(config.channels, config.image, config.bev, config.refinement)
    pixels, valid = attention.project_anchors(stored_geometry(geometry_reference, 3))
    stored = geometry_reference["refine_geo3.ref_cam_sub"]
    # Anchors beside or behind a camera (far outside the image) are divided by as little as 1e-5 m, which
    # magnifies rounding; they only ever sample zero padding.
    found = pixels.reshape(-1, 2)[::997].numpy()
    near = np.abs(stored).max(1) < 10
    assert near.sum() > 300
    assert np.abs(found - stored)[near].max() <= 2e-5
    assert (np.abs(found - stored) <= 1e-4 * np.maximum(1.0, np.abs(stored).max(1, keepdims=True))).all()
    mask = np.unpackbits(geometry_reference["refine_geo3.mask_packed"])[: valid.numel()].astype(bool)
    assert (valid.flatten().numpy() != mask).sum() <= 4
    assert (
        np.abs(valid.flatten(2).sum(-1)[0].numpy() - geometry_reference["refine_geo3.mask_sum_per_cam"]).max()
        <= 2
    )
    cameras = valid.any(-1).sum(1)[0].numpy()
    assert (cameras != geometry_reference["refine_geo3.cams_per_query"]).sum() <= 2


def test_height_anchors(geometry_reference: dict[str, np.ndarray], scalars: dict) -> None:
    """Order [Y, X, Z], metres, centres of the cells."""
    config = config_of("full1")
    attention = CameraCrossAttention(config.channels, config.image, config.bev, config.refinement)
    anchors = attention.anchors.view(config.bev.size, config.bev.size, -1, 3)
    assert list(anchors.shape) == scalars["ref3d_shape"]
    assert scalars["grid_size"] == [config.bev.size, config.bev.size, 1]
    np.testing.assert_allclose(anchors.reshape(-1, 3)[::997], geometry_reference["ref3d_sub"], atol=1e-5)


def test_poses_of_a_clip(geometry_reference: dict[str, np.ndarray]) -> None:
    """Camera of each past frame in the present ego frame: float64 here, float32 with 0.3 mm of noise there."""
    infos = recipe.make_infos("A", 9)

    def pose(camera: dict, frame: str) -> np.ndarray:
        return recipe.transform(camera[f"{frame}_rotation"], camera[f"{frame}_translation"])

    ego_from_global = invert_rigid(pose(infos[0]["cams"]["CAM_FRONT"], "ego2global"))
    stored = geometry_reference["clip.sensor2keyego"]
    for frame, info in enumerate(infos):
        for index, camera in enumerate(CAMERAS):
            matrices = info["cams"][camera]
            own = ego_from_global @ pose(matrices, "ego2global") @ pose(matrices, "sensor2ego")
            assert np.abs(own[:3, :3] - stored[frame, index, :3, :3]).max() <= 1e-6
            assert np.abs(own[:3, 3] - stored[frame, index, :3, 3]).max() <= 4e-4


def test_pooling_values(geometry_reference: dict[str, np.ndarray]) -> None:
    geometry = small_geometry(geometry_reference, torch.from_numpy(geometry_reference["pool_small.bda"]))
    config = config_of("small2")
    view = ViewTransform(config.image, config.depth, config.bev)
    depth = torch.from_numpy(recipe.normal("A", "pool_depth", (6, 59, 16, 44), 2.0)).softmax(1)
    context = torch.from_numpy(recipe.normal("A", "pool_feat", (6, 32, 16, 44)))
    bev = bev_pool(depth, context, view.plan(geometry))
    assert rms_error(bev, geometry_reference["pool_small.bev"]) <= TOLERANCE


# ------------------------------------------------------------------------------------------ depth
@pytest.mark.parametrize("name", ["crf_cfg", "crf_strong", "crf_soft"])
def test_crf(name: str, module_reference: dict[str, np.ndarray], scalars: dict) -> None:
    colors, logits = (torch.from_numpy(a) for a in recipe.crf_inputs("A"))
    setting = scalars[name]
    crf = DepthCrf(setting["num_iter"], setting["zeta"], setting["ws"])
    logits.requires_grad_()
    q = crf(logits, colors)
    assert rms_error(color_kernel(colors, setting["zeta"]), module_reference[f"{name}.kernel"]) <= TOLERANCE
    assert rms_error(q.detach(), module_reference[f"{name}.q"]) <= TOLERANCE
    if f"{name}.grad_logits" in module_reference:
        (q * torch.from_numpy(recipe.normal("A", "crf_w", tuple(q.shape)))).sum().backward()
        assert rms_error(logits.grad, module_reference[f"{name}.grad_logits"]) <= TOLERANCE
        np.testing.assert_allclose(crf.weight.grad, module_reference[f"{name}.grad_ws"], rtol=2e-5)


def test_patch_colors(module_reference: dict[str, np.ndarray]) -> None:
    canvas = torch.from_numpy(recipe.make_images("A", 1, 256, 704)[0])
    # Exactly equal colours are what the CRF looks for: not one bit may differ.
    assert torch.equal(patch_colors(canvas), torch.from_numpy(module_reference["patch_color"]))


def test_depth_net(small2: torch.nn.Module, module_reference: dict[str, np.ndarray]) -> None:
    features = torch.from_numpy(recipe.normal("A", "depthnet_x", (6, 64, 16, 44)))
    parameters = torch.from_numpy(module_reference["depthnet_small.mlp_input"])[0]
    with torch.no_grad():
        logits, context = small2.depth_net(features, parameters)
    assert rms_error(logits[:, ::3], module_reference["depthnet_small.logits"]) <= TOLERANCE
    assert rms_error(context, module_reference["depthnet_small.context"]) <= TOLERANCE


# ------------------------------------------------------------------------------------------ BEV blocks
def test_pre_process(small2: torch.nn.Module, module_reference: dict[str, np.ndarray]) -> None:
    with torch.no_grad():
        out = small2.pre_process(torch.from_numpy(recipe.normal("A", "preproc_x", (2, 32, 16, 16))))
    assert rms_error(out, module_reference["preproc_small.out"]) <= TOLERANCE


def test_res2fusion_and_neck_small(small2: torch.nn.Module, module_reference: dict[str, np.ndarray]) -> None:
    x = torch.from_numpy(recipe.normal("A", "res2fusion_x", (2, 96, 16, 16)))
    with torch.no_grad():
        levels = small2.bev_backbone(x)
        assert (
            rms_error(small2.bev_backbone.fusion(x), module_reference["res2fusion_small.fusion"]) <= TOLERANCE
        )
        neck = small2.bev_neck(levels)
    for index, level in enumerate(levels):
        assert rms_error(level, module_reference[f"res2fusion_small.out{index}"]) <= TOLERANCE
    assert rms_error(neck[:, ::2], module_reference["fpn_lss_small.out"]) <= TOLERANCE


def test_res2fusion_full(module_reference: dict[str, np.ndarray]) -> None:
    backbone = build("full2").bev_backbone
    x = torch.from_numpy(recipe.normal("A", "res2fusion_full_x", (1, 1440, 16, 16)))
    with torch.no_grad():
        fused = backbone.fusion(x)
        levels = backbone(x)
    assert rms_error(fused, module_reference["res2fusion_full.fusion"]) <= TOLERANCE
    for index, level in enumerate(levels):
        assert rms_error(level, module_reference[f"res2fusion_full.out{index}"]) <= TOLERANCE


def test_refinement(
    small2: torch.nn.Module,
    module_reference: dict[str, np.ndarray],
    geometry_reference: dict[str, np.ndarray],
) -> None:
    bda = torch.from_numpy(recipe.bda_matrix(recipe.BDA_CASES[1]).astype(np.float32)).unsqueeze(0)
    features = torch.from_numpy(recipe.normal("A", "refine_feat", (1, 6, 32, 16, 44)))
    bev = torch.from_numpy(recipe.normal("A", "refine_bev", (1, 64, 64, 64)))
    with torch.no_grad():
        out = small2.refinement(bev, features, small_geometry(geometry_reference, bda))
    assert rms_error(out.flatten(2).transpose(1, 2), module_reference["refine_small.out"]) <= TOLERANCE


# ------------------------------------------------------------------------------------------ decode
def test_decode_and_suppression() -> None:
    stored = dict(np.load(BUNDLED / "mod_decode.npz"))
    config = config_of("full1")
    maps = [{k: torch.from_numpy(v) for k, v in task.items()} for task in recipe.head_maps("A")]
    candidates, final = decode(maps, config), boxes_from_maps(maps, config)
    for sample in range(2):
        for task in range(6):
            name = f"nms.s{sample}.task{task}.decoded"
            found = candidates[sample][task]
            np.testing.assert_allclose(found.boxes, stored[name], atol=2e-6)
            np.testing.assert_allclose(found.scores, stored[name + "_scores"], atol=1e-6)
            np.testing.assert_array_equal(found.labels, stored[name + "_labels"])
        # The same survivors, in the same order.
        boxes = from_bottom_center(stored[f"nms.s{sample}.boxes"])
        assert final[sample].boxes.shape == boxes.shape
        np.testing.assert_allclose(final[sample].boxes, boxes, atol=5e-6)
        np.testing.assert_allclose(final[sample].scores, stored[f"nms.s{sample}.scores"], atol=1e-6)
        np.testing.assert_array_equal(final[sample].labels, stored[f"nms.s{sample}.labels"])


def test_decode_leaves_out_what_is_not_finite() -> None:
    config = config_of("full1")
    maps = [{k: torch.from_numpy(v.copy()) for k, v in task.items()} for task in recipe.head_maps("A")]
    maps[0]["heatmap"][0, 0] = float("nan")
    maps[1]["dim"][0, :, :, :] = 100.0  # exp overflows
    sample = boxes_from_maps(maps, config)[0]
    assert np.isfinite(sample.boxes).all()
    assert set(sample.labels) == {3, 4, 5, 6, 7, 8, 9}


# ------------------------------------------------------------------------------------------ images
def test_resize_and_crop(module_reference: dict[str, np.ndarray], scalars: dict) -> None:
    source = recipe.generator("A", "mod/pil").integers(0, 256, (45, 80, 3))
    image = np.kron(source, np.ones((20, 20, 1))).astype(np.uint8)
    ratio, crop, _, _ = recipe.AUG_CASES[
        0
    ]  # the other cases flip and rotate too, which is training's augmentation
    canvas = resize_and_crop(image, ImageTransform(ratio, (int(1600 * ratio), int(900 * ratio)), crop))
    np.testing.assert_array_equal(canvas[::8, ::8], module_reference["pil0.canvas_sub"])
    assert recipe.digest(canvas) == scalars["pil0"]["sha"]


def test_image_transform_is_the_published_one() -> None:
    transform = image_transform(1600, 900, config_of("full1").image)
    assert (transform.resized, transform.crop) == ((704, 396), (0, 140, 704, 396))
    rotation, translation = recipe.post_matrices(256, 704)
    np.testing.assert_allclose(transform.rotation, rotation, rtol=1e-6)
    np.testing.assert_array_equal(transform.translation, translation)


def test_normalize() -> None:
    config = config_of("small1")
    canvas = recipe.make_images("A", 1, config.image.height, config.image.width)
    images, _ = window_inputs(config)
    assert torch.equal(normalize(torch.from_numpy(canvas)), images[0])
