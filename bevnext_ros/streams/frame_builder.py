# SPDX-License-Identifier: Apache-2.0
"""Assembled images + calibrations + transforms -> frames that the detector can take. Never blocks.

A frame whose transforms or calibrations are not there yet waits, in order, until its deadline.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bevnext_core.calibration import Calibration, DistortionPolicy, Rectifier
from bevnext_core.errors import BevnextError, ConfigError, FrameError
from bevnext_core.frame import CameraFrame
from bevnext_ros.streams.assembler import SECOND, AssembledFrame
from bevnext_ros.streams.drops import DropCounter
from bevnext_ros.streams.faults import Faults
from bevnext_ros.streams.transform_buffer import Answer, Lookup, TransformBuffer

DROP_CAUSES = {
    Answer.NOT_YET: "transform_not_yet",
    Answer.TOO_OLD: "transform_too_old",
    Answer.NOT_CONNECTED: "transform_not_connected",
}


@dataclass(frozen=True)
class PosedFrame:
    """An assembled frame with everything but its decoded images; poses as in :class:`CameraFrame`.

    Attributes:
        output_from_ego: ``[4, 4]``, moves boxes to the frame in which they are published.
        posed_ns: steady time at which the poses were there.
    """

    assembled: AssembledFrame
    rectifiers: tuple[Rectifier | None, ...]
    ego_from_camera: np.ndarray
    global_from_camera_ego: np.ndarray
    global_from_ego: np.ndarray
    output_from_ego: np.ndarray
    posed_ns: int
    reset_reason: str


@dataclass
class _Waiting:
    frame: AssembledFrame
    deadline_ns: int
    cause: str = ""
    detail: str = ""


class FrameBuilder:
    """Gives each frame its calibration and the true pose of every camera at its own stamp.

    Args:
        cameras: names as in the frames; ``camera_frames``: one coordinate frame per camera, an empty one
            is taken from the image's own header (``frame_of``) or the calibration.
        base_frame, fixed_frame: the ego frame, and a frame in which it moves smoothly (odom).
        output_frame: where boxes are wanted; empty for ``base_frame``.
        deadline: seconds that a frame waits for transforms and calibrations. queue_size: most that wait.
        mask_faulty: whether a camera without calibration is masked (True) or stops the frame (False).
        frame_of: the coordinate frame that an image's payload names.
        faults: is told why frames are dropped and calibrations refused.
    """

    def __init__(
        self,
        cameras: Sequence[str],
        transforms: TransformBuffer,
        *,
        base_frame: str = "base_link",
        fixed_frame: str = "odom",
        output_frame: str = "",
        camera_frames: Sequence[str] = (),
        deadline: float = 0.5,
        queue_size: int = 10,
        distortion: DistortionPolicy = "rectify",
        mask_faulty: bool = False,
        frame_of: Callable[[Any], str] = lambda payload: "",
        faults: Faults | None = None,
    ) -> None:
        self.cameras = tuple(cameras)
        self.transforms = transforms
        self._base, self._fixed, self._output = base_frame, fixed_frame, output_frame or base_frame
        self._camera_frames = tuple(camera_frames) or ("",) * len(self.cameras)
        self._deadline_ns = int(deadline * SECOND)
        self._queue_size = queue_size
        self._distortion = distortion
        self._mask_faulty = mask_faulty
        self._frame_of = frame_of
        self._calibrations: dict[str, Calibration] = {}
        self._rectifiers: dict[str, Rectifier] = {}
        self._uncalibrated: set[str] = set()
        self._waiting: deque[_Waiting] = deque()
        self._reset_reason = ""
        self.frame_drops = DropCounter()
        self.calibration_drops = DropCounter()
        self._faults = faults or Faults()
        self._refusals: dict[str, str] = {}

    def set_calibration(self, camera: str, calibration: Calibration) -> bool:
        """Follow a camera's calibration; ``False`` when it was refused (counted; the one before stays).

        One that differs from the one before by more than rounding makes the next frame carry a reset reason.
        """
        rectifier, cause, fault = self._rectifier(camera, calibration)
        if rectifier is None:
            self.calibration_drops.add(cause)
            self._refusals[camera] = f"{camera}: the camera info is ignored: {fault}"
            self._faults.note(f"camera_info {camera}", self._refusals[camera])
            return False
        known = self._rectifiers.get(camera)
        if not rectifier.same_as(known):
            if known is not None:
                self._reset_reason = f"the calibration of {camera} changed"
            self._rectifiers[camera] = rectifier
            self._uncalibrated.discard(camera)
        self._calibrations[camera] = calibration
        self._refusals.pop(camera, None)
        self._faults.heal(f"camera_info {camera}")
        return True

    def is_calibrated(self, camera: str) -> bool:
        """Whether a usable calibration of a camera is in force."""
        return camera in self._rectifiers

    def accepts(self, camera: str, calibration: Calibration) -> bool:
        """Whether a calibration could be used."""
        return self._rectifier(camera, calibration)[0] is not None

    def _rectifier(self, camera: str, calibration: Calibration) -> tuple[Rectifier | None, str, str]:
        """What a calibration makes of images, or the cause to refuse it and why, in words."""
        if fault := calibration.fault(self._distortion):
            return None, "invalid", fault
        try:
            return Rectifier(camera, calibration, self._distortion), "", ""
        except ConfigError as error:
            return None, "refused", str(error)

    def add(self, frame: AssembledFrame, now_ns: int) -> list[PosedFrame]:
        """Take a frame; returns those that are ready, in order."""
        if frame.reset_reason:
            self.clear("time_jump")
        self._waiting.append(_Waiting(frame, now_ns + self._deadline_ns))
        while len(self._waiting) > self._queue_size:
            self._drop(self._waiting.popleft(), "transform_queue_full")
        return self.poll(now_ns)

    def poll(self, now_ns: int) -> list[PosedFrame]:
        """Frames that became ready; those past their deadline, or that can never be ready, are dropped."""
        ready = []
        while self._waiting:
            waiting = self._waiting[0]
            posed = self._pose(waiting, now_ns)
            if posed is None:
                final = waiting.cause == DROP_CAUSES[Answer.TOO_OLD]
                if not final and now_ns < waiting.deadline_ns:
                    break
                self._drop(self._waiting.popleft(), waiting.cause)
                continue
            self._waiting.popleft()
            self._reset_reason = ""
            ready.append(posed)
        return ready

    def flush(self, now_ns: int) -> list[PosedFrame]:
        """The end of the stream: nothing more will come for the frames that wait."""
        for waiting in self._waiting:
            waiting.deadline_ns = now_ns
        return self.poll(now_ns)

    def clear(self, cause: str) -> None:
        """Drop all frames that wait, counted under ``cause``."""
        self.frame_drops.add(cause, len(self._waiting))
        self._waiting.clear()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def _drop(self, waiting: _Waiting, cause: str) -> None:
        self.frame_drops.add(cause)
        self._faults.note(f"frame {cause}", f"a frame was dropped ({cause}): {waiting.detail}")
        self.hand_on(waiting.frame.reset_reason)

    def hand_on(self, reset_reason: str) -> None:
        """The frame that carried a reason to reset is lost: the next one takes it over."""
        self._reset_reason = reset_reason or self._reset_reason

    def _pose(self, waiting: _Waiting, now_ns: int) -> PosedFrame | None:
        frame = waiting.frame
        count = len(self.cameras)
        ego_from_camera = np.tile(np.eye(4), (count, 1, 1))
        global_from_camera_ego = np.tile(np.eye(4), (count, 1, 1))
        images = list(frame.images)
        rectifiers: list[Rectifier | None] = [None] * count

        def look(target: str, source: str, stamp_ns: int) -> np.ndarray | None:
            found: Lookup = self.transforms.lookup(target, source, stamp_ns)
            if found.transform is None:
                waiting.cause, waiting.detail = DROP_CAUSES[found.answer], found.detail
            return found.transform

        global_from_ego = look(self._fixed, self._base, frame.stamp_ns)
        output_from_ego = look(self._output, self._base, frame.stamp_ns)
        if global_from_ego is None or output_from_ego is None:
            return None
        for index, camera in enumerate(self.cameras):
            image = images[index]
            if image is None:
                continue
            rectifier = self._rectifiers.get(camera)
            if rectifier is None:
                reason = self._refusals.get(camera, f"{camera}: no camera info has come")
                waiting.cause, waiting.detail = "no_camera_info", reason
                if self._mask_faulty and (camera in self._uncalibrated or now_ns >= waiting.deadline_ns):
                    self._uncalibrated.add(camera)  # waited for once, not with every frame
                    images[index] = None
                    continue
                return None
            rectifiers[index] = rectifier
            source = (
                self._camera_frames[index]
                or self._frame_of(image.payload)
                or self._calibrations[camera].frame
            )
            in_ego = look(self._base, source, image.stamp_ns)
            ego_pose = look(self._fixed, self._base, image.stamp_ns)
            if in_ego is None or ego_pose is None:
                return None
            ego_from_camera[index], global_from_camera_ego[index] = in_ego, ego_pose
        masked = AssembledFrame(
            frame.stamp_ns, tuple(images), frame.anchor, frame.assembled_ns, frame.reset_reason
        )
        reasons = [reason for reason in (frame.reset_reason, self._reset_reason) if reason]
        return PosedFrame(
            masked,
            tuple(rectifiers),
            ego_from_camera,
            global_from_camera_ego,
            global_from_ego,
            output_from_ego,
            now_ns,
            "; ".join(dict.fromkeys(reasons)),
        )


def camera_frame(
    posed: PosedFrame,
    names: Sequence[str],
    decode: Callable[[Any, str], np.ndarray],
    mask_faulty: bool,
    map_cameras: Callable[[Callable[[int], Any], Sequence[int]], Any] = map,
    faults: Faults | None = None,
) -> tuple[CameraFrame, list[BevnextError]]:
    """Decode and rectify the images of ``posed`` into a :class:`CameraFrame`.

    Args:
        names: the model's camera names, in the order of the frame.
        decode: ``(payload, camera) -> [H, W, 3]`` uint8 RGB; raises a :class:`BevnextError` for bad images.
        mask_faulty: mask a camera whose image is bad; otherwise its error is raised.
        map_cameras: ``map``, or that of a thread pool. faults: is told of each camera whose image is bad.

    Returns:
        The frame, and the errors for which cameras were masked (they name the rig's camera).
    """
    told = faults or Faults()

    def load(index: int) -> np.ndarray | BevnextError | None:
        image, rectifier = posed.assembled.images[index], posed.rectifiers[index]
        if image is None or rectifier is None:
            return None
        try:
            pixels = rectifier(decode(image.payload, rectifier.camera))
            told.heal(f"image {rectifier.camera}")
            return pixels
        except BevnextError as error:
            told.note(f"image {rectifier.camera}", f"{'masked: ' if mask_faulty else ''}{error}")
            if not mask_faulty:
                raise
            return error

    loaded = list(map_cameras(load, range(len(names))))
    errors = [item for item in loaded if isinstance(item, BevnextError)]
    images = tuple(item if isinstance(item, np.ndarray) else None for item in loaded)
    valid = np.array([image is not None for image in images])
    if not valid.any():
        raise FrameError("no camera has a usable image: " + "; ".join(map(str, errors)))
    stamps = [
        posed.assembled.stamp_ns if image is None else image.stamp_ns for image in posed.assembled.images
    ]
    intrinsics = np.stack([np.eye(3) if r is None else r.intrinsics for r in posed.rectifiers])
    frame = CameraFrame(
        cameras=tuple(names),
        images=images,
        intrinsics=intrinsics,
        ego_from_camera=posed.ego_from_camera,
        global_from_camera_ego=posed.global_from_camera_ego,
        global_from_ego=posed.global_from_ego,
        stamp_ns=posed.assembled.stamp_ns,
        camera_stamps_ns=np.array(stamps, np.int64),
        valid=valid,
    )
    return frame, errors
