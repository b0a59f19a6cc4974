# SPDX-License-Identifier: Apache-2.0
"""``bevnext detect --bag``: the detector over a recorded bag, without ROS, as fast as it goes.

The same assembler, transform buffer and message conversion as in the node; time is that of the recording, and what
was recorded later than it is needed is read ahead, so every frame is used: nothing is dropped for being late.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bevnext_core.detections import Detections, FrameDetector, lines_file
from bevnext_core.errors import FrameError, counted, one_line
from bevnext_core.frame import CameraFrame
from bevnext_ros.bags.layouts import write_layouts
from bevnext_ros.bags.read_ahead import Handlers, ReadAhead
from bevnext_ros.bags.reader import BagReader
from bevnext_ros.bags.writer import BagError, BagWriter
from bevnext_ros.messages.conversions import make_boxes_cloud, make_detections
from bevnext_ros.messages.images import image_to_rgb
from bevnext_ros.messages.markers import make_markers
from bevnext_ros.node.parameters import Options
from bevnext_ros.streams.frame_builder import PosedFrame, camera_frame
from bevnext_ros.streams.rig_stream import RigStream

_TF = "tf2_msgs/msg/TFMessage"
OUTPUTS = ("/detector/detections", "/detector/boxes", "/detector/markers")


@dataclass
class BagSummary:
    """What a run did: frames with a result, their boxes, frames dropped and resets by cause, what was wrong; the topics
    that were read."""

    frames: int = 0
    boxes: int = 0
    drops: dict[str, int] = field(default_factory=dict)
    resets: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    pictures: list[Path] = field(default_factory=list)
    topics: set[str] = field(default_factory=set)
    video: Path | None = None


def bag_frames(
    bag: BagReader, stream: RigStream, summary: BagSummary, mask_faulty: bool
) -> Iterator[tuple[PosedFrame, CameraFrame]]:
    """The frames of a bag in order; drops and faults are noted in ``summary``.

    Raises:
        BagError: the bag lacks the topics of a camera or any transforms (lists what it has), or is damaged.
    """
    handlers = _handlers(bag, stream, summary)
    summary.topics = set(handlers)
    ahead = ReadAhead(bag, stream, handlers, summary.warnings.append)
    ahead.begin()
    now_ns = bag.span_ns[0]
    for message in bag.messages({topic for topic, (kind, _) in handlers.items() if kind != "tf"}):
        now_ns = max(now_ns, message.stamp_ns)
        kind, camera = handlers[message.topic]
        try:
            content = message.decode()
        except BagError as error:
            summary.warnings.append(str(error))
            continue
        ready = ahead.poses_until(message.stamp_ns)
        if kind == "image":
            ready += stream.image(camera, content, now_ns)
        elif kind == "info":
            ready += stream.camera_info(camera, content, now_ns)
        else:
            ready += stream.transform(content, True, now_ns)
        yield from _load(ready + ahead.poses_for_waiting(now_ns), stream, summary, mask_faulty)
    # the last frames may need poses from after the last image
    ready = ahead.poses_until(bag.span_ns[1]) + stream.flush(now_ns)
    yield from _load(ready, stream, summary, mask_faulty)
    for reason, count in summary.resets.items():
        summary.warnings.append(f"the past was forgotten {count} times: {reason}")
    for cause, count in stream.frame_drops.items():
        summary.drops[cause] = summary.drops.get(cause, 0) + count
    for fault in stream.faults.all.values():
        summary.warnings.append(fault.text + (f" ({fault.count} times)" if fault.count > 1 else ""))


def _load(
    ready: list[PosedFrame], stream: RigStream, summary: BagSummary, mask_faulty: bool
) -> Iterator[tuple[PosedFrame, CameraFrame]]:
    for posed in ready:
        try:
            frame, _ = camera_frame(
                posed, stream.model_cameras, image_to_rgb, mask_faulty, faults=stream.faults
            )
        except FrameError:
            summary.drops["bad_image"] = summary.drops.get("bad_image", 0) + 1
            stream.builder.hand_on(posed.reset_reason)
            continue
        if posed.reset_reason:
            summary.resets[posed.reset_reason] = summary.resets.get(posed.reset_reason, 0) + 1
        yield posed, frame


def _handlers(bag: BagReader, stream: RigStream, summary: BagSummary) -> Handlers:
    handlers: Handlers = {}
    for camera in stream.cameras:
        for kind, topic in (("image", camera.image_topic), ("info", camera.info_topic)):
            absolute = "/" + topic.lstrip("/")
            if absolute in bag.others:
                raise BagError(
                    f"{bag.path}: {absolute} is recorded in {bag.others[absolute]}, not in cdr: it is no ROS 2 message"
                )
            if absolute not in bag.topics:
                raise BagError(
                    f"{bag.path} has no topic {absolute} (camera '{camera.name}'); set cameras, image_topics and "
                    f"camera_info_topics in a parameter file. It has: {', '.join(sorted(bag.topics))}"
                )
            handlers[absolute] = (kind, camera.name)
    for kind, topic in (("tf", stream.tf_topic), ("tf_static", stream.tf_static_topic)):
        absolute = "/" + topic.lstrip("/")
        others = [t for t, its in bag.topics.items() if its == _TF and t.endswith(f"/{kind}")]
        if absolute not in bag.topics and len(others) == 1:
            summary.warnings.append(f"there is no {absolute}: transforms are taken from {others[0]} ({kind}_topic)")
            absolute = others[0]
        if absolute in bag.topics:
            handlers[absolute] = (kind, "")
        elif kind == "tf":
            there = f"set tf_topic to one of {', '.join(sorted(others))}" if others else "it has no transforms"
            raise BagError(f"{bag.path} has no topic {absolute}: without ego poses there is no history; {there}")
    return handlers


def detect_bag(
    bag_path: str | Path,
    detector: FrameDetector,
    out: str | Path,
    options: Options,
    *,
    pictures: bool = True,
    picture_threshold: float = 0.3,
    json_lines: bool = False,
    recording: bool = True,
    view: Callable[..., object] | None = None,
) -> BagSummary:
    """Run the detector over a bag; write a bag with its detections and pictures.

    Writes below ``out``: ``detections``, a bag with the node's topics :data:`OUTPUTS` and, with ``recording``, what the
    detector was given (images, calibrations, transforms); layouts of Foxglove and RViz for it; with ``pictures``
    ``frames/<nnn>.png`` and a video; with ``json_lines`` ``detections.jsonl``, a line per frame. Boxes are filtered as
    in the node (``score_threshold``, ``max_detections``). ``view`` takes each frame with the boxes that pictures show,
    and no truth.

    Raises:
        BagError: the bag cannot be used, the output bag exists, or no frame could be used at all.
    """
    from bevnext_tools.draw.choice import without_doubles
    from bevnext_tools.draw.video import write_video
    from bevnext_tools.progress import progress

    out = Path(out)
    summary = BagSummary()
    config = detector.config
    stream = RigStream(options, config.cameras, config.anchor_camera, recorded=True)
    output_frame = options.output_frame or options.base_frame
    stamps: list[int] = []
    copy: _Copy | None = None
    detector.reset("new bag")
    new_bag = BagWriter(out / "detections", storage="mcap")  # holds its types: Foxglove asks for that
    with BagReader(bag_path) as bag, new_bag as writer, lines_file(out, json_lines) as lines:
        total = bag.counts.get(
            "/" + next(c.image_topic for c in stream.cameras if c.name == stream.anchor).lstrip("/")
        )
        with progress("detecting", "frame", total) as bar:
            for posed, frame in bag_frames(bag, stream, summary, options.mask_faulty):
                if posed.reset_reason:
                    detector.reset(posed.reset_reason)
                found = detector.step(frame).above(options.score_threshold, options.max_detections)
                if recording:
                    copy = copy or _Copy(bag, writer, summary.topics)
                    copy.until(posed.assembled.newest_arrival_ns)
                _write(writer, found, posed, output_frame)
                summary.frames += 1
                summary.boxes += len(found)
                if lines:
                    print(json.dumps(found.as_mapping()), file=lines)
                shown = without_doubles(found, picture_threshold)
                if view:
                    view(frame, shown, None)
                if pictures:
                    summary.pictures.append(_draw(out, summary.frames - 1, frame, shown, len(found)))
                    stamps.append(found.stamp_ns)
                bar.update()
        if not summary.frames:
            reason = summary.warnings[-1] if summary.warnings else "it holds no complete frame"
            causes = ", ".join(f"{cause} {count}" for cause, count in summary.drops.items())
            raise BagError(
                f"{bag_path}: no frame could be used ({causes or 'none seen'}): {one_line(Exception(reason))}"
            )
        if copy:
            copy.until(bag.span_ns[1])
    write_layouts(out, writer.counts.keys(), stream.cameras, options)
    if summary.pictures:
        summary.video = write_video(out / "detections.mp4", summary.pictures, stamps)
    return summary


class _Copy:
    """What the detector was given, as it was recorded; keeps pace with the detector."""

    def __init__(self, bag: BagReader, writer: BagWriter, topics: set[str]) -> None:
        self._messages, self._writer = bag.messages(topics), writer
        self._latched = {*bag.latched, *(topic for topic in topics if topic.endswith("/tf_static"))}
        self._next = next(self._messages, None)

    def until(self, stamp_ns: int) -> None:
        """Write what was recorded up to a time."""
        while self._next is not None and self._next.stamp_ns <= stamp_ns:
            topic = self._next.topic
            self._writer.copy(topic, self._next.kind, self._next.data, self._next.stamp_ns, topic in self._latched)
            self._next = next(self._messages, None)


def _write(writer: BagWriter, found: Detections, posed: PosedFrame, frame: str) -> None:
    """At the time at which the frame's last image was recorded, which may be on another clock than the stamps."""
    factory, stamp = writer.factory, posed.assembled.newest_arrival_ns
    for topic, kind, make in (
        (OUTPUTS[0], "vision_msgs/msg/Detection3DArray", make_detections),
        (OUTPUTS[1], "sensor_msgs/msg/PointCloud2", make_boxes_cloud),
        (OUTPUTS[2], "visualization_msgs/msg/MarkerArray", make_markers),
    ):
        writer.write(topic, kind, make(factory, found, posed.output_from_ego, frame), stamp)


