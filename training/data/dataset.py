# SPDX-License-Identifier: Apache-2.0
"""Training samples: the frames of a window, augmented, with ground truth and lidar depth.

Every random choice of a sample follows from its request (seed, epoch, place in the epoch) alone, so samples do
not depend on the number of ranks or workers, and a restarted run draws what the first would have drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import Self

from bevnext_core.config import FEATURE_STRIDE, ModelConfig
from bevnext_core.datasets.nuscenes import LIDAR, LIDAR_FIELDS
from bevnext_core.datasets.nuscenes_tables import split_scenes
from bevnext_core.errors import DatasetError, FrameError, one_line
from bevnext_core.geometry import invert_rigid
from bevnext_core.images import read_image
from bevnext_core.network.camera_geometry import CameraGeometry
from training.data.augmentation import (
    BevAugmentation,
    ImageAugmentation,
    draw_bev_augmentation,
    draw_image_augmentation,
    in_range,
    plain_image,
    with_wrapped_yaw,
)
from training.data.index import DatasetIndex
from training.data.store import open_stores
from training.losses.depth_targets import lidar_depth_map

SUBSTITUTES = 20
"""Other frames tried in place of one that cannot be read."""


@dataclass(frozen=True)
class SampleRequest:
    """One sample of an epoch, or one run of samples: its frames, oldest first, and what seeds its random choices."""

    frames: tuple[int, ...]
    seed: int
    epoch: int
    position: int


@dataclass
class Batch:
    """B samples of F frames (present first, then newest to oldest) of N cameras.

    Attributes:
        canvas: ``[B, F, N, H, W, 3]`` uint8 RGB, augmented.
        geometry: of all frames.
        boxes, labels: B tensors ``[n, 9]`` and ``[n]`` in the augmented ego frame.
        depth: ``[B, N, H/8, W/8]`` nearest lidar depth, metres, 0 where unknown; present frame.
        tokens: sample tokens.
        faults: (sample token, reason) of what could not be read while this batch was made.
    """

    canvas: Tensor
    geometry: CameraGeometry
    boxes: list[Tensor]
    labels: list[Tensor]
    depth: Tensor
    tokens: list[str]
    faults: list[tuple[str, str]] = field(default_factory=list)

    def present_canvas(self) -> Tensor:
        """``[B, N, H, W, 3]``: the present frame of each sample."""
        return self.canvas[:, 0]

    def to(self, device: torch.device | str) -> Self:
        def move(value: Any) -> Any:
            if isinstance(value, list):
                return [move(item) for item in value]
            if isinstance(value, CameraGeometry):
                return value.to(device)
            return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value

        return type(self)(**{name: move(value) for name, value in vars(self).items()})

    def pin_memory(self) -> Self:
        """Called by the data loader: the large tensors in page-locked memory."""
        self.canvas, self.depth = self.canvas.pin_memory(), self.depth.pin_memory()
        return self


def join_samples(samples: Sequence[Batch]) -> Batch:
    """One batch from batches of one sample (the data loader's collate function)."""
    return Batch(
        torch.cat([sample.canvas for sample in samples]),
        CameraGeometry.join([sample.geometry for sample in samples]),
        [boxes for sample in samples for boxes in sample.boxes],
        [labels for sample in samples for labels in sample.labels],
        torch.cat([sample.depth for sample in samples]),
        [token for sample in samples for token in sample.tokens],
        [fault for sample in samples for fault in sample.faults],
    )


class TrainingDataset(Dataset):
    """Samples of the key frames of a split.

    Args:
        index: opened with ``config``, which names its cameras and classes.
        split: official split (``train``, ``mini_train``, ...), or scenes by name.
        cache: folder in which canvases and lidar depth are kept (:mod:`training.data.store`), for images without
            augmentation; several processes may share it.

    Raises:
        DatasetError: no frame of the split in the index, or none with an annotated object.
    """

    def __init__(self, index: DatasetIndex, config: ModelConfig, split: str | Sequence[str],
                 cache: str | None = None) -> None:
        self.index = index
        self.config = config
        scenes = split_scenes(split, index.version) if isinstance(split, str) else tuple(split)
        self.frames = np.flatnonzero(np.isin(index.scenes, np.array(scenes)))
        if not len(self.frames):
            present = ", ".join(sorted(set(index.scenes.tolist()))[:20])
            raise DatasetError(
                f"no scene of {split} is in {index.dataroot} ({index.version}), which holds {present}"
            )
        if not any(len(index.truth(int(frame))[0]) for frame in self.frames):
            raise DatasetError(
                f"the frames of {split} in {index.dataroot} ({index.version}) have no annotated objects: "
                "there is nothing to learn from"
            )
        self.canvases = self.depths = None
        if cache is not None:
            self.canvases, self.depths = open_stores(cache, index, config, self.frames)

    def __len__(self) -> int:
        return len(self.frames)

    def classes_of_frames(self) -> list[list[int]]:
        """Labels present in each of :attr:`frames` (for CBGS)."""
        return [self.index.truth(int(frame))[1].tolist() for frame in self.frames]

    def window(self, frame: int) -> list[int]:
        """Frames of the window: present, then its predecessors; missing ones are replaced by the present."""
        window = [frame]
        past = frame
        for _ in range(self.config.history.frames):
            past = int(self.index.previous[past]) if past >= 0 else -1
            window.append(frame if past < 0 else past)
        return window

    def __getitem__(self, request: SampleRequest) -> Batch:
        """The sample of a request; another one when it cannot be read (``faults`` says so).

        Raises:
            DatasetError: :data:`SUBSTITUTES` samples in a row cannot be used.
        """
        faults: list[tuple[str, str]] = []
        frames = request.frames
        for attempt in range(SUBSTITUTES):
            rng = np.random.default_rng((request.seed, request.epoch, request.position, attempt))
            if attempt:
                frames = self._around(int(rng.choice(self.frames)), len(frames))
            try:
                sample = self._sample(frames, rng, faults)
            except (FrameError, DatasetError) as error:
                faults.append((str(self.index.tokens[frames[0]]), one_line(error)))
                continue
            if sample is not None:
                sample.faults = faults
                return sample
        listing = "; ".join(f"{token}: {reason}" for token, reason in faults[:5])
        raise DatasetError(f"{SUBSTITUTES} samples in a row could not be used; {listing}")

    def _around(self, frame: int, length: int) -> tuple[int, ...]:
        """The frames of the request of ``length`` frames that takes the place of one that cannot be read."""
        return (frame,)

    def _sample(
        self, frames: Sequence[int], rng: np.random.Generator, faults: list[tuple[str, str]]
    ) -> Batch | None:
        """``None`` for a frame without objects: there is nothing to learn from."""
        index, (frame,) = self.index, frames
        if not len(index.truth(frame)[0]):
            return None
        image_draws, bev_draw = self._draw(frame, rng)
        window, canvas = [frame], {frame: self._canvas(frame, image_draws)}
        for past in self.window(frame)[1:]:
            if past not in canvas:
                try:
                    canvas[past] = self._canvas(past, image_draws)
                except FrameError as error:
                    # As at the start of a scene: the present stands in.
                    faults.append((str(index.tokens[past]), one_line(error)))
                    past = frame
            window.append(past)
        boxes, labels = self._truth(frame, bev_draw)
        return Batch(
            torch.from_numpy(np.stack([canvas[f] for f in window]))[None],
            self._geometry(frame, window, [frame] * len(window), image_draws, bev_draw),
            [boxes],
            [labels],
            torch.from_numpy(self._depth(frame, [draw.matrix() for draw in image_draws]))[None],
            [str(index.tokens[frame])],
        )

    def _draw(self, frame: int, rng: np.random.Generator) -> tuple[list[ImageAugmentation], BevAugmentation]:
        """One draw per camera and one of the BEV; the plain transforms without augmentation."""
        training, images, bev = self.config.training, self._plain(frame), BevAugmentation()
        if training.augmentation and training.image_augmentation:
            sizes = self.index.image_sizes[frame].tolist()
            images = [draw_image_augmentation(rng, w, h, self.config.image) for w, h in sizes]
        if training.augmentation and training.bev_augmentation:
            bev = draw_bev_augmentation(rng)
        if training.augmentation and training.largest_width:
            factors = self._enlargement(self.index.image_sizes[frame])
            images = [replace(draw, enlarged=float(k ** rng.uniform())) for draw, k in zip(images, factors)]
        return images, bev

    def _enlargement(self, sizes: np.ndarray) -> np.ndarray:
        """How many times as wide each camera's images are taken for at most; ``sizes [..., 2]``."""
        return np.maximum(self.config.training.largest_width / sizes[..., 0], 1.0)

    def told_intrinsics(self) -> np.ndarray:
        """``[M, 3, 3]``: of the recorded cameras, and of the largest that the network is told they are."""
        plain, sizes = self.index.intrinsics.reshape(-1, 3, 3), self.index.image_sizes.reshape(-1, 2)
        if not self.config.training.augmentation:
            return plain
        larger = plain.copy()
        larger[:, :2] *= self._enlargement(sizes)[:, None, None]
        return np.concatenate([plain, larger])

    def alone(self, frame: int) -> tuple[Tensor, CameraGeometry]:
        """A frame without augmentation: its canvas ``[1, N, H, W, 3]`` and its cameras at its own instant (F = 1)."""
        draws = self._plain(frame)
        canvas = torch.from_numpy(self._canvas(frame, draws))[None]
        return canvas, self._geometry(frame, [frame], [frame], draws, BevAugmentation())

    def lidar_depth(self, frame: int) -> Tensor:
        """``[N, H/8, W/8]``: as in a batch, without augmentation."""
        return torch.from_numpy(self._depth(frame, [draw.matrix() for draw in self._plain(frame)]))

    def _plain(self, frame: int) -> list[ImageAugmentation]:
        return [plain_image(w, h, self.config.image) for w, h in self.index.image_sizes[frame].tolist()]

    def _geometry(
        self,
        present: int,
        window: Sequence[int],
        intrinsics: Sequence[int],
        image_draws: list[ImageAugmentation],
        bev_draw: BevAugmentation,
    ) -> CameraGeometry:
        """Cameras of the frames ``window`` in the ego frame of ``present``, with the intrinsics of the frames named."""
        index = self.index
        ego_from_camera = invert_rigid(index.global_from_ego[present]) @ index.global_from_camera[list(window)]
        recorded = np.stack([draw.recorded() for draw in image_draws])
        matrices = np.stack([draw.matrix() for draw in image_draws]) @ np.linalg.inv(recorded)
        image_rotation, image_translation = matrices.copy(), np.zeros((len(matrices), 3))
        image_rotation[:, :2, 2] = 0
        image_translation[:, :2] = matrices[:, :2, 2]
        parts = (
            ego_from_camera[..., :3, :3],
            ego_from_camera[..., :3, 3],
            recorded @ index.intrinsics[list(intrinsics)],
            np.tile(image_rotation, (len(window), 1, 1, 1)),
            np.tile(image_translation, (len(window), 1, 1)),
            bev_draw.matrix(),
        )
        return CameraGeometry(*(torch.from_numpy(part.astype(np.float32))[None] for part in parts))

    def _truth(self, frame: int, bev_draw: BevAugmentation) -> tuple[Tensor, Tensor]:
        """Boxes ``[n, 9]`` and labels ``[n]`` of a frame, augmented, inside the grid."""
        boxes, labels = self.index.truth(frame)
        boxes = bev_draw.apply(boxes)
        keep = in_range(boxes, self.config.bev.extent)
        boxes = with_wrapped_yaw(boxes[keep]).astype(np.float32)
        return torch.from_numpy(boxes), torch.from_numpy(labels[keep])

    def _canvas(self, frame: int, draws: list[ImageAugmentation]) -> np.ndarray:
        """``[N, H, W, 3]`` uint8: the frame's images, augmented. Raises FrameError naming the camera."""
        if self.canvases is not None and (kept := self.canvases.read(frame)) is not None:
            return kept["canvas"]

        def one(camera: int) -> np.ndarray:
            name = self.config.cameras[camera]
            image = read_image(self.index.dataroot / str(self.index.image_files[frame, camera]), name)
            width, height = (int(v) for v in self.index.image_sizes[frame, camera])
            if image.shape[:2] != (height, width):
                size = f"{image.shape[1]}x{image.shape[0]}"
                raise FrameError(f"{name}: the image is {size}, but its calibration is for {width}x{height}")
            return draws[camera].apply(image)

        with ThreadPoolExecutor(2) as pool:
            canvas = np.stack(list(pool.map(one, range(len(self.config.cameras)))))
        if self.canvases is not None:
            self.canvases.write(frame, canvas=canvas)
        return canvas

    def _depth(self, frame: int, image_matrices: Sequence[np.ndarray]) -> np.ndarray:
        """``[N, h, w]`` float32, zeros where lidar is missing and may be."""
        if self.depths is not None and (kept := self.depths.read(frame)) is not None:
            return kept["depth"]
        index, image, depth = self.index, self.config.image, self.config.depth
        rows, columns = image.feature_size
        try:
            points = self._lidar(frame)
        except DatasetError:
            if self.config.training.missing_lidar == "skip":
                raise
            return np.zeros((len(self.config.cameras), rows, columns), np.float32)
        camera_from_lidar = invert_rigid(index.global_from_camera[frame]) @ index.global_from_lidar[frame]
        views = zip(camera_from_lidar, index.intrinsics[frame], image_matrices, strict=True)
        reach = (depth.min, depth.max)
        maps = (lidar_depth_map(points, *v, image.height, image.width, FEATURE_STRIDE, reach) for v in views)
        nearest = np.stack(list(maps))
        if self.depths is not None:
            self.depths.write(frame, depth=nearest)
        return nearest

    def _lidar(self, frame: int) -> np.ndarray:
        name = str(self.index.lidar_files[frame])
        if not name:
            raise DatasetError(f"the frame has no {LIDAR} record")
        path = self.index.dataroot / name
        try:
            values = np.fromfile(path, np.float32)
        except OSError as error:
            raise DatasetError(
                f"{LIDAR}: the file cannot be read: {path} ({error.strerror}); to train on such frames without "
                "depth loss, use --set training.missing_lidar=no-depth-loss"
            ) from None
        if not len(values) or len(values) % LIDAR_FIELDS:
            raise DatasetError(f"{LIDAR}: {path} is truncated ({len(values)} values)")
        return values.reshape(-1, LIDAR_FIELDS)
