# SPDX-License-Identifier: Apache-2.0
"""Weights and inputs of the reference outputs, as functions of (tag, name, shape).

Nothing random is stored: every array is drawn from a generator that is seeded with its name, by the
formulas of the reference's RECIPE. Original (published) parameter names are the seeds.
"""

from __future__ import annotations

import hashlib
import re
import zlib

import numpy as np

from bevnext_core.classes import CAMERAS

HEATMAP_GAIN = {"small1": 1.5, "small2": 3.2, "full1": 1.0, "full2": 2.0}
"""Gain of the last heat-map convolution for tag A: leaves 50 to 300 boxes."""

_GAINS = [
    (r"img_backbone\.layer\d\.\d+\.conv3\.weight$", 0.5),
    (r"img_backbone\.", 1.1),
    (r"img_neck\.lateral_convs", 0.7),
    (r"img_neck\.fpn_convs", 1.0),
    (r"img_view_transformer\.depth_net\.depth_conv\.[012]\.conv2\.weight$", 0.5),
    (r"img_view_transformer\.depth_net\.depth_conv\.4\.weight$", 1.0),
    (r"img_view_transformer\.depth_net\.context_conv\.3\.weight$", 0.8),
    (r"img_view_transformer\.depth_net\.", 1.2),
    (r"pre_process_net\.layers\.0\.0\.(conv1|downsample)\.weight$", 0.6),
    (r"pre_process_net\.layers\.\d\.\d\.conv2\.weight$", 0.5),
    (r"img_bev_encoder_backbone\.layers\.\d\.\d\.conv2\.weight$", 0.5),
    (r"img_bev_encoder_backbone\.layers\.\d\.\d\.\d\.conv3\.weight$", 0.5),
    (r"img_bev_encoder_backbone\.", 1.2),
    (r"img_bev_encoder_neck\.", 1.0),
    (r"depth_emb\.0\.weight$", 8.0),
    (r"proposal_head\..*heatmap\.1\.weight$", None),
    (r"proposal_head\.", 1.0),
    (r"pts_bbox_head\..*\.1\.weight$", 0.35),
]

# Plausible statistics of the 27 camera parameters, so that a focal length of 1266 comes out of order 1.
_CAMERA_MEAN = np.array(
    [
        1200,
        1200,
        816,
        491,
        0.44,
        0,
        0,
        0,
        0.44,
        -140,
        1,
        0,
        0,
        1,
        1,
        0,
        0,
        0.5,
        1.0,
        0,
        0,
        0,
        0,
        0,
        -0.5,
        0,
        1.5,
    ],
    np.float64,
)
_CAMERA_STD = np.array(
    [200, 200, 10, 10, 0.05, 0.05, 10, 0.05, 0.05, 20, 0.1, 0.1, 0.1, 0.1, 0.05]
    + [0.7, 0.1, 0.7, 1.0, 0.7, 0.1, 0.7, 0.5, 0.1, 0.1, 0.5, 0.2],
    np.float64,
)


def generator(tag: str, name: str) -> np.random.Generator:
    """The stream of one named array."""
    return np.random.default_rng(zlib.crc32(f"{tag}/{name}".encode()))