def _draw(out: Path, number: int, frame: CameraFrame, shown: Detections, of: int) -> Path:
    from bevnext_tools.draw.cameras import draw_frame, write_picture

    path = out / "frames" / f"{number:03d}.png"
    write_picture(draw_frame(frame, shown, None, title=f"frame {number}", of=of), path)
    return path


def run_detect_bag(
    bag: str | Path,
    checkpoint: str | Path,
    out: str | Path,
    *,
    params: str | Path | None = None,
    node: str = "",
    device: str = "auto",
    overrides: Mapping[str, Any] | None = None,
    pictures: bool = True,
    picture_threshold: float = 0.3,
    json_lines: bool = False,
    recording: bool = True,
    view: Callable[..., object] | None = None,
) -> int:
    """The command: load, run, report. Raises BevnextError.

    Args:
        params: a parameter file as the node's. node: whose sections count, ``/robot1/detector``; by default the
            file's ``detector``. overrides: parameters by name that go before it.
    """
    from bevnext_ros.node.detector_factory import make_detector
    from bevnext_ros.node.parameters import load_options, make_options

    options = make_options({}, "the defaults") if params is None else load_options(params, node)
    if overrides:
        options = make_options({**asdict(options), **overrides}, "the command line")
    with BagReader(bag):  # what is wrong with it is found before torch is imported
        pass
    detector = make_detector(options, str(checkpoint), device)
    wanted: dict[str, Any] = {"pictures": pictures, "json_lines": json_lines, "view": view, "recording": recording}
    summary = detect_bag(bag, detector, out, options, picture_threshold=picture_threshold, **wanted)
    written = Path(out) / "detections"
    size = sum(path.stat().st_size for path in written.iterdir())
    print(f"{detector}\n{counted(summary.frames, 'frame')}, {summary.boxes} boxes -> {written} ({size / 1e6:.1f} MB)")
    if summary.video:
        print(f"video: {summary.video}")
    for line in dict.fromkeys(summary.warnings):
        print(f"bevnext: warning: {line}", file=sys.stderr)
    if summary.drops:
        causes = ", ".join(f"{cause} {count}" for cause, count in summary.drops.items())
        print(f"bevnext: warning: frames dropped: {causes}", file=sys.stderr)
    return 0
