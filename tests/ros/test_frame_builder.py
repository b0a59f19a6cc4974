# SPDX-License-Identifier: Apache-2.0
"""Frames get their calibrations and poses, wait for them without blocking, and are counted when they do not come."""

from __future__ import annotations

import numpy as np
import pytest

from bevnext_core.calibration import Calibration, Rectifier
from bevnext_core.errors import ConfigError, FrameError
from bevnext_core.geometry import rigid
from bevnext_ros.streams.assembler import SECOND, AssembledFrame, StampedImage
from bevnext_ros.streams.faults import Faults
from bevnext_ros.streams.frame_builder import FrameBuilder, camera_frame
from bevnext_ros.streams.transform_buffer import TransformBuffer

MS = 1_000_000
K = np.array([[100.0, 0, 32], [0, 100.0, 24], [0, 0, 1]])
IDENTITY = np.array([1.0, 0, 0, 0])
CAMERAS = ("front", "left")


def calibration(**changes) -> Calibration:
    return Calibration(**{"intrinsics": K, "size": (64, 48), "frame": "front_optical", **changes})


def pixels(width: int = 64, height: int = 48) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)


def assembled(stamp: float, reason: str = "", images: tuple | None = None) -> AssembledFrame:
    ns = round(stamp * SECOND)
    images = images or (StampedImage(ns, pixels(), ns), StampedImage(ns + 20 * MS, pixels(), ns))
    return AssembledFrame(ns, images, 0, ns, reason)


def make_builder(calibrated: bool = True, **options) -> FrameBuilder:
    transforms = TransformBuffer()
    for i, camera in enumerate(CAMERAS):
        transforms.add("base_link", f"{camera}_optical", IDENTITY, np.array([1.0, i, 0]), 0, static=True)
    frames = ("front_optical", "left_optical")
    builder = FrameBuilder(CAMERAS, transforms, camera_frames=frames, **options)
    if calibrated:
        for camera in CAMERAS:
            assert builder.set_calibration(camera, calibration())
    return builder


def add_pose(builder: FrameBuilder, stamp: float) -> None:
    builder.transforms.add("odom", "base_link", IDENTITY, np.array([10 * stamp, 0, 0]), round(stamp * SECOND))


def test_each_camera_has_the_pose_of_its_own_stamp():
    builder = make_builder()
    for stamp in (1.0, 1.1):
        add_pose(builder, stamp)
    (posed,) = builder.add(assembled(1.05), 0)
    np.testing.assert_allclose(posed.global_from_ego[:3, 3], [10.5, 0, 0])
    np.testing.assert_allclose(posed.global_from_camera_ego[:, :3, 3], [[10.5, 0, 0], [10.7, 0, 0]])
    np.testing.assert_allclose(posed.ego_from_camera[:, :3, 3], [[1, 0, 0], [1, 1, 0]])
    np.testing.assert_allclose(posed.output_from_ego, np.eye(4))


def test_output_frame_is_looked_up_at_the_anchor_stamp():
    builder = make_builder(output_frame="odom")
    for stamp in (1.0, 1.1):
        add_pose(builder, stamp)
    (posed,) = builder.add(assembled(1.05), 0)
    np.testing.assert_allclose(posed.output_from_ego, rigid(IDENTITY, [10.5, 0, 0]))


def test_a_frame_waits_for_late_transforms_and_keeps_the_order():
    builder = make_builder(deadline=0.5)
    add_pose(builder, 1.0)
    assert builder.add(assembled(1.05), 0) == [] and builder.waiting == 1
    assert builder.add(assembled(1.0), 10 * MS) == []  # the later one does not overtake
    add_pose(builder, 1.1)
    ready = builder.poll(20 * MS)
    assert [posed.assembled.stamp_ns for posed in ready] == [1_050 * MS, 1_000 * MS]
    assert builder.frame_drops.total == 0


@pytest.mark.parametrize(
    "cause, stamp",
    [("transform_not_yet", 2.0), ("transform_too_old", 0.5), ("transform_not_connected", None)],
)
def test_transforms_that_do_not_come_are_distinct_causes(cause, stamp):
    faults = Faults()
    builder = make_builder(deadline=0.5, faults=faults)
    if stamp is not None:
        for at in (1.0, 1.1):
            add_pose(builder, at)
    assert builder.add(assembled(stamp or 1.0), 0) == []
    waits = cause != "transform_too_old"  # that one can never come: no waiting
    assert builder.waiting == waits
    assert builder.poll(499 * MS) == [] and builder.waiting == waits
    assert builder.poll(501 * MS) == [] and builder.waiting == 0
    assert builder.frame_drops.snapshot() == {cause: 1}
    assert faults.present[f"frame {cause}"].text.startswith(f"a frame was dropped ({cause}): ")


