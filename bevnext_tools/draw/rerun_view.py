# SPDX-License-Identifier: Apache-2.0
"""Frames and what was found in them, for the viewer of Rerun (https://rerun.io): live, in a file, or both.

Entities, with the timelines ``stamp`` (the anchor camera's, in whole nanoseconds) and ``frame`` (from 0):

======================  =============================================================================================
``world``               the fixed frame, moved to the first position: Rerun keeps 32 bits of a coordinate
``world/ego``           the ego pose; below it ``detections``, ``velocities`` (arrows one second long), ``truth``
``world/path``          the way driven, a piece per frame; where the history was cleared a new one begins
``world/cameras/NAME``  pose at its own stamp, pinhole and JPEG; Rerun itself projects the boxes into it
``counts/CLASS``        number of detections
======================  =============================================================================================
"""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import cv2
import numpy as np

from bevnext_core.datasets.ground_truth import GroundTruth
from bevnext_core.detections import Detections
from bevnext_core.errors import BevnextError
from bevnext_core.files import user_path
from bevnext_core.frame import CameraFrame
from bevnext_tools.draw.cameras import image_from_camera
from bevnext_tools.draw.colors import TEXT, TRUTH_COLOR, class_color

IMAGE_WIDTH, JPEG_QUALITY = 800, 80
"""Wider images are shrunk to so many pixels: a frame of six cameras takes about 0.3 MB."""
PORT = 9876
"""Where Rerun's viewer listens by default."""
_PATIENCE = 10.0
"""Seconds for which the viewer is waited for."""
_EGO, _PATH = "world/ego", "world/path"


