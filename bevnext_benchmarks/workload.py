"""What is measured: noise drives, random networks, and networks of other sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from bevnext_core.config import ModelConfig
from bevnext_core.errors import BevnextError
from bevnext_core.frame import CameraFrame
from bevnext_core.geometry import invert_rigid
from bevnext_core.network.bevnext import BEVNeXt, HeadMaps
from bevnext_core.network.camera_geometry import CameraGeometry
from bevnext_core.streaming.preprocess import canvas_colors, image_transform, normalize, resize_and_crop

SOURCE_SIZE = (1600, 900)
"""(width, height) of the cameras' images."""
IMAGE_SETS = 3
"""Different image sets of a drive; a longer drive shows them again, so that its memory stays out of the result."""

SCALES: dict[str, tuple[str, ...]] = {
    "batch": ("1", "2", "4", "8"),
    "history": ("0", "2", "5", "8"),
    "image": ("128x352", "256x704", "384x1056"),
    "bev": ("64", "128", "192"),
}
"""What can grow, and the values that are measured when none are given."""


def drive_frame(config: ModelConfig, index: int) -> CameraFrame:
    """Frame ``index`` of a car on a curve, one history interval apart; six (or N) cameras all around it."""
    cameras = config.cameras
    optical = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    anchor = cameras.index(config.anchor_camera)
    ego_from_camera = np.tile(np.eye(4), (len(cameras), 1, 1))
    for camera in range(len(cameras)):
        yaw = 2 * np.pi * (anchor - camera) / len(cameras)
        ego_from_camera[camera, :3, :3] = _turn(yaw) @ optical
        ego_from_camera[camera, :3, 3] = 1.0 + 0.6 * np.cos(yaw), 0.5 * np.sin(yaw), 1.5
    # 20 m/s at the published interval, on a circle of 60 m: every frame has another plan.
    yaw, pose = 0.33 * config.history.interval * index, np.eye(4)
    pose[:3, :3] = _turn(yaw)
    pose[:2, 3] = 60 * np.sin(yaw), 60 * (1 - np.cos(yaw))
    scale = SOURCE_SIZE[0] / 1600
    intrinsics = np.array([[1266.0 * scale, 0, 816 * scale], [0, 1266 * scale, 491 * scale], [0, 0, 1]])
    return CameraFrame(
        cameras=cameras,
        images=noise_images(len(cameras), index % IMAGE_SETS, SOURCE_SIZE),
        intrinsics=np.tile(intrinsics, (len(cameras), 1, 1)),
        ego_from_camera=ego_from_camera,
        global_from_camera_ego=np.tile(pose, (len(cameras), 1, 1)),
        global_from_ego=pose,
        stamp_ns=index * round(config.history.interval * 1e9) + 1,
    )


def _turn(yaw: float) -> np.ndarray:
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


