# SPDX-License-Identifier: Apache-2.0
"""The streaming detector: one camera frame in, boxes out.

Each frame's cameras are encoded once. What is kept of the past is not a BEV map but the encoded cameras
(depth distribution and context) with their poses: for every new frame they are lifted again, straight into
the present ego frame. That is exactly what the network does over a window of frames when each is encoded with its
own colours and camera parameters. The published window gives every history frame the present frame's, which a
stream cannot keep; :meth:`Detector.window_maps` computes either.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from bevnext_core.checkpoint import load_checkpoint, trained_on
from bevnext_core.config import ModelConfig
from bevnext_core.detections import Detections, StepInfo
from bevnext_core.device import find_device
from bevnext_core.errors import ConfigError
from bevnext_core.export.package import ExportedNetwork, load_package
from bevnext_core.frame import CameraFrame
from bevnext_core.network.bevnext import BEVNeXt, EncodedCameras, HeadMaps
from bevnext_core.network.camera_geometry import CameraGeometry
from bevnext_core.network.inference import DTYPES, autocast, for_inference
from bevnext_core.precision import AnyPrecision, ieee_fp32, precision_text, resolve_precision
from bevnext_core.streaming.acceleration import CompileMode, accelerated
from bevnext_core.streaming.calibration_watch import CalibrationWatch
from bevnext_core.streaming.decode import boxes_from_maps
from bevnext_core.streaming.history import History, HistoryOptions
from bevnext_core.streaming.preprocess import canvas_colors, normalize
from bevnext_core.streaming.rig_canvas import RigCanvas
from bevnext_core.streaming.rig_state import RigState
from bevnext_core.streaming.upload import Uploader
from bevnext_core.trained_on import TrainedOn

_log = logging.getLogger(__name__)

Cameras = tuple[RigState, EncodedCameras]
"""One instant of the rig, as the history keeps it."""


@dataclass(frozen=True)
class DetectorOptions:
    """
    Attributes:
        precision: of the convolutions; ``auto``: see :func:`~bevnext_core.precision.resolve_precision`. Geometry and
            CRF are always fp32. fp32 is IEEE fp32 on a GPU too, not TF32.
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

    precision: AnyPrecision = "fp32"
    cameras: tuple[str, ...] | None = None
    history: HistoryOptions = field(default_factory=HistoryOptions)
    fused: bool = True
    batched_lift: bool | None = None
    device_resize: bool | None = None
    compile: bool = False
    compile_mode: CompileMode = "default"