def weight(tag: str, name: str, shape: tuple[int, ...], names: set[str], variant: str) -> np.ndarray:
    """One state-dict entry; ``names`` (all keys) tells a BatchNorm by its running_mean sibling."""
    shape = tuple(shape)
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    rng = generator(tag, name)
    prefix, leaf = name.rsplit(".", 1)

    def uniform(low: float, high: float) -> np.ndarray:
        return rng.uniform(low, high, shape).astype(np.float32)

    if prefix + ".running_mean" in names:
        if prefix == "img_view_transformer.depth_net.bn":
            if leaf == "running_mean":
                return (_CAMERA_MEAN + _CAMERA_STD * rng.uniform(-0.1, 0.1, shape)).astype(np.float32)
            if leaf == "running_var":
                return (_CAMERA_STD**2 * rng.uniform(0.8, 1.2, shape)).astype(np.float32)
        return uniform(0.8, 1.2) if leaf in ("weight", "running_var") else uniform(-0.1, 0.1)
    if re.search(r"\.norms\.\d+\.(weight|bias)$", name):
        return uniform(0.8, 1.2) if leaf == "weight" else uniform(-0.1, 0.1)
    if name == "img_view_transformer.crf.ws.0":
        return np.full(shape, 0.015, np.float32)
    if name.endswith(("embedding.weight", "_embed.weight")):
        return (rng.standard_normal(shape) * 0.3).astype(np.float32)
    if name.endswith("conv_offset.weight"):
        return (rng.standard_normal(shape) * 0.5 * np.sqrt(2.0 / np.prod(shape[1:]))).astype(np.float32)
    if name.endswith("conv_offset.bias"):
        return uniform(-0.7, 0.7)
    if name.endswith("sampling_offsets.weight"):
        return (rng.standard_normal(shape) * 0.5 * np.sqrt(1.0 / shape[1])).astype(np.float32)
    if name.endswith("sampling_offsets.bias"):
        return uniform(-2.0, 2.0)
    if name.endswith("attention_weights.weight"):
        return (rng.standard_normal(shape) * np.sqrt(1.0 / shape[1])).astype(np.float32)
    if leaf == "bias":
        if name.endswith(".heatmap.1.bias"):
            return np.full(shape, -5.0, np.float32)
        if name.endswith(".dim.1.bias"):
            return (np.array([1.3, 0.6, 0.5]) + rng.uniform(-0.05, 0.05, shape)).astype(np.float32)
        if name.endswith(".height.1.bias"):
            return uniform(-1.0, 0.0)
        if name.endswith(".reg.1.bias"):
            return (0.5 + rng.uniform(-0.05, 0.05, shape)).astype(np.float32)
        return uniform(-0.1, 0.1)
    assert leaf == "weight" and len(shape) >= 2, (name, shape)
    gain = next((value for pattern, value in _GAINS if re.match(pattern, name)), 1.0)
    if gain is None:
        gain = HEATMAP_GAIN[variant]
    kernel = rng.standard_normal(shape) * gain * np.sqrt(2.0 / np.prod(shape[1:]))
    kernel -= kernel.mean(axis=tuple(range(1, len(shape))), keepdims=True)
    return kernel.astype(np.float32)


def state_dict(entries: dict[str, tuple[int, ...]], variant: str, tag: str = "A") -> dict[str, np.ndarray]:
    """All entries of a model from its published names and shapes."""
    names = set(entries)
    return {name: weight(tag, name, shape, names, variant) for name, shape in entries.items()}


