"""The streaming detector: one camera frame in, boxes out.

Each frame's cameras are encoded once. What is kept of the past is not a BEV map but the encoded cameras
(depth distribution and context) with their poses: for every new frame they are lifted again, straight into
the present ego frame. That is exactly what the network does over a window of frames when a history frame uses
its own colours and camera parameters (``own``/``own``). The published window gives every history frame the
present frame's (``key``/``key``); a stream that does the same has to compute parts of the past again.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from bevnext_core.checkpoint import load_checkpoint
from bevnext_core.config import ModelConfig
from bevnext_core.detections import Detections, StepInfo
from bevnext_core.errors import ConfigError, FrameError
from bevnext_core.export.package import ExportedNetwork, load_package
from bevnext_core.frame import CameraFrame
from bevnext_core.geometry import invert_rigid
from bevnext_core.network.bevnext import BEVNeXt, EncodedCameras, HeadMaps, Source
from bevnext_core.network.camera_geometry import CameraGeometry
from bevnext_core.network.inference import for_inference
from bevnext_core.streaming.acceleration import CompileMode, accelerated
from bevnext_core.streaming.decode import boxes_from_maps
from bevnext_core.streaming.history import History, HistoryOptions, Stored
from bevnext_core.streaming.preprocess import canvas_colors, image_transform, normalize
from bevnext_core.streaming.rig_canvas import RigCanvas
from bevnext_core.streaming.rig_state import RigState, ego_from_camera, image_sizes, joined
from bevnext_core.streaming.upload import Uploader

Precision = Literal["fp32", "bf16", "fp16"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class DetectorOptions:
    """
    Attributes:
        crf_canvas: whose colours drive the CRF of a history frame: its ``own`` or the present ``key`` frame's.
        camera_params: whose camera parameters its depth network gets. ``own``/``own`` costs one encoding per
            frame and is the default; ``key``/``key`` is the published behaviour, slower, for comparison.
        precision: of the convolutions; geometry and CRF are always fp32.
        cameras: the rig's camera names in the order of the network's cameras, when they are not the same.
        history: what is kept, and when it is forgotten.
        fused: run a copy of the network whose convolutions do the work of the norms, activations and sums that
            follow them (:func:`bevnext_core.network.inference.for_inference`): faster, equal up to rounding.
        batched_lift: lift the present and all history frames in one call. ``None``: on a GPU; a CPU gains nothing
            and would hold all frames' maps at once.
        device_resize: resize images on the device; both ways give the same pixels. ``None``: on a GPU.
        compile: make the network faster in the first step, which takes a minute or more, by ``compile_mode``
            (:data:`~bevnext_core.streaming.acceleration.CompileMode`). Where it cannot be had the network runs as it
            is, and one line in the log says so.
    """

    crf_canvas: Source = "own"
    camera_params: Source = "own"
    precision: Precision = "fp32"
    cameras: tuple[str, ...] | None = None
    history: HistoryOptions = field(default_factory=HistoryOptions)
    fused: bool = True
    batched_lift: bool | None = None
    device_resize: bool | None = None
    compile: bool = False
    compile_mode: CompileMode = "default"


class Detector:
    """Streaming detection. Not thread-safe: one thread steps it."""

    def __init__(
        self, model: BEVNeXt, device: str | torch.device = "cpu", options: DetectorOptions | None = None
    ):
        self.options = options or DetectorOptions()
        self.config: ModelConfig = model.config
        self.device = _device(device)
        self.model = model.to(self.device).eval()
        if self.options.fused:
            packed = None if self.options.precision == "fp32" else False  # these do not follow autocast
            self.model = for_inference(self.model, packed)
        if self.options.compile:
            self.model = accelerated(self.model, self.options.precision, self.options.compile_mode)
        self.cameras = self.options.cameras or self.config.cameras
        if len(self.cameras) != len(self.config.cameras):
            raise ConfigError(
                f"the network takes {len(self.config.cameras)} cameras, options name {len(self.cameras)}"
            )
        self.anchor_camera = self.cameras[self.config.cameras.index(self.config.anchor_camera)]
        history = self.config.history
        self._history: History[RigState] = History(history.frames, history.interval, self.options.history)
        self._calibration: tuple[np.ndarray, ...] | None = None
        self._reset_reason = ""
        on_gpu = self.device.type == "cuda"
        wanted = self.options.batched_lift, self.options.device_resize
        self._batched_lift, device_resize = (on_gpu if value is None else value for value in wanted)
        self._upload = Uploader(self.device)
        self._canvas = RigCanvas(self._upload, self.config.image, len(self.cameras), device_resize)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        device: str | torch.device = "cpu",
        options: DetectorOptions | None = None,
        expected: ModelConfig | None = None,
        compiled: str | Path | None = None,
    ) -> Detector:
        """A detector from a checkpoint of this project; see :func:`bevnext_core.checkpoint.load_checkpoint`.

        ``compiled`` names the package that ``bevnext export`` made of this checkpoint for this device and precision.
        """
        model = load_checkpoint(path, expected)
        if compiled is not None:
            precision = (options or DetectorOptions()).precision
            model = ExportedNetwork(model, load_package(compiled, _device(device), precision))
        return cls(model, device, options)

    # -------------------------------------------------------------------------------------- streaming
    @torch.inference_mode()
    def step(self, frame: CameraFrame) -> Detections:
        """Detect in ``frame``, with the frames given before it as history.

        Resets itself (and says why in ``info.reset_reason``) on a backward stamp, a long gap, a jump of the ego
        pose, or a changed calibration.

        Raises:
            FrameError: when the frame's cameras are not those of the network. The history is untouched.
        """
        seconds: dict[str, float] = {}
        frame = self._ordered(frame)
        with _timed(seconds, "preprocess"):
            state, images = self._prepare(frame)
        reason = self._history.reset_reason(
            frame.stamp_ns, frame.global_from_ego
        ) or self._calibration_change(frame)
        if reason:
            self.reset(reason)
        reason, self._reset_reason = self._reset_reason, ""
        self._note_calibration(frame)

        with _timed(seconds, "encode"), self._autocast():
            state.encoded = self.model.encode(images, state.colors, state.own_parameters)
        slots = self._history.select(frame.stamp_ns)
        maps, poses = self._detect(state, slots, frame, seconds)
        with _timed(seconds, "decode"):
            boxes = boxes_from_maps(maps.tasks, self.config)[0]
        self._store(frame, state)
        info = StepInfo(tuple(slot.stamp_ns if slot else 0 for slot in slots), reason, seconds, poses)
        return Detections(
            boxes.boxes,
            boxes.scores,
            boxes.labels,
            self.config.class_names,
            frame.stamp_ns,
            frame.global_from_ego,
            frame.token,
            info,
        )

    @torch.inference_mode()
    def step_maps(self, frame: CameraFrame) -> HeadMaps:
        """Like :meth:`step`, but gives the head maps (for comparison with :meth:`window_maps`)."""
        frame = self._ordered(frame)
        state, images = self._prepare(frame)
        with self._autocast():
            state.encoded = self.model.encode(images, state.colors, state.own_parameters)
        maps, _ = self._detect(state, self._history.select(frame.stamp_ns), frame, {})
        self._store(frame, state)
        return maps

    def reset(self, reason: str = "requested") -> None:
        """Forget the past. The next detections carry ``reason``."""
        self._history.clear()
        self._calibration = None
        self._reset_reason = reason

    @property
    def history_length(self) -> int:
        """Frames kept."""
        return len(self._history)

    # -------------------------------------------------------------------------------------- window
    @torch.inference_mode()
    def window_maps(self, frames: Sequence[CameraFrame]) -> HeadMaps:
        """The network's window forward: ``frames`` present first, then newest to oldest; missing ones are replaced
        by the present. Encodes every frame; leaves the stream's history alone."""
        wanted = self.config.history.frames + 1
        frames = [self._ordered(frame) for frame in frames][:wanted]
        states, images = zip(*(self._prepare(frame) for frame in frames), strict=True)
        index = [*range(len(frames)), *([0] * (wanted - len(frames)))]
        geometry = joined([self._geometry(states[i], frames[0]) for i in index])
        with self._autocast():
            return self.model(
                torch.stack([images[i] for i in index]).unsqueeze(0),
                torch.stack([states[i].colors for i in index]).unsqueeze(0),
                self._upload.geometry(geometry),
                crf_canvas=self.options.crf_canvas,
                camera_params=self.options.camera_params,
                own_parameters=torch.stack([states[i].own_parameters for i in index]).unsqueeze(0),
            )

    def window(self, frames: Sequence[CameraFrame]) -> Detections:
        """Detections of :meth:`window_maps`."""
        maps = self.window_maps(frames)
        boxes = boxes_from_maps(maps.tasks, self.config)[0]
        key = frames[0]
        stamps = tuple(frame.stamp_ns for frame in frames[1 : self.config.history.frames + 1])
        stamps += (0,) * (self.config.history.frames - len(stamps))
        return Detections(
            boxes.boxes,
            boxes.scores,
            boxes.labels,
            self.config.class_names,
            key.stamp_ns,
            key.global_from_ego,
            key.token,
            StepInfo(stamps),
        )

    # -------------------------------------------------------------------------------------- parts
    def _ordered(self, frame: CameraFrame) -> CameraFrame:
        """The frame with its cameras in the network's order."""
        if frame.cameras == self.cameras:
            return frame
        missing = [camera for camera in self.cameras if camera not in frame.cameras]
        if missing:
            raise FrameError(
                f"the frame at {frame.stamp_ns} ns lacks {', '.join(missing)}; it has {', '.join(frame.cameras)}"
            )
        index = [frame.cameras.index(camera) for camera in self.cameras]
        return CameraFrame(
            cameras=self.cameras,
            images=tuple(frame.images[i] for i in index),
            intrinsics=frame.intrinsics[index],
            ego_from_camera=frame.ego_from_camera[index],
            global_from_camera_ego=frame.global_from_camera_ego[index],
            global_from_ego=frame.global_from_ego,
            stamp_ns=frame.stamp_ns,
            camera_stamps_ns=frame.camera_stamps_ns[index],
            valid=frame.valid[index],
            image_sizes=None if frame.image_sizes is None else np.asarray(frame.image_sizes)[index],
            token=frame.token,
        )

    def _prepare(self, frame: CameraFrame) -> tuple[RigState, Tensor]:
        """Network input ``[N, 3, H, W]`` and the state that goes with it (not yet encoded)."""
        target = self.config.image
        transforms = [image_transform(int(width), int(height), target) for width, height in image_sizes(frame)]
        usable = [image if valid else None for image, valid in zip(frame.images, frame.valid, strict=True)]
        pixels = self._canvas(usable, transforms)
        state = RigState(
            encoded=None,
            colors=canvas_colors(pixels),
            own_parameters=torch.empty(0),
            global_from_camera=frame.global_from_camera,
            intrinsics=frame.intrinsics,
            image_rotation=np.stack([t.rotation for t in transforms]),
            image_translation=np.stack([t.translation for t in transforms]),
            valid=frame.valid,
        )
        # Camera pixels of a masked camera must not turn the others' batch into NaN: its matrices are replaced.
        bad = ~state.valid
        state.intrinsics = np.where(bad[:, None, None], np.eye(3), state.intrinsics)
        state.global_from_camera = np.where(
            bad[:, None, None], frame.global_from_ego, np.nan_to_num(state.global_from_camera)
        )
        state.own_parameters = self._upload(self._geometry(state, frame).camera_parameters().flatten(0, 2))
        return state, normalize(pixels)

    def _geometry(self, state: RigState, present: CameraFrame) -> CameraGeometry:
        """``state``'s cameras in the ego frame of ``present``; float64 up to the last step."""
        ego_from_camera = invert_rigid(present.global_from_ego) @ state.global_from_camera

        def tensor(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array, np.float32))[None, None]

        return CameraGeometry(
            tensor(ego_from_camera[:, :3, :3]),
            tensor(ego_from_camera[:, :3, 3]),
            tensor(state.intrinsics),
            tensor(state.image_rotation),
            tensor(state.image_translation),
            torch.eye(3)[None],
            torch.from_numpy(np.array(state.valid))[None, None],
        )

    def _detect(
        self,
        present: RigState,
        slots: Sequence[Stored[RigState] | None],
        frame: CameraFrame,
        seconds: dict[str, float],
    ) -> tuple[HeadMaps, np.ndarray]:
        """Head maps of the present frame, and ``ego_from_camera`` used for each slot ``[1 + slots, N, 4, 4]``."""
        assert present.encoded is not None
        states = [present, *(slot.item for slot in slots if slot is not None)]
        geometries = [self._geometry(state, frame) for state in states]
        with _timed(seconds, "lift"), self._autocast():
            geometry = self._upload.geometry(joined(geometries))
            lifted = self._lift(states, geometry)
            # The present stands in for what is missing.
            filled = iter(range(1, len(states)))
            order = [0, *(0 if slot is None else next(filled) for slot in slots)]
            bev = torch.cat([lifted[index] for index in order], 1)
        with _timed(seconds, "detect"), self._autocast():
            maps = self.model.detect(bev, present.encoded, geometry.frame(0))
        return maps, np.stack([ego_from_camera(geometries[index]) for index in order])

    def _lift(self, states: list[RigState], geometry: CameraGeometry) -> Sequence[Tensor]:
        """BEV maps ``[1, C, Y, X]`` of the states, present first; ``geometry`` is that of all of them."""
        present = states[0]
        assert present.encoded is not None
        past = (self._as_seen_from(state, present) for state in states[1:])
        encoded = itertools.chain([present.encoded], past)
        if not self._batched_lift:
            return [
                self.model.lift(frame, self.model.plan(geometry.frame(index)))
                for index, frame in enumerate(encoded)
            ]
        frames = list(encoded)
        depth, context = (torch.cat([getattr(frame, name) for frame in frames]) for name in ("depth", "context"))
        # lift reads depth and context only.
        together = EncodedCameras(depth, context, depth, context)
        return self.model.lift(together, self.model.plan(geometry)).split(1)

    def _as_seen_from(self, past: RigState, present: RigState) -> EncodedCameras:
        """The past frame's cameras under the options: as cached, or with the present frame's colours and parameters."""
        assert past.encoded is not None
        colors = present.colors if self.options.crf_canvas == "key" else past.colors
        if self.options.camera_params == "key":
            return self.model.encode_reduced(past.encoded.reduced, colors, present.own_parameters)
        if self.options.crf_canvas == "key":
            depth = self.model.crf(past.encoded.logits, colors)
            return EncodedCameras(depth, past.encoded.context, past.encoded.logits, past.encoded.reduced)
        return past.encoded

    def _store(self, frame: CameraFrame, state: RigState) -> None:
        """Keep what later frames need of this one, and nothing more."""
        encoded, nothing = state.encoded, torch.empty(0)
        assert encoded is not None
        own_depth = self.options.crf_canvas == "own" and self.options.camera_params == "own"
        dtype = _DTYPES[self.options.precision]
        kept = EncodedCameras(
            depth=encoded.depth.to(dtype) if own_depth else nothing,
            context=encoded.context.to(dtype) if self.options.camera_params == "own" else nothing,
            logits=encoded.logits
            if self.options.crf_canvas == "key" and self.options.camera_params == "own"
            else nothing,
            reduced=encoded.reduced if self.options.camera_params == "key" else nothing,
        )
        state.encoded = kept
        self._history.push(frame.stamp_ns, frame.global_from_ego, state)

    def _calibration_change(self, frame: CameraFrame) -> str:
        if self._calibration is None:
            return ""
        intrinsics, ego_from_camera, sizes = self._calibration
        for index, camera in enumerate(self.cameras):
            if not frame.valid[index]:
                continue
            if not np.array_equal(sizes[index], image_sizes(frame)[index]):
                return f"image size of {camera} changed"
            if np.abs(intrinsics[index] - frame.intrinsics[index]).max() > 1e-3:
                return f"intrinsics of {camera} changed"
            if np.abs(ego_from_camera[index] - frame.ego_from_camera[index]).max() > 1e-4:
                return f"extrinsics of {camera} changed"
        return ""

    def _note_calibration(self, frame: CameraFrame) -> None:
        """Remember the calibration; a masked camera keeps what was known of it."""
        new = (frame.intrinsics, frame.ego_from_camera, image_sizes(frame))
        if self._calibration is not None:
            new = tuple(  # type: ignore[assignment]
                np.where(np.reshape(frame.valid, (-1,) + (1,) * (a.ndim - 1)), a, old)
                for a, old in zip(new, self._calibration, strict=True)
            )
        self._calibration = new

    def _autocast(self) -> AbstractContextManager[object]:
        if self.options.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=_DTYPES[self.options.precision])


def _device(name: str | torch.device) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"unknown device '{name}'; known are cpu, cuda, cuda:0, ...") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device '{name}' was asked for, but PyTorch finds no CUDA device here; use 'cpu'")
    return device


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start