class RerunView:
    """Context manager that takes ``(frame, detections, truth or None)``, frame by frame.

    Nothing is written or opened before the first frame; what was shown before an error stays.

    Args:
        path: the file, ``.rrd``, replaced when it exists; ``None`` for none.
        viewer: show it in the viewer that listens on :data:`PORT`; where there is none, one is opened.

    Raises:
        BevnextError: rerun-sdk is not installed, or there is no viewer and no display to open one on.
    """

    def __init__(self, path: str | Path | None, viewer: bool = False) -> None:
        try:
            import rerun
        except (ImportError, RuntimeError):  # the latter on an old Python
            raise BevnextError(
                f"--view and --rrd need the Python package rerun-sdk, which is not in {sys.prefix}: `make setup` "
                "brings it with Python 3.11 or later, or `pip install rerun-sdk` there (and numpy 2)"
            ) from None
        display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or sys.platform != "linux"
        if viewer and not display and not _listens(PORT):
            raise BevnextError("--view: there is no display here and no viewer listens (docs/view.md): take --rrd FILE")
        self._rr, self._viewer = rerun, viewer
        self._path = None if path is None else user_path(path)
        self._recording: Any = None
        self._frames = 0
        self._origin = np.zeros(3)
        self._last: np.ndarray | None = None
        self._truth_shown = False

    def __enter__(self) -> RerunView:
        return self

    def __exit__(self, *unused: object) -> None:
        if self._recording is not None:
            with suppress(RuntimeError):  # the viewer was closed: Rerun says so, and would wait for the next one
                self._recording.flush(timeout_sec=_PATIENCE)
            self._recording.disconnect()

    def __call__(self, frame: CameraFrame, found: Detections, truth: GroundTruth | None) -> None:
        """Show a frame. ``found``: the boxes to be shown (filter by score before)."""
        rr, boxes = self._rr, found.boxes
        if self._recording is None:
            self._origin = frame.global_from_ego[:3, 3]
            self._recording = self._begin(frame.cameras, found.class_names)
        log = self._recording.log
        self._recording.set_time("stamp", timestamp=np.datetime64(frame.stamp_ns, "ns"))
        self._recording.set_time("frame", sequence=self._frames)
        self._frames += 1
        log(_EGO, self._transform(frame.global_from_ego))
        position = frame.global_from_ego[:3, 3] - self._origin
        if self._last is not None and not found.info.reset_reason:
            log(_PATH, rr.LineStrips3D([[self._last, position]], colors=[TEXT]))
        self._last = position
        texts = [f"{name} {score:.2f}" for name, score in zip(found.names, found.scores)]
        scores = rr.AnyValues(score=found.scores.astype(np.float32))
        log(f"{_EGO}/detections", self._boxes(boxes, found.labels, labels=texts), scores)
        vectors = np.pad(boxes[:, 7:9], ((0, 0), (0, 1)))
        arrows = rr.Arrows3D(vectors=vectors, origins=boxes[:, :3], class_ids=found.labels, show_labels=False)
        log(f"{_EGO}/velocities", arrows)
        if truth is not None:
            look = {"colors": [TRUTH_COLOR], "fill_mode": "MajorWireframe", "show_labels": False}
            log(f"{_EGO}/truth", self._boxes(truth.boxes, truth.labels, **look))
        elif self._truth_shown:
            log(f"{_EGO}/truth", rr.Clear(recursive=False))
        self._truth_shown = truth is not None
        for label, name in enumerate(found.class_names):
            log(f"counts/{name}", rr.Scalars(int((found.labels == label).sum())))
        for index in range(len(frame.cameras)):
            self._show_camera(frame, index)

    def _begin(self, cameras: tuple[str, ...], classes: tuple[str, ...]) -> Any:
        """The recording, with what does not change in it."""
        rr, recording = self._rr, self._rr.RecordingStream("bevnext", recording_id=uuid4())
        recording.set_log_time_enabled(False)
        sinks = []
        if self._path:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.open("wb").close()  # Rerun's own error does not say why
            sinks.append(rr.FileSink(str(self._path)))
        if self._viewer:
            beside = Path(sys.executable).with_name("rerun")  # this environment need not be in PATH
            if not _listens(PORT):
                program = str(beside) if beside.exists() else None
                rr.spawn(port=PORT, connect=False, executable_path=program, recording=recording)
            sinks.append(rr.GrpcSink(f"rerun+http://127.0.0.1:{PORT}/proxy"))
        recording.set_sinks(*sinks, default_blueprint=self._blueprint([self._camera(name) for name in cameras]))
        recording.log("world", rr.ViewCoordinates.FLU, static=True)
        colors = [(label, name, class_color(name)) for label, name in enumerate(classes)]
        recording.log("world", rr.AnnotationContext(colors), static=True)
        for _, name, color in colors:
            recording.log(f"counts/{name}", rr.SeriesLines(colors=[color], names=[name]), static=True)
        try:
            recording.flush(timeout_sec=_PATIENCE)
        except RuntimeError as error:
            raise BevnextError(f"Rerun's viewer does not answer ({error}); take --rrd FILE alone") from None
        return recording

    def _blueprint(self, cameras: list[str]) -> Any:
        """On the left the scene, where the eye follows the ego; on the right the cameras and the counts."""
        rrb = self._rr.blueprint
        begin, cursor = rrb.TimeRangeBoundary.infinite(), rrb.TimeRangeBoundary.cursor_relative()
        past = [rrb.VisibleTimeRange(timeline, start=begin, end=cursor) for timeline in ("stamp", "frame")]
        scene = rrb.Spatial3DView(
            origin="world",
            name="scene",
            overrides={_PATH: rrb.VisibleTimeRanges(past)},
            eye_controls=rrb.EyeControls3D(tracking_entity=_EGO),
        )
        contents = ["$origin/**", f"{_EGO}/detections", f"{_EGO}/truth"]
        views = [rrb.Spatial2DView(origin=name, name=name.rpartition("/")[2], contents=contents) for name in cameras]
        counts = rrb.TimeSeriesView(origin="counts", name="detections")
        right = rrb.Vertical(rrb.Grid(*views, grid_columns=3), counts, row_shares=[3, 1])
        panel = rrb.TimePanel(timeline="stamp", state="collapsed")
        return rrb.Blueprint(rrb.Horizontal(scene, right, column_shares=[2, 3]), panel, collapse_panels=True)

    def _transform(self, global_from_it: np.ndarray) -> Any:
        position = global_from_it[:3, 3] - self._origin
        return self._rr.Transform3D(translation=position, mat3x3=global_from_it[:3, :3])

    def _boxes(self, boxes: np.ndarray, classes: np.ndarray, **look: Any) -> Any:
        """Boxes ``[M, 9]``, with the class of each."""
        half = boxes[:, 6] / 2
        turns = np.stack([0 * half, 0 * half, np.sin(half), np.cos(half)], 1)
        sizes, centers = boxes[:, 3:6], boxes[:, :3]
        return self._rr.Boxes3D(sizes=sizes, centers=centers, quaternions=turns, class_ids=classes, **look)

    def _camera(self, name: str) -> str:
        """A camera's entity; what is special in its name is escaped."""
        return str(self._rr.new_entity_path(["world", "cameras", name])).lstrip("/")

    def _show_camera(self, frame: CameraFrame, index: int) -> None:
        rr, entity, image = self._rr, self._camera(frame.cameras[index]), frame.images[index]
        if image is None or not frame.valid[index]:
            self._recording.log(entity, rr.Clear(recursive=False))
            return
        height, width = image.shape[:2]
        if width > IMAGE_WIDTH:
            size = (IMAGE_WIDTH, round(height * IMAGE_WIDTH / width))
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        matrix = image_from_camera(frame, index, image)
        _, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        self._recording.log(
            entity,
            self._transform(frame.global_from_camera[index]),
            rr.Pinhole(image_from_camera=matrix, resolution=image.shape[1::-1], image_plane_distance=3.0),
            rr.EncodedImage(contents=data.tobytes(), media_type="image/jpeg"),
        )


def _listens(port: int) -> bool:
    """Whether a program of this machine listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