def state_hash(state: dict[str, np.ndarray]) -> str:
    """sha256 over sorted names and bytes, as the reference records it."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(state[name]).tobytes())
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------- camera rig
_YAW = (55, 0, -55, 110, 180, -110)
_POSITION = (
    (1.52, 0.49, 1.51),
    (1.70, 0.02, 1.51),
    (1.55, -0.49, 1.50),
    (1.03, 0.48, 1.56),
    (0.03, 0.00, 1.58),
    (1.01, -0.48, 1.56),
)
CAMERA_DELAY = dict(zip(CAMERAS, (-0.018, -0.010, -0.002, -0.026, 0.008, 0.002), strict=True))
"""Seconds between a frame's nominal time and each camera's stamp."""
_OPTICAL = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])


def _rotate_z(a: float) -> np.ndarray:
    return np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1.0]])


def _rotate_y(a: float) -> np.ndarray:
    return np.array([[np.cos(a), 0, np.sin(a)], [0, 1.0, 0], [-np.sin(a), 0, np.cos(a)]])


def _rotate_x(a: float) -> np.ndarray:
    return np.array([[1.0, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])


def quaternion_from_matrix(r: np.ndarray) -> np.ndarray:
    """(w, x, y, z) of a rotation matrix."""
    w = np.sqrt(max(0.0, 1 + r[0, 0] + r[1, 1] + r[2, 2])) / 2
    x = np.sqrt(max(0.0, 1 + r[0, 0] - r[1, 1] - r[2, 2])) / 2
    y = np.sqrt(max(0.0, 1 - r[0, 0] + r[1, 1] - r[2, 2])) / 2
    z = np.sqrt(max(0.0, 1 - r[0, 0] - r[1, 1] + r[2, 2])) / 2
    q = np.array(
        [
            w,
            np.copysign(x, r[2, 1] - r[1, 2]),
            np.copysign(y, r[0, 2] - r[2, 0]),
            np.copysign(z, r[1, 0] - r[0, 1]),
        ]
    )
    return q / np.linalg.norm(q)


def matrix_from_quaternion(q: np.ndarray) -> np.ndarray:
    """Rotation matrix of (w, x, y, z)."""
    w, x, y, z = np.asarray(q, np.float64) / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def make_infos(tag: str, n_frames: int) -> list[dict]:
    """Calibration and poses of ``n_frames`` frames 0.5 s apart; index 0 is the key frame, then backwards in time.

    Per camera: sensor2ego, ego2global (quaternion w x y z, translation) and intrinsics of a 1600x900 image.
    """
    rng = generator(tag, "rig")
    rig = {}
    for camera, yaw, position in zip(CAMERAS, _YAW, _POSITION, strict=True):
        heading = _rotate_z(np.deg2rad(yaw + rng.uniform(-1, 1)))
        pitch = _rotate_y(np.deg2rad(rng.uniform(-0.7, 0.7)))
        roll = _rotate_x(np.deg2rad(rng.uniform(-0.7, 0.7)))
        offset = np.array(position) + rng.uniform(-0.02, 0.02, 3)
        focal = (809.0 if camera == "CAM_BACK" else 1266.0) + rng.uniform(-6, 6)
        intrinsics = [
            [focal, 0.0, 816.0 + rng.uniform(-12, 12)],
            [0.0, focal, 491.0 + rng.uniform(-12, 12)],
            [0.0, 0.0, 1.0],
        ]
        rotation = quaternion_from_matrix(heading @ pitch @ roll @ _OPTICAL)
        rig[camera] = (rotation.tolist(), offset.tolist(), intrinsics)
    speed, yaw_rate, yaw0 = rng.uniform(6, 10), rng.uniform(-0.15, 0.15), rng.uniform(-3, 3)
    origin = np.array([600.0, 1600.0, 0.0]) + rng.uniform(-50, 50, 3) * [1, 1, 0.02]
    tilt = _rotate_z(np.deg2rad(-90 + rng.uniform(-0.5, 0.5))) @ _rotate_x(np.deg2rad(rng.uniform(-0.3, 0.3)))
    lidar_rotation = quaternion_from_matrix(tilt).tolist()

    def pose(t: float) -> tuple[list[float], list[float]]:
        yaw = yaw0 + yaw_rate * t
        x = speed / yaw_rate * (np.sin(yaw) - np.sin(yaw0))
        y = speed / yaw_rate * (np.cos(yaw0) - np.cos(yaw))
        r = _rotate_z(yaw) @ _rotate_y(0.01 * np.sin(1.3 * t)) @ _rotate_x(0.008 * np.cos(0.7 * t))
        return quaternion_from_matrix(r).tolist(), (origin + np.array([x, y, 0.05 * t])).tolist()

    infos = []
    for k in range(n_frames):
        t0 = -0.5 * k
        cameras = {}
        for camera in CAMERAS:
            q, t = pose(t0 + CAMERA_DELAY[camera])
            cameras[camera] = {
                "sensor2ego_rotation": rig[camera][0],
                "sensor2ego_translation": rig[camera][1],
                "ego2global_rotation": q,
                "ego2global_translation": t,
                "cam_intrinsic": rig[camera][2],
            }
        q, t = pose(t0)
        infos.append(
            {
                "cams": cameras,
                "lidar2ego_rotation": lidar_rotation,
                "lidar2ego_translation": [0.94, 0.0, 1.84],
                "ego2global_rotation": q,
                "ego2global_translation": t,
                "timestamp": int(1.5e15 + t0 * 1e6),
            }
        )
    return infos


def transform(rotation_wxyz: list[float], translation: list[float]) -> np.ndarray:
    """4x4 float64."""
    matrix = np.eye(4)
    matrix[:3, :3] = matrix_from_quaternion(np.array(rotation_wxyz))
    matrix[:3, 3] = translation
    return matrix


# ---------------------------------------------------------------------------------------- images
def make_images(tag: str, n_frames: int, height: int, width: int) -> np.ndarray:
    """uint8 RGB ``[n_frames, 6, H, W, 3]``, as if resized and cropped: noise at four scales and flat areas
    (saturated sky, black border, a grey block) that are aligned to the 8-pixel patches."""
    out = np.zeros((n_frames, 6, height, width, 3), np.uint8)
    for k in range(n_frames):
        for c in range(6):
            rng = generator(tag, f"img/{k}/{c}/{height}x{width}")
            image = np.zeros((height, width, 3), np.int64)
            for scale, amplitude in ((32, 90), (8, 60), (2, 40), (1, 30)):
                noise = rng.integers(0, amplitude + 1, (height // scale, width // scale, 3))
                image += np.repeat(np.repeat(noise, scale, 0), scale, 1)
            image = np.clip(image, 0, 255)
            sky = 8 * int(rng.integers(3, 7))
            image[:sky, width // 4 : width // 4 + 8 * int(rng.integers(6, 14))] = 255
            image[height - 16 :, : 8 * int(rng.integers(3, 8))] = 0
            y = 8 * int(rng.integers(height // 16, height // 8 - 4))
            x = 8 * int(rng.integers(width // 16, width // 8 - 6))
            image[y : y + 24, x : x + 40] = rng.integers(60, 200, 3)
            out[k, c] = image.astype(np.uint8)
    return out


def normalize(images: np.ndarray) -> np.ndarray:
    """RGB uint8 ``[..., H, W, 3]`` -> float32 ``[..., 3, H, W]``: channels reversed, then (x - mean) / std."""
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    return np.moveaxis((images[..., ::-1].astype(np.float64) - mean) / std, -1, -3).astype(np.float32)


def post_matrices(
    height: int, width: int, source: tuple[int, int] = (900, 1600)
) -> tuple[np.ndarray, np.ndarray]:
    """Image matrix (rotation ``[3, 3]``, translation ``[3]``) of the test-time resize and crop."""
    ratio = width / source[1]
    crop_top, crop_left = int(source[0] * ratio) - height, int(max(0, int(source[1] * ratio) - width) / 2)
    rotation = np.eye(3, dtype=np.float32)
    rotation[0, 0] = rotation[1, 1] = ratio
    return rotation, np.array([-crop_left, -crop_top, 0], np.float32)


# ---------------------------------------------------------------------------------------- annotations
_SIZES = np.array(
    [
        [4.6, 1.95, 1.73],
        [6.9, 2.5, 2.8],
        [6.4, 2.85, 3.2],
        [11, 2.95, 3.5],
        [12.3, 2.9, 3.9],
        [0.5, 2.5, 1.0],
        [2.1, 0.77, 1.5],
        [1.7, 0.6, 1.3],
        [0.73, 0.67, 1.77],
        [0.41, 0.41, 1.07],
    ]
)


def make_gt(tag: str, count: int, extent: float = 50.0) -> tuple[np.ndarray, np.ndarray]:
    """Boxes ``[count, 9]`` (geometric centre) and labels; some out of range, two in adjacent cells."""
    rng = generator(tag, "gt")
    labels = rng.integers(0, 10, count)
    labels[:10] = np.arange(10)
    boxes = np.zeros((count, 9))
    boxes[:, :2] = rng.uniform(-extent, extent, (count, 2))
    boxes[:, 2] = rng.uniform(-1, 1.5, count)
    boxes[:, 3:6] = _SIZES[labels] * rng.uniform(0.8, 1.2, (count, 3))
    boxes[:, 6] = rng.uniform(-np.pi, np.pi, count)
    boxes[:, 7:] = rng.uniform(-5, 5, (count, 2))
    boxes[3, 0], boxes[4, 1] = 51.3, -51.25
    boxes[11, :2] = boxes[0, :2] + 0.1
    labels[11] = labels[0]
    return boxes.astype(np.float32), labels.astype(np.int64)


def make_depth(tag: str, height: int, width: int, density: float = 0.02) -> np.ndarray:
    """Sparse lidar depth ``[6, H, W]`` float32 metres, 0 = none; some below 1 m and above 60 m."""
    rng = generator(tag, f"depth/{height}x{width}")
    depth = rng.uniform(0.5, 65.0, (6, height, width))
    mask = rng.uniform(0, 1, (6, height, width)) < density
    return np.where(mask, depth, 0).astype(np.float32)


# ---------------------------------------------------------------------------------------- module inputs
def normal(tag: str, name: str, shape: tuple[int, ...], scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    """A named standard-normal array, scaled and shifted."""
    return (generator(tag, "mod/" + name).standard_normal(shape) * scale + shift).astype(np.float32)


def crf_inputs(tag: str) -> tuple[np.ndarray, np.ndarray]:
    """Colours ``[2, 3, 6, 10]`` (with equal and with black patches) and logits ``[2, 12, 6, 10]``."""
    rng = generator(tag, "mod/crf")
    colors = rng.integers(0, 255 * 64 + 1, (2, 3, 6, 10)).astype(np.float32) / 64
    colors[:, :, 1:3, 2:6] = colors[:, :, 1:2, 2:3]
    colors[0, :, :, 9] = 0.0
    colors[1, :, 4:, :3] = 255.0
    return colors, (rng.standard_normal((2, 12, 6, 10)) * 2).astype(np.float32)


def head_maps(tag: str, height: int = 128, width: int = 128, batch: int = 2) -> list[dict[str, np.ndarray]]:
    """Six dicts heatmap (logits), reg, height, dim, rot, vel with tight clusters of peaks for each class."""
    rng = generator(tag, "mod/head_maps")
    groups = ((0,), (1, 2), (3, 4), (5,), (6, 7), (8, 9))
    maps = []
    for group in groups:
        sizes = _SIZES[list(group)]
        heatmap = rng.standard_normal((batch, len(group), height, width)) * 0.3 - 5.0
        dim = np.log(sizes[0]).reshape(1, 3, 1, 1) + rng.standard_normal((batch, 3, height, width)) * 0.1
        rot = rng.standard_normal((batch, 2, height, width))
        for b in range(batch):
            for c in range(len(group)):
                for _ in range(12):
                    y, x = rng.integers(2, height - 4), rng.integers(2, width - 4)
                    heading = rng.uniform(-np.pi, np.pi)
                    for _ in range(int(rng.integers(1, 6))):
                        row, column = y + rng.integers(0, 3), x + rng.integers(0, 3)
                        heatmap[b, c, row, column] = rng.uniform(-2.5, 3.0)
                        rot[b, :, row, column] = (
                            np.sin(heading) + rng.normal() * 0.05,
                            np.cos(heading) + rng.normal() * 0.05,
                        )
                        dim[b, :, row, column] = np.log(sizes[c] * rng.uniform(0.8, 1.2, 3))
        reg = rng.uniform(0, 1, (batch, 2, height, width))
        z = rng.normal(0, 1, (batch, 1, height, width))
        vel = rng.normal(0, 2, (batch, 2, height, width))
        z[:, :, ::9, ::7] = 11.0
        named = {"heatmap": heatmap, "reg": reg, "height": z, "dim": dim, "rot": rot, "vel": vel}
        maps.append({key: value.astype(np.float32) for key, value in named.items()})
    return maps


def lidar_points(tag: str, count: int = 20000) -> np.ndarray:
    """``[count, 3]`` float32 points in the lidar frame (x right, y forward, z up)."""
    rng = generator(tag, "mod/lidar")
    radius, angle = rng.uniform(0.5, 75, count), rng.uniform(-np.pi, np.pi, count)
    points = [radius * np.cos(angle), radius * np.sin(angle), rng.uniform(-2.5, 3, count)]
    return np.stack(points, 1).astype(np.float32)


AUG_CASES = (
    (0.44, (0, 140, 704, 396), False, 0.0),
    (0.40, (0, 104, 704, 360), True, 3.7),
    (0.53, (61, 221, 765, 477), False, -5.1),
    (0.55, (100, 239, 804, 495), True, 5.4),
)
"""Image augmentations: resize, crop (left, top, right, bottom), flip, rotation in degrees."""

BDA_CASES = (
    (0.0, 1.0, False, False),
    (13.7, 1.04, True, False),
    (-21.0, 0.96, False, True),
    (7.5, 1.0, True, True),
)
"""BEV augmentations: rotation in degrees, scale, flip x, flip y."""


def bda_matrix(case: tuple[float, float, bool, bool]) -> np.ndarray:
    """``[3, 3]`` float64: flip @ (scale @ rotation)."""
    degrees, scale, flip_x, flip_y = case
    flip = np.diag([-1.0 if flip_x else 1.0, -1.0 if flip_y else 1.0, 1.0])
    return flip @ (np.eye(3) * scale @ _rotate_z(np.deg2rad(degrees)))


def digest(array: np.ndarray) -> str:
    """Short hash of dtype, shape and bytes, as the reference records it."""
    array = np.ascontiguousarray(array)
    text = str(array.dtype).encode() + str(array.shape).encode()
    return hashlib.sha256(text + array.tobytes()).hexdigest()[:16]
