# SPDX-License-Identifier: Apache-2.0
"""Frames of a rig from files: ``rig.yaml``, a folder or video of images per camera, and poses.

As in the ROS node: the anchor camera's stamp fixes a frame's instant, every other camera gives its nearest image, at
most ``max_spread`` away; each image has the vehicle's pose at its own stamp, and its lens distortion is taken out.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from bevnext_core.calibration import Rectifier
from bevnext_core.config import ModelConfig
from bevnext_core.datasets.nuscenes import FrameRef
from bevnext_core.detections import Detections, FrameDetector
from bevnext_core.errors import ConfigError, DatasetError, FrameError, counted
from bevnext_core.files import user_path
from bevnext_core.frame import CameraFrame
from bevnext_tools.rig.file import RigCamera, load_rig
from bevnext_tools.rig.sources import IMAGES, VIDEOS, Folder, NoImages, Source, open_source
from bevnext_tools.rig.stamps import Poses, seconds

MissingCamera = Literal["skip", "mask"]


class RigReader:
    """The frames of one recording, as a scene whose name is the folder's.

    Images are read when a frame is asked for, all cameras in parallel. The network's cameras that the rig does not
    have are masked in every frame.

    Args:
        rig: the file; folder: of the images; poses: the file, or ``None``: the vehicle's pose is then the identity.
        config: of the network, whose cameras the rig's take the place of.
        max_spread: seconds that an image may lie from the anchor's stamp.
        missing: a camera without such an image, or with one that cannot be read: ``skip`` the frame, or ``mask`` the
            camera in it; one without any image (never the anchor) in all of them.
        rate: images per second, of cameras that all fire in step; in place of stamps.

    Raises:
        ConfigError: the rig file is wrong, does not fit the network, or the images are of another size.
        DatasetError: images, stamps or poses are missing or wrong, or there is no frame with all that it needs.
    """

    def __init__(
        self,
        rig: str | Path,
        folder: str | Path,
        config: ModelConfig,
        poses: str | Path | None = None,
        *,
        max_spread: float = 0.06,
        missing: MissingCamera = "skip",
        rate: float | None = None,
    ) -> None:
        loaded = load_rig(rig)
        self.slots = config.cameras
        self.anchor = loaded.anchor_for(config, str(rig))
        self.cameras = loaded.cameras
        self.folder = user_path(folder)
        if not self.folder.is_dir():
            raise DatasetError(f"no such folder of images: {self.folder}")
        self.scenes: tuple[str, ...] = (self.folder.resolve().name,)
        self.poses = None if poses is None else Poses(poses)
        self.missing = missing
        self.skipped: Counter[str] = Counter()
        """Frames left out, by cause (named as the node's)."""
        self.masked: Counter[str] = Counter()
        """Frames in which a camera of the rig was masked, by camera."""
        self._reason = ""
        self._sources = {camera.name: self._source(camera, rate, str(rig)) for camera in self.cameras}
        self._rectifiers = {c.name: Rectifier(c.name, c.calibration, "rectify") for c in self.cameras}
        self._pool = ThreadPoolExecutor(max_workers=len(self.cameras), thread_name_prefix="rig")
        self._check_sizes(str(rig))
        self._frames = self._assembled(round(max_spread * 1e9))
        if not self._frames:
            raise DatasetError(f"{self.folder}: none of {self.total} frames can be used: {self._reason}")

    def _source(self, camera: RigCamera, rate: float | None, rig: str) -> Source:
        try:
            return open_source(self.folder, camera.name, rate)
        except NoImages as error:
            if camera is self.anchor:
                remedy = f"its images make the frames; where it has none, name another camera in {rig} with 'anchor'"
            elif self.missing == "mask":
                self._reason = self._reason or str(error)
                return Folder(camera.name, [], [])
            else:
                remedy = f"a camera without images is taken out of {rig}, or masked by --missing-camera mask"
            raise NoImages(f"{error}; {remedy}") from None

    def unnamed(self) -> list[str]:
        """Folders, videos and images beside those of the cameras, which the rig does not name."""
        names = {camera.name for camera in self.cameras}
        try:
            there = [path for path in sorted(self.folder.iterdir()) if path.name[0] != "."]
        except OSError:
            return []  # what the rig does name can be read
        return [
            path.name for path in there
            if (path.name not in names if path.is_dir() else path.stem not in names)
            and (path.is_dir() or path.suffix.lower() in (*IMAGES, *VIDEOS))
        ]  # fmt: skip

    @property
    def total(self) -> int:
        """Frames that could be: images of the anchor camera."""
        return len(self._sources[self.anchor.name].stamps_ns)

    def __len__(self) -> int:
        """Frames that have their images and poses."""
        return len(self._frames)

    def _check_sizes(self, rig: str) -> None:
        """See that the first image of each camera has the size of its calibration."""
        for camera in self.cameras:
            source = self._sources[camera.name]
            if not source.stamps_ns:
                continue
            try:
                image = source.read(0)
            except FrameError:
                continue  # it will be counted
            if camera.size != (found := image.shape[1::-1]):
                raise ConfigError(
                    f"{rig}: camera '{camera.name}': size is {list(camera.size)}, but {source.where(0)} is "
                    f"{list(found)}: give the calibration of images of that size, or scale the images"
                )

    def _assembled(self, spread_ns: int) -> list[tuple[int, dict[str, int]]]:
        """(stamp, index of each camera's image) of the frames that have what they need."""
        stamps = {name: np.array(source.stamps_ns, np.int64) for name, source in self._sources.items()}
        frames = []
        for stamp in self._sources[self.anchor.name].stamps_ns:
            nearest = {name: int(np.abs(found - stamp).argmin()) for name, found in stamps.items() if len(found)}
            away = {name: abs(int(stamps[name][index]) - stamp) for name, index in nearest.items()}
            far = [name for name in nearest if away[name] > spread_ns]
            chosen = {name: index for name, index in nearest.items() if name not in far}
            unposed = [name for name, i in chosen.items() if self._pose(int(stamps[name][i])) is None]
            if far and self.missing == "skip":
                nearest_s = away[far[0]] / 1e9
                self._skip("missing_camera", stamp, f"the nearest image of {far[0]} is {nearest_s:.3f} s away")
            elif unposed and self.poses is not None:
                first, last = map(seconds, (self.poses.stamps_ns[0], self.poses.stamps_ns[-1]))
                hint = "" if any(stamps[name].any() for name in stamps) else ": photos without stamps have no poses"
                self._skip("no_pose", stamp, f"{self.poses.path} goes from {first} to {last}{hint}")
            else:
                frames.append((stamp, chosen))
        return frames

    def _skip(self, cause: str, stamp: int, reason: str) -> None:
        self.skipped[cause] += 1
        self._reason = self._reason or f"at {seconds(stamp)} s {reason}"

    def _pose(self, stamp: int) -> np.ndarray | None:
        return np.eye(4) if self.poses is None else self.poses.at(stamp)

    def refs(self, scene: str) -> tuple[FrameRef, ...]:
        """The frames in time order, without their images."""
        return tuple(FrameRef(scene, index, "", False, stamp, {}) for index, (stamp, _) in enumerate(self._frames))

    def load(self, ref: FrameRef) -> CameraFrame:
        """Read a frame. With ``mask`` a camera whose image is bad is masked.

        Raises:
            FrameError: an image cannot be read or is of another size; with ``mask``: none can be used.
        """
        stamp, chosen = self._frames[ref.index]
        images: dict[str, np.ndarray] = {}
        for camera, image in zip(self.cameras, self._pool.map(lambda c: self._image(c, chosen), self.cameras)):
            if isinstance(image, FrameError):
                if self.missing == "skip":
                    self.skipped["bad_image"] += 1
                    raise image
                self._reason = self._reason or str(image)
            if isinstance(image, np.ndarray):
                images[camera.name] = image
            else:
                self.masked[camera.name] += 1
        if not images:
            self.skipped["bad_image"] += 1
            raise FrameError(f"no camera has a usable image: {self._reason}")
        return self._frame(stamp, chosen, images)

    def _image(self, camera: RigCamera, chosen: dict[str, int]) -> np.ndarray | FrameError | None:
        if camera.name not in chosen:
            return None
        try:
            return self._rectifiers[camera.name](self._sources[camera.name].read(chosen[camera.name]))
        except FrameError as error:
            return error

    def _frame(self, stamp: int, chosen: dict[str, int], images: dict[str, np.ndarray]) -> CameraFrame:
        count = len(self.slots)
        intrinsics, ego_from_camera = np.tile(np.eye(3), (count, 1, 1)), np.tile(np.eye(4), (count, 1, 1))
        ego_pose = self._pose(stamp)
        assert ego_pose is not None
        poses, stamps = np.tile(ego_pose, (count, 1, 1)), np.full(count, stamp, np.int64)
        sizes = np.tile(self.anchor.size, (count, 1))
        found: list[np.ndarray | None] = [None] * count
        for camera in self.cameras:
            slot = self.slots.index(camera.slot)
            intrinsics[slot] = self._rectifiers[camera.name].intrinsics
            ego_from_camera[slot], sizes[slot] = camera.vehicle_from_camera.matrix, camera.size
            if camera.name in images:
                found[slot] = images[camera.name]
                stamps[slot] = self._sources[camera.name].stamps_ns[chosen[camera.name]]
                poses[slot] = self._pose(int(stamps[slot]))
        return CameraFrame(
            cameras=self.slots,
            images=tuple(found),
            intrinsics=intrinsics,
            ego_from_camera=ego_from_camera,
            global_from_camera_ego=poses,
            global_from_ego=ego_pose,
            stamp_ns=stamp,
            camera_stamps_ns=stamps,
            valid=np.array([image is not None for image in found]),
            image_sizes=sizes,
        )

    def own_cameras(self, frame: CameraFrame | None = None) -> CameraFrame:
        """The rig's cameras alone, by their own names in the file's order; without a frame: of the first, no images."""
        frame = frame or self._frame(self._frames[0][0], {}, {})
        chosen = frame.with_cameras(tuple(camera.slot for camera in self.cameras))
        return replace(chosen, cameras=tuple(camera.name for camera in self.cameras))

    def remarks(self) -> str:
        """What was left out so far, in one line; empty when nothing was."""
        parts = []
        if self.skipped:
            causes = ", ".join(f"{cause} {count}" for cause, count in sorted(self.skipped.items()))
            count = self.skipped.total()
            parts.append(f"{count} of {self.total} frames {'was' if count == 1 else 'were'} skipped ({causes})")
        if self.masked:
            masked = sorted(self.masked.items())
            cameras = ", ".join(f"{name} in {counted(count, 'frame')}" for name, count in masked)
            parts.append(f"masked: {cameras}")
        first = f"; the first: {self._reason}" if self._reason and parts else ""
        return "; ".join(parts) + first


class WithoutHistory:
    """A detector that forgets what was before each frame: for frames without poses."""

    def __init__(self, detector: FrameDetector) -> None:
        self._detector, self.config = detector, detector.config

    def step(self, frame: CameraFrame) -> Detections:
        self._detector.reset("there are no poses")
        return self._detector.step(frame)

    def reset(self, reason: str = "requested") -> None:
        self._detector.reset(reason)

    def __repr__(self) -> str:
        return f"{self._detector!r}, without history"