def test_waiting_frames_are_bounded():
    builder = make_builder(queue_size=3)
    for i in range(10):
        builder.add(assembled(1.0 + i * 0.1), 0)
    assert builder.waiting == 3 and builder.frame_drops.snapshot() == {"transform_queue_full": 7}


def test_missing_calibration_stops_the_frame_or_masks_the_camera():
    for mask in (False, True):
        builder = make_builder(calibrated=False, mask_faulty=mask, deadline=0.2)
        builder.set_calibration("front", calibration())
        for at in (1.0, 2.0):
            add_pose(builder, at)
        assert builder.add(assembled(1.5), 0) == []
        ready = builder.poll(201 * MS)
        if not mask:
            assert ready == [] and builder.frame_drops.snapshot() == {"no_camera_info": 1}
            continue
        assert ready[0].assembled.images[1] is None
        # it was waited for once; the next frame goes at once
        assert len(builder.add(assembled(1.6), 300 * MS)) == 1
        builder.set_calibration("left", calibration())
        assert builder.add(assembled(1.7), 400 * MS)[0].assembled.images[1] is not None


def test_a_refused_calibration_is_the_reason_for_the_frames_that_it_costs():
    faults = Faults()
    builder = make_builder(calibrated=False, deadline=0.2, faults=faults)
    builder.set_calibration("front", calibration())
    builder.set_calibration("left", calibration(model="radtan", distortion=(0.1, 0.0, 0.0, 0.0)))
    for at in (1.0, 2.0):
        add_pose(builder, at)
    builder.add(assembled(1.5), 0)
    builder.poll(201 * MS)
    assert "left" in faults.last() and "'radtan'" in faults.last() and "no_camera_info" in faults.last()
    builder.set_calibration("left", calibration())
    assert list(faults.present) == ["frame no_camera_info"]


def test_frames_that_wait_in_vain_name_what_they_waited_for():
    faults = Faults()
    builder = make_builder(queue_size=3, faults=faults)
    for i in range(10):
        builder.add(assembled(1.0 + i * 0.1), 0)
    assert faults.last().startswith(
        "a frame was dropped (transform_queue_full): no transforms join 'odom' and 'base_link': no transform "
        "names 'odom'"
    )


def test_changed_calibration_resets_with_a_reason_once():
    builder = make_builder()
    for at in (1.0, 2.0):
        add_pose(builder, at)
    assert builder.add(assembled(1.1), 0)[0].reset_reason == ""
    builder.set_calibration("left", calibration())  # the same: nothing changes
    assert builder.add(assembled(1.2), 0)[0].reset_reason == ""
    builder.set_calibration("left", calibration(intrinsics=K * [[1.1], [1.1], [1]]))
    assert builder.add(assembled(1.3), 0)[0].reset_reason == "the calibration of left changed"
    assert builder.add(assembled(1.4), 0)[0].reset_reason == ""


def rounded(step: int) -> np.ndarray:
    return np.asarray(K * (1 + 1e-13 * step))


PLUMB = {"model": "plumb_bob", "distortion": (-0.2, 0.05, 0.001, -0.001, 0.0)}
RECTIFIED = {"rectified": K * [[0.9], [0.9], [1]]}


@pytest.mark.parametrize(
    "policy, first, steps",
    [
        ("rectify", {}, lambda i: {"intrinsics": rounded(i)}),
        ("rectify", {"intrinsics": K / 3}, lambda i: {"intrinsics": (K / 3).astype(np.float32).astype(float)}),
        ("rectify", PLUMB, lambda i: {**PLUMB, "distortion": tuple(d * (1 + 1e-9 * i) for d in PLUMB["distortion"])}),
        ("rectify", PLUMB, lambda i: {**PLUMB, "distortion": PLUMB["distortion"][: 4 + i % 2]}),
        ("rectify", {}, lambda i: {"distortion": (1e-11 * i, 0.0, 0.0, 0.0), "model": "plumb_bob"}),
        ("rectify", {}, lambda i: {"rectified": K * i}),  # not what is used
        ("rectified", RECTIFIED, lambda i: {"rectified": RECTIFIED["rectified"] * (1 + 1e-12 * i)}),
        ("rectified", RECTIFIED, lambda i: {**RECTIFIED, "intrinsics": K * i}),
        ("rectified", RECTIFIED, lambda i: {**RECTIFIED, "distortion": (np.nan,) * i}),
    ],
)
def test_a_calibration_that_differs_by_rounding_is_the_same(policy, first, steps):
    builder = make_builder(calibrated=False, distortion=policy)
    for at in (1.0, 3.0):
        add_pose(builder, at)
    for camera in CAMERAS:
        assert builder.set_calibration(camera, calibration(**first))
    for i in range(1, 6):
        assert builder.set_calibration("left", calibration(**steps(i)))
        (posed,) = builder.add(assembled(1.0 + 0.1 * i), 0)
        assert posed.reset_reason == ""