class Detector:
    """Streaming detection. Not thread-safe: one thread steps it.

    Attributes:
        trained_on: what the weights were trained on, where the checkpoint tells. A rig that is far from that is logged
            once, and each of its frames' ``info.doubt`` says so.
    """

    def __init__(
        self, model: BEVNeXt, device: str | torch.device = "cpu", options: DetectorOptions | None = None
    ):
        self.options = options or DetectorOptions()
        self.config: ModelConfig = model.config
        self.device = find_device(device)
        self.precision = resolve_precision(self.options.precision, self.device)
        self.model = model.to(self.device).eval()
        if self.options.fused:
            self.model = for_inference(self.model, precision=self.precision)
        if self.options.compile:
            self.model = accelerated(self.model, self.precision, self.options.compile_mode)
        self.cameras = self.options.cameras or self.config.cameras
        if len(self.cameras) != (taken := len(self.config.cameras)):
            raise ConfigError(f"the network takes {taken} cameras, options name {len(self.cameras)}")
        self.anchor_camera = self.cameras[self.config.cameras.index(self.config.anchor_camera)]
        history = self.config.history
        self._history: History[Cameras] = History(history.frames, history.interval, self.options.history)
        self._calibration = CalibrationWatch()
        self._reset_reason = ""
        self.trained_on: TrainedOn | None = None
        self._doubt = ""
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
            where = find_device(device)
            precision = resolve_precision((options or DetectorOptions()).precision, where)
            model = ExportedNetwork(model, load_package(compiled, where, precision))
        detector = cls(model, device, options)
        detector.trained_on = trained_on(path)
        return detector

    def __repr__(self) -> str:
        precision = precision_text(self.options.precision, self.device)
        trained_on = f"; trained on {self.trained_on}" if self.trained_on else ""
        return f"{type(self).__name__}({self.config.name}, {self.device}, {precision}{trained_on})"

    # -------------------------------------------------------------------------------------- streaming
    def step(self, frame: CameraFrame) -> Detections:
        """Detect in ``frame``, with the frames given before it as history.

        Resets itself (and says why in ``info.reset_reason``) on a backward stamp, a long gap, a jump of the ego
        pose, or a changed calibration.

        Raises:
            FrameError: when the frame's cameras are not those of the network. The history is untouched.
        """
        return self._detections(frame, *self._advance(frame))

    def step_maps(self, frame: CameraFrame) -> HeadMaps:
        """The head maps of :meth:`step`, which it takes the place of."""
        return self._advance(frame)[0]

    def reset(self, reason: str = "requested") -> None:
        """Forget the past. The next detections carry ``reason``."""
        self._history.clear()
        self._calibration.clear()
        self._reset_reason = reason

    @property
    def history_length(self) -> int:
        """Frames kept."""
        return len(self._history)

    # -------------------------------------------------------------------------------------- window
    @torch.inference_mode()
    def window_maps(self, frames: Sequence[CameraFrame], published: bool = True) -> HeadMaps:
        """The network's window forward, which encodes every frame; leaves the stream's history alone.

        Args:
            frames: present first, then newest to oldest; missing ones are replaced by the present.
            published: history frames get the present frame's colours (in the CRF) and camera parameters, as in the
                published code. ``False``: their own, as in a stream.
        """
        wanted = self.config.history.frames + 1
        prepared = [self._prepare(frame.with_cameras(self.cameras)) for frame in frames[:wanted]]
        prepared += prepared[:1] * (wanted - len(prepared))
        states, own, images, colors = zip(*prepared, strict=True)
        geometry = CameraGeometry.cat([state.geometry_in(frames[0].global_from_ego) for state in states])
        parameters = None if published else self._upload(CameraGeometry.cat(own).camera_parameters())
        with self._computing({}, "window"):
            return self.model(
                torch.stack(images)[None],
                torch.stack(colors)[None],
                self._upload.geometry(geometry),
                own_parameters=parameters,
            )

    def window(self, frames: Sequence[CameraFrame], published: bool = True) -> Detections:
        """Detections of :meth:`window_maps`."""
        slots = self.config.history.frames
        stamps = [frame.stamp_ns for frame in frames[1 : slots + 1]]
        info = StepInfo((*stamps, *[0] * (slots - len(stamps))))
        return self._detections(frames[0], self.window_maps(frames, published), info)

    # -------------------------------------------------------------------------------------- parts
    @torch.inference_mode()
    def _advance(self, frame: CameraFrame) -> tuple[HeadMaps, StepInfo]:
        """Head maps of the next frame of the stream, which the history keeps, and how they came about."""
        seconds: dict[str, float] = {}
        frame = frame.with_cameras(self.cameras)
        with _timed(seconds, "preprocess"):
            state, geometry, images, colors = self._prepare(frame)
            parameters = self._upload(geometry.camera_parameters().flatten(0, 2))
        reason = self._history.reset_reason(frame.stamp_ns, frame.global_from_ego) or self._calibration.change(frame)
        if reason:
            self.reset(reason)
        reason, self._reset_reason = self._reset_reason, ""
        self._calibration.note(frame)

        with self._computing(seconds, "encode"):
            present = self.model.encode(images, colors, parameters)
        slots = self._history.select(frame.stamp_ns)
        past = [slot.item for slot in slots if slot is not None]
        # The present stands in for what is missing.
        filled = iter(range(1, len(slots) + 1))
        order = [0, *(0 if slot is None else next(filled) for slot in slots)]
        with self._computing(seconds, "lift"):
            geometry = CameraGeometry.cat([geometry, *(old.geometry_in(frame.global_from_ego) for old, _ in past)])
            poses = geometry.ego_from_camera()[0, order].numpy()
            geometry = self._upload.geometry(geometry)
            lifted = self._lift([(state, present), *past], geometry)
            bev = torch.cat([lifted[index] for index in order], 1)
        with self._computing(seconds, "detect"):
            maps = self.model.detect(bev, present, geometry.frame(0))

        dtype = DTYPES[self.precision]
        kept = EncodedCameras(present.depth.to(dtype), present.context.to(dtype))
        self._history.push(frame.stamp_ns, frame.global_from_ego, (state, kept))
        return maps, StepInfo(tuple(slot.stamp_ns if slot else 0 for slot in slots), reason, seconds, poses)

    @contextmanager
    def _computing(self, seconds: dict[str, float], name: str) -> Iterator[None]:
        """Where the network runs: in its precision, timed."""
        with _timed(seconds, name), autocast(self.device, self.precision), ieee_fp32(self.device):
            yield

    def _prepare(self, frame: CameraFrame) -> tuple[RigState, CameraGeometry, Tensor, Tensor]:
        """What the network takes of one frame, but for what is encoded.

        Returns:
            the frame's state, its geometry in its own ego frame (on the host), images ``[N, 3, H, W]`` and colours
            ``[N, 3, H/8, W/8]``.
        """
        state = RigState.of(frame, self.config.image)
        usable = [image if valid else None for image, valid in zip(frame.images, frame.valid, strict=True)]
        canvas = self._canvas(usable, state.transforms)
        return state, state.geometry_in(frame.global_from_ego), normalize(canvas), canvas_colors(canvas)

    def _lift(self, frames: Sequence[Cameras], geometry: CameraGeometry) -> Sequence[Tensor]:
        """BEV maps ``[1, C, Y, X]`` of the frames, present first; ``geometry`` is theirs in the present ego frame."""
        encoded = [cameras for _, cameras in frames]
        if self._batched_lift:
            return self.model.lift(EncodedCameras.cat(encoded), self.model.plan(geometry)).split(1)
        plans = (self.model.plan(geometry.frame(index)) for index in range(len(frames)))
        return [self.model.lift(cameras, plan) for cameras, plan in zip(encoded, plans, strict=True)]

    def _detections(self, frame: CameraFrame, maps: HeadMaps, info: StepInfo) -> Detections:
        with _timed(info.seconds, "decode"):
            found = boxes_from_maps(maps.tasks, self.config)[0]
        doubt = self.trained_on.doubt(frame) if self.trained_on else ""
        if doubt and doubt != self._doubt:
            _log.warning("%s", doubt)
        self._doubt = doubt
        names, pose, info = self.config.class_names, frame.global_from_ego, replace(info, doubt=doubt)
        return Detections(
            found.boxes, found.scores, found.labels, names, frame.stamp_ns, pose, frame.token, info
        )


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start
