# SPDX-License-Identifier: Apache-2.0
"""From a rig's messages to posed frames: what the node and the bag runner share. Knows messages, not ROS."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bevnext_ros.messages.conversions import calibration_from_camera_info, read_transforms, stamp_ns
from bevnext_ros.node.parameters import Options, rig_cameras
from bevnext_ros.streams.assembler import SECOND, AssembledFrame, FrameAssembler
from bevnext_ros.streams.drops import DropCounter
from bevnext_ros.streams.faults import Faults
from bevnext_ros.streams.frame_builder import FrameBuilder, PosedFrame
from bevnext_ros.streams.message_filters_assembler import MessageFiltersAssembler
from bevnext_ros.streams.timeline import Source, Timeline, Verdict
from bevnext_ros.streams.transform_buffer import TransformBuffer, frame_name

_CAMERA_FAULTS = ("camera_info", "image", "stamps")
_UNLIMITED = 10**9
"""Seconds, or a number of things: more than any recording has."""


class RigStream:
    """Takes images, calibrations and transforms as they come and gives posed frames in order.

    All times named ``now_ns`` are of one steady clock. Not thread-safe: one thread feeds it.

    Args:
        model_cameras, anchor_camera: as in the model's configuration.
        recorded: the messages are those of a recording: none is given up for being late, all transforms are kept.
        faults: is told what is wrong.

    Raises:
        ConfigError: the options do not fit the model.
    """

    def __init__(
        self,
        options: Options,
        model_cameras: Sequence[str],
        anchor_camera: str,
        recorded: bool = False,
        faults: Faults | None = None,
    ) -> None:
        # with skip and mask, a camera that ends is waited for no longer than silent_after
        bounded = options.missing_camera == "wait" or options.synchronizer == "message_filters"
        queue = options.frame_queue if bounded or not recorded else _UNLIMITED
        self.cameras = rig_cameras(options, model_cameras)
        self.model_cameras = tuple(model_cameras)
        self.tf_topic, self.tf_static_topic = options.tf_topic, options.tf_static_topic
        self.faults = faults or Faults()
        names = [camera.name for camera in self.cameras]
        self._topics = {camera.name: camera.image_topic for camera in self.cameras}
        self.anchor = names[self.model_cameras.index(anchor_camera)]
        self.transforms = (
            TransformBuffer(_UNLIMITED, _UNLIMITED) if recorded else TransformBuffer(options.transform_keep)
        )
        self.timeline = Timeline(
            names,
            self.anchor,
            self._needed_edges,
            jump=options.backward_jump,
            keep=options.transform_keep,
            held_images=queue,
        )
        self.assembler: FrameAssembler | MessageFiltersAssembler
        if options.synchronizer == "message_filters":
            self.assembler = MessageFiltersAssembler(
                names, self.anchor, max_spread=options.max_spread, queue_size=queue
            )
        else:
            self.assembler = FrameAssembler(
                names,
                self.anchor,
                max_spread=options.max_spread,
                deadline=_UNLIMITED if recorded else options.image_deadline,
                missing=options.missing_camera,  # type: ignore[arg-type]  # checked by the table
                silent_after=options.silent_after,
                queue_size=queue,
                faults=self.faults,
                topics=self._topics,
            )
        self.builder = FrameBuilder(
            names,
            self.transforms,
            base_frame=options.base_frame,
            fixed_frame=options.fixed_frame,
            output_frame=options.output_frame,
            camera_frames=[camera.frame for camera in self.cameras],
            deadline=_UNLIMITED if recorded else options.transform_deadline,
            queue_size=queue,
            distortion=options.distortion,  # type: ignore[arg-type]
            mask_faulty=options.mask_faulty,
            frame_of=lambda message: message.header.frame_id,
            faults=self.faults,
        )
        self._base, self._fixed = options.base_frame, options.fixed_frame
        self._output = options.output_frame or options.base_frame
        self._frames = {camera.name: camera.frame for camera in self.cameras}
        self._edges: set[Source] = set()
        self._edges_version = -1

    def image(
        self, camera: str, message: Any, now_ns: int, arrival_ns: int | None = None
    ) -> list[PosedFrame]:
        """An image message of a camera (named as in the rig) that came in at ``arrival_ns`` (default: now)."""
        stamp = stamp_ns(message.header)
        if not self._frames[camera]:
            self._frames[camera] = message.header.frame_id
            self._edges_version = -1
        if stamp <= 0:
            self.faults.note(f"stamps {camera}", f"{camera} ({self._topics[camera]}): an image's stamp is zero")
            return self._build(self.assembler.refuse(camera, "zero_stamp", now_ns), now_ns)
        arrival = now_ns if arrival_ns is None else arrival_ns
        return self._take(self.timeline.add(camera, stamp, (message, arrival), now_ns), now_ns)

    def camera_info(self, camera: str, message: Any, now_ns: int) -> list[PosedFrame]:
        """A calibration message of a camera."""
        self.builder.set_calibration(camera, calibration_from_camera_info(message))
        return self.builder.poll(now_ns)

    def transform(self, message: Any, static: bool, now_ns: int) -> list[PosedFrame]:
        """A TF message."""
        ready = []
        for parent, child, rotation, translation, stamp in read_transforms(message):
            sample = (parent, child, rotation, translation, stamp)
            if static or stamp <= 0:
                self.transforms.add(*sample, static)
            else:
                edge = (frame_name(parent), frame_name(child))
                ready += self._take(self.timeline.add(edge, stamp, sample, now_ns), now_ns)
        return ready + self.builder.poll(now_ns) if static else ready

    def clock_jumped(self, to_ns: int, backward: bool, now_ns: int) -> list[PosedFrame]:
        """``/clock`` jumped to ``to_ns``."""
        return self._take(self.timeline.clock_jumped(to_ns if backward else None), now_ns)

    def poll(self, now_ns: int) -> list[PosedFrame]:
        """What became due by the time alone."""
        return self._take(self.timeline.poll(now_ns), now_ns)

    def flush(self, now_ns: int) -> list[PosedFrame]:
        """The end of the stream: nothing waits any longer."""
        ready = self._take(self.timeline.flush(), now_ns)
        return ready + self._build(self.assembler.flush(now_ns), now_ns) + self.builder.flush(now_ns)

    def clear(self, reason: str, cause: str) -> None:
        """Drop everything that waits and all dynamic transforms; frames are counted under ``cause``."""
        for refused in self.timeline.clear().refused:
            if refused.message.source in self._topics:
                self.assembler.refuse(refused.message.source, cause, refused.message.item[1])
        self.builder.clear(cause)
        self.assembler.clear(reason, cause)
        self.transforms.clear_dynamic()

    def _take(self, verdict: Verdict, now_ns: int) -> list[PosedFrame]:
        """Do what the timeline says -> frames that are ready."""
        ready = []
        if verdict.everything:
            self.builder.clear("time_jump")
        for source, by_ns in verdict.rewound.items():
            if source in self._topics:
                self.assembler.forget(source, f"time went back by {by_ns / SECOND:.1f} s")
            else:
                self.transforms.forget(source[1])  # type: ignore[index]  # (parent, child)
        for refused in verdict.refused:
            source, cause, by = refused.message.source, refused.cause, refused.by_ns / SECOND
            if source in self._topics:
                text = f"{source} ({self._topics[source]}): an image comes {by:.1f} s too {cause}"
                self.faults.note(f"stamps {source}", f"{text} by its stamp and is not used")
                ready += self._build(self.assembler.refuse(source, cause, now_ns), now_ns)
            else:
                parent, child = refused.message.item[:2]
                self.transforms.refuse(parent, child, cause, by)
        for message in verdict.passed:
            if message.source in self._topics:
                self.faults.heal(f"stamps {message.source}")
                image, arrival_ns = message.item
                frames = self.assembler.add(message.source, message.stamp_ns, image, now_ns, arrival_ns)
                ready += self._build(frames, now_ns)
            else:
                self.transforms.add(*message.item)
        return ready + self._build(self.assembler.poll(now_ns), now_ns) + self.builder.poll(now_ns)

    def _build(self, frames: list[AssembledFrame], now_ns: int) -> list[PosedFrame]:
        ready = []
        for frame in frames:
            ready += self.builder.add(frame, now_ns)
        return ready

    def _needed_edges(self) -> set[Source]:
        """The moving edges on which the poses of this rig depend."""
        if self._edges_version != self.transforms.version:
            pairs = [(self._fixed, self._base), (self._output, self._base)]
            pairs += [(self._base, frame) for frame in self._frames.values() if frame]
            self._edges = set().union(*(self.transforms.dynamic_edges(*pair) for pair in pairs))
            self._edges_version = self.transforms.version
        return self._edges

    @property
    def bad_cameras(self) -> dict[str, str]:
        """What is wrong with the images, stamps or calibration of a camera, in words."""
        present, bad = self.faults.present, {}
        for name in self._topics:
            faults = [present[f"{kind} {name}"] for kind in _CAMERA_FAULTS if f"{kind} {name}" in present]
            if faults:
                bad[name] = faults[0].text
            elif not self.builder.is_calibrated(name):
                bad[name] = f"{name}: no camera info has come"
        return bad

    @property
    def poses_went_back(self) -> bool:
        """Whether a needed edge goes on in a time before its own, where the images have not followed yet."""
        return any(self.timeline.has_left(edge) for edge in self._needed_edges())

    @property
    def seen(self) -> int:
        """Frames that could be: images of the anchor camera."""
        return self.assembler.seen + self.timeline.held(self.anchor)

    @property
    def waiting(self) -> int:
        """Frames that wait for images, calibrations, transforms, or a decision on their time."""
        return self.assembler.waiting + self.builder.waiting + self.timeline.held(self.anchor)

    @property
    def frame_drops(self) -> dict[str, int]:
        """Frames dropped here, by cause."""
        return merge(self.assembler.frame_drops, self.builder.frame_drops)


def merge(*counters: DropCounter) -> dict[str, int]:
    """Counts of several counters, added by cause."""
    merged: dict[str, int] = {}
    for counter in counters:
        for cause, count in counter.snapshot().items():
            merged[cause] = merged.get(cause, 0) + count
    return merged