def test_many_small_changes_add_up_to_one():
    """Each is below a thousandth of a pixel; together they are not, and are noticed when they reach it."""
    builder = make_builder()
    for at in (1.0, 3.0):
        add_pose(builder, at)
    reasons = []
    for i in range(1, 16):
        moved = K + np.array([[0, 0, 0.0004 * i], [0, 0, 0], [0, 0, 0]])
        builder.set_calibration("left", calibration(intrinsics=moved))
        (posed,) = builder.add(assembled(1.0 + 0.1 * i), 0)
        assert abs(posed.rectifiers[1].intrinsics[0, 2] - moved[0, 2]) <= 0.001
        reasons.append(posed.reset_reason)
    assert [i for i, reason in enumerate(reasons, 1) if reason] == [3, 6, 9, 12, 15]


@pytest.mark.parametrize(
    "change", [{"distortion": (-0.2001, 0.05, 0.001, -0.001, 0.0)}, {"size": (64, 50)}, {"model": "equidistant"}]
)
def test_a_change_beyond_rounding_is_one(change):
    builder = make_builder(calibrated=False)
    for at in (1.0, 3.0):
        add_pose(builder, at)
    plumb = {**PLUMB, "distortion": PLUMB["distortion"][:4]} if "model" in change else PLUMB
    for camera in CAMERAS:
        builder.set_calibration(camera, calibration(**plumb))
    builder.set_calibration("left", calibration(**{**plumb, **change}))
    assert builder.add(assembled(1.1), 0)[0].reset_reason == "the calibration of left changed"


@pytest.mark.parametrize(
    "change, fault",
    [
        ({}, ""),
        ({"intrinsics": np.zeros((3, 3))}, ""),
        ({"intrinsics": np.full((3, 3), np.nan), "distortion": (np.nan,), "model": "radtan"}, ""),
        ({"rectified": K * np.nan}, "its matrix P holds NaN or infinity"),
        ({"rectified": K * 0 + np.diag([0, 0, 1])}, "its matrix P is singular (fx 0, fy 0)"),
        ({"rectified": None, "intrinsics": np.zeros((3, 3))}, "its matrix P is zero, and matrix K is singular"),
    ],
)
def test_with_rectified_images_p_decides_whatever_k_and_d_are(change, fault):
    faults = Faults()
    builder = make_builder(calibrated=False, distortion="rectified", faults=faults)
    given = calibration(**{"rectified": K * [[0.9], [0.9], [1]], **change})
    assert builder.set_calibration("front", given) == builder.accepts("front", given) == (not fault)
    assert fault in faults.last() and bool(fault) == bool(faults.last())


@pytest.mark.parametrize(
    "bad",
    [
        {"intrinsics": np.zeros((3, 3))},
        {"intrinsics": np.full((3, 3), np.nan)},
        {"distortion": (np.nan, 0.0, 0.0, 0.0, 0.0), "model": "plumb_bob"},
        {"distortion": (0.1,) * 6, "model": "pinhole_six"},
    ],
)
def test_bad_calibration_is_ignored_and_the_good_one_stays(bad):
    faults = Faults()
    builder = make_builder(faults=faults)
    for at in (1.0, 2.0):
        add_pose(builder, at)
    assert not builder.set_calibration("left", calibration(**bad))
    assert builder.calibration_drops.total == 1 and "left" in faults.present["camera_info left"].text
    (posed,) = builder.add(assembled(1.1), 0)
    assert posed.reset_reason == ""
    np.testing.assert_allclose(posed.rectifiers[1].intrinsics, K)


def test_a_reset_reason_outlives_a_dropped_frame():
    builder = make_builder(deadline=0.1)
    add_pose(builder, 1.0)
    assert builder.add(assembled(1.05, "time went back by 9.0 s"), 0) == []
    assert builder.poll(200 * MS) == []
    for at in (1.1, 1.2):
        add_pose(builder, at)
    (posed,) = builder.add(assembled(1.15), 300 * MS)
    assert posed.reset_reason == "time went back by 9.0 s"