@lru_cache(maxsize=IMAGE_SETS)
def noise_images(count: int, seed: int, size: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """``count`` images ``[H, W, 3]`` uint8: coarse and fine noise, and a saturated area.

    The saturated area gives the CRF patches of equal colour, as sky and lamps do.
    """
    rng = np.random.default_rng(seed)
    width, height = size
    images = []
    for _ in range(count):
        coarse = rng.integers(0, 256, (-(-height // 20), -(-width // 20), 3), np.uint8)
        coarse = coarse.repeat(20, 0).repeat(20, 1)[:height, :width]
        image = coarse // 2 + rng.integers(0, 128, coarse.shape, np.uint8)
        image[: height // 3, width // 3 : 2 * width // 3] = 255
        images.append(image.astype(np.uint8))
    return tuple(images)


@torch.no_grad()
def random_network(config: ModelConfig) -> BEVNeXt:
    """A network whose activations keep their size through the layers, as a trained one's do.

    Its batch norms take the statistics of one frame, camera parameters (a focal length of 1266) among them.
    """
    torch.manual_seed(0)
    model = BEVNeXt(config)
    norms = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            norms.append(module)
            module.momentum = 1.0
    # Statistics of a single value would be none: one camera alone needs a second rig.
    rigs = 1 if len(config.cameras) > 1 else 2
    rigs_step(model.train(), rigs, "single", torch.device("cpu"), nullcontext)()
    for module in norms:
        module.momentum = 0.1
    # A camera parameter that no camera of this rig varies must not blow up where another rig does.
    norm = model.depth_net.parameter_norm
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_var += (0.1 * norm.running_mean) ** 2 + 0.01
    return model.eval()


# -------------------------------------------------------------------------------------------- other sizes
def scaled(config: ModelConfig, axis: str, value: str) -> ModelConfig:
    """``config`` with one size changed; ``batch`` changes nothing in it.

    A BEV grid of another size covers the same ground with cells of another size.

    Raises:
        BevnextError: the axis is unknown or the value is not one of its kind.
        ConfigError: the network cannot have this size.
    """
    if axis == "batch":
        _whole(axis, value, least=1)
        return config
    if axis == "history":
        return dataclasses.replace(
            config, history=dataclasses.replace(config.history, frames=_whole(axis, value, 0))
        )
    if axis == "bev":
        cell = 2 * config.bev.extent / _whole(axis, value, 1)
        return dataclasses.replace(config, bev=dataclasses.replace(config.bev, cell=cell))
    if axis == "image":
        height, cross, width = value.partition("x")
        if not cross:
            raise BevnextError(f"--scale image={value}: expected HEIGHTxWIDTH, such as 256x704")
        size = dataclasses.replace(config.image, height=_whole(axis, height, 1), width=_whole(axis, width, 1))
        return dataclasses.replace(config, image=size)
    raise BevnextError(f"--scale: unknown '{axis}'; known are {', '.join(SCALES)}")


def _whole(axis: str, text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise BevnextError(f"--scale {axis}: '{text}' is not a whole number of at least {least}")
    return value


# -------------------------------------------------------------------------------------------- several rigs
def rigs_step(
    model: BEVNeXt, rigs: int, mode: str, device: torch.device, autocast: Callable[[], object]
) -> Callable[[], HeadMaps]:
    """A function that runs the network once for ``rigs`` rigs: head maps from images that are on the device.

    ``streaming`` encodes one frame and lifts it with the encoded history; ``window`` encodes them all. Image
    resize and decoding are not in it: these work rig by rig, whatever the batch.
    """
    config = model.config
    count = 1 if mode == "single" else config.history.frames + 1
    images, colors, geometry = network_inputs(config, rigs, count, device)
    parameters = geometry.frame(0).camera_parameters().flatten(0, 2)

    def encoded(index: int):
        return model.encode(images[:, index].flatten(0, 1), colors[:, index].flatten(0, 1), parameters)

    with torch.inference_mode(), autocast():  # type: ignore[attr-defined]
        history = [encoded(index) for index in range(1, count)] if mode == "streaming" else []

    def step() -> HeadMaps:
        with torch.inference_mode(), autocast():  # type: ignore[attr-defined]
            present = encoded(0)
            frames = [present, *(history or [encoded(index) for index in range(1, count)])]
            lifted = [
                model.lift(frame, model.view_transform.plan(geometry.frame(index)))
                for index, frame in enumerate(frames)
            ]
            lifted += [lifted[0]] * (config.history.frames + 1 - count)
            return model.detect(torch.cat(lifted, 1), present, geometry.frame(0))

    return step


def network_inputs(
    config: ModelConfig, rigs: int, frames: int, device: torch.device, start: int = 0
) -> tuple[Tensor, Tensor, CameraGeometry]:
    """What the network takes for B rigs and F frames, present first, from frame ``start`` of the drive on.

    Returns:
        images ``[B, F, N, 3, H, W]``, patch colours ``[B, F, N, 3, H/8, W/8]``, and the geometry.
    """
    # Each rig is one frame further on the drive: other images, another pose.
    drives = [
        [drive_frame(config, start + rig + frames - 1 - index) for index in range(frames)]
        for rig in range(rigs)
    ]
    transform = image_transform(*SOURCE_SIZE, config.image)
    canvas = [
        [
            [resize_and_crop(image, transform) for image in frame.images if image is not None]
            for frame in drive
        ]
        for drive in drives
    ]
    pixels = torch.from_numpy(np.array(canvas)).to(device)
    return normalize(pixels), canvas_colors(pixels), _geometry(config, drives).to(device)


def _geometry(config: ModelConfig, drives: list[list[CameraFrame]]) -> CameraGeometry:
    transform = image_transform(*SOURCE_SIZE, config.image)
    poses = np.stack(
        [
            [invert_rigid(drive[0].global_from_ego) @ frame.global_from_camera for frame in drive]
            for drive in drives
        ]
    )
    shape = poses.shape[:3]
    intrinsics = np.stack([[frame.intrinsics for frame in drive] for drive in drives])

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, np.float32))

    return CameraGeometry(
        tensor(poses[..., :3, :3]),
        tensor(poses[..., :3, 3]),
        tensor(intrinsics),
        tensor(np.broadcast_to(transform.rotation, (*shape, 3, 3))),
        tensor(np.broadcast_to(transform.translation, (*shape, 3))),
        torch.eye(3).repeat(len(drives), 1, 1),
    )