def decode(payload, name):
    if isinstance(payload, str):
        raise FrameError(f"{name}: {payload}")
    return payload


def ready_frame(images: tuple, **options):
    builder = make_builder(**options)
    for at in (1.0, 2.0):
        add_pose(builder, at)
    (posed,) = builder.add(assembled(1.5, images=images), 0)
    return posed


def test_camera_frame_holds_decoded_images_and_stamps():
    at = round(1.5 * SECOND)
    posed = ready_frame((StampedImage(at, pixels(), 0), StampedImage(at + MS, pixels(), 0)))
    frame, faults = camera_frame(posed, ("CAM_FRONT", "CAM_LEFT"), decode, mask_faulty=False)
    assert frame.cameras == ("CAM_FRONT", "CAM_LEFT") and not faults and frame.valid.all()
    assert frame.camera_stamps_ns.tolist() == [at, at + MS] and frame.stamp_ns == at
    np.testing.assert_array_equal(frame.images[0], pixels())


@pytest.mark.parametrize("payload", ["truncated", np.zeros((40, 64, 3), np.uint8)])
def test_a_bad_image_stops_the_frame_or_masks_the_camera(payload):
    at = round(1.5 * SECOND)
    posed = ready_frame((StampedImage(at, pixels(), 0), StampedImage(at, payload, 0)))
    with pytest.raises(FrameError, match="left"):
        camera_frame(posed, ("CAM_FRONT", "CAM_LEFT"), decode, mask_faulty=False)
    frame, faults = camera_frame(posed, ("CAM_FRONT", "CAM_LEFT"), decode, mask_faulty=True)
    assert frame.valid.tolist() == [True, False] and frame.images[1] is None
    assert len(faults) == 1 and "left" in str(faults[0])


def test_a_frame_without_any_image_is_an_error():
    at = round(1.5 * SECOND)
    posed = ready_frame((StampedImage(at, "bad", 0), StampedImage(at, "bad", 0)))
    with pytest.raises(FrameError, match="no camera has a usable image"):
        camera_frame(posed, ("CAM_FRONT", "CAM_LEFT"), decode, mask_faulty=True)


def test_rectify_moves_a_distorted_point_to_where_the_pinhole_says():
    k = np.array([[300.0, 0, 160], [0, 300.0, 120], [0, 0, 1]])
    distortion = (-0.3, 0.1, 0.0, 0.0, 0.0)
    x, y = 0.3, -0.2
    r2 = x * x + y * y
    factor = 1 + distortion[0] * r2 + distortion[1] * r2 * r2  # plumb_bob, radial part
    seen_u, seen_v = 300 * x * factor + 160, 300 * y * factor + 120
    image = np.zeros((240, 320, 3), np.uint8)
    v, u = np.mgrid[:240, :320]
    image[...] = (255 * np.exp(-((u - seen_u) ** 2 + (v - seen_v) ** 2) / 8))[..., None].astype(np.uint8)
    rectifier = Rectifier("front", Calibration(k, distortion, "plumb_bob", (320, 240)), "rectify")
    weights = rectifier(image)[..., 0].astype(float)
    center = (weights * u).sum() / weights.sum(), (weights * v).sum() / weights.sum()
    np.testing.assert_allclose(center, (300 * x + 160, 300 * y + 120), atol=0.2)
    assert np.hypot(seen_u - 300 * x - 160, seen_v - 300 * y - 120) > 2  # it really was elsewhere
    np.testing.assert_array_equal(rectifier.intrinsics, k)


def test_distortion_policies():
    distorted = calibration(
        distortion=(-0.1, 0, 0, 0, 0), model="plumb_bob", rectified=K * [[0.9], [0.9], [1]]
    )
    with pytest.raises(ConfigError, match=r"distorted.*rectify"):
        Rectifier("front", distorted, "refuse")
    trusting = Rectifier("front", distorted, "rectified")
    np.testing.assert_allclose(trusting.intrinsics, K * [[0.9], [0.9], [1]])
    image = pixels()
    assert trusting(image) is image
    assert Rectifier("front", calibration(distortion=(0.0,) * 5, model="plumb_bob"), "refuse")(image) is image
    fisheye = calibration(distortion=(0.01, 0.0, 0.0, 0.0), model="equidistant")
    assert Rectifier("front", fisheye, "rectify")(image).shape == image.shape
