"""From a rig's messages to posed frames: what the node and the bag runner share. Knows messages, not ROS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bevnext_ros.messages.conversions import add_transforms, calibration_from_camera_info, stamp_ns
from bevnext_ros.node.parameters import Options, rig_cameras
from bevnext_ros.streams.assembler import AssembledFrame, FrameAssembler
from bevnext_ros.streams.drops import DropCounter
from bevnext_ros.streams.frame_builder import FrameBuilder, PosedFrame
from bevnext_ros.streams.message_filters_assembler import MessageFiltersAssembler
from bevnext_ros.streams.transform_buffer import TransformBuffer

_UNLIMITED = 10**9
"""Seconds, or a number of things: more than any recording has."""


class RigStream:
    """Takes images, calibrations and transforms as they come and gives posed frames in order.

    All times named ``now_ns`` are of one steady clock. Not thread-safe: one thread feeds it.

    Args:
        model_cameras, anchor_camera: as in the model's configuration.
        recorded: the messages are those of a recording: none is given up for being late, all transforms are kept.

    Raises:
        ConfigError: the options do not fit the model.
    """

    def __init__(
        self, options: Options, model_cameras: Sequence[str], anchor_camera: str, recorded: bool = False
    ) -> None:
        if recorded:
            late = dict.fromkeys(
                ("image_deadline", "transform_deadline", "transform_keep"), float(_UNLIMITED)
            )
            # with skip and mask, a camera that ends is waited for no longer than silent_after
            bounded = options.missing_camera == "wait" or options.synchronizer == "message_filters"
            queue = options.frame_queue if bounded else _UNLIMITED
            options = replace(options, frame_queue=queue, **late)  # type: ignore[arg-type]
        self.cameras = rig_cameras(options, model_cameras)
        self.model_cameras = tuple(model_cameras)
        names = [camera.name for camera in self.cameras]
        self.anchor = names[self.model_cameras.index(anchor_camera)]
        kept = {"max_samples": _UNLIMITED} if recorded else {}
        self.transforms = TransformBuffer(options.transform_keep, options.backward_jump, **kept)
        self.assembler: FrameAssembler | MessageFiltersAssembler
        if options.synchronizer == "message_filters":
            self.assembler = MessageFiltersAssembler(
                names,
                self.anchor,
                max_spread=options.max_spread,
                queue_size=options.frame_queue,
                backward_jump=options.backward_jump,
            )
        else:
            self.assembler = FrameAssembler(
                names,
                self.anchor,
                max_spread=options.max_spread,
                deadline=options.image_deadline,
                missing=options.missing_camera,  # type: ignore[arg-type]  # checked by the table
                silent_after=options.silent_after,
                queue_size=options.frame_queue,
                backward_jump=options.backward_jump,
            )
        self.builder = FrameBuilder(
            names,
            self.transforms,
            base_frame=options.base_frame,
            fixed_frame=options.fixed_frame,
            output_frame=options.output_frame,
            camera_frames=[camera.frame for camera in self.cameras],
            deadline=options.transform_deadline,
            queue_size=options.frame_queue,
            distortion=options.distortion,  # type: ignore[arg-type]
            mask_faulty=options.mask_faulty,
            frame_of=lambda message: message.header.frame_id,
        )

    def image(
        self, camera: str, message: Any, now_ns: int, arrival_ns: int | None = None
    ) -> list[PosedFrame]:
        """An image message of a camera (named as in the rig) that came in at ``arrival_ns`` (default: now)."""
        frames = self.assembler.add(camera, stamp_ns(message.header), message, now_ns, arrival_ns)
        return self._build(frames, now_ns)

    def camera_info(self, camera: str, message: Any, now_ns: int) -> list[PosedFrame]:
        """A calibration message of a camera."""
        self.builder.set_calibration(camera, calibration_from_camera_info(message))
        return self.builder.poll(now_ns)

    def transform(self, message: Any, static: bool, now_ns: int) -> list[PosedFrame]:
        """A TF message."""
        add_transforms(self.transforms, message, static)
        return self.builder.poll(now_ns)

    def poll(self, now_ns: int) -> list[PosedFrame]:
        """What became due by the time alone."""
        return self._build(self.assembler.poll(now_ns), now_ns) + self.builder.poll(now_ns)

    def flush(self, now_ns: int) -> list[PosedFrame]:
        """The end of the stream: nothing waits any longer."""
        return self._build(self.assembler.flush(now_ns), now_ns) + self.builder.flush(now_ns)

    def clear(self, reason: str, cause: str) -> None:
        """Drop everything that waits and all dynamic transforms; frames are counted under ``cause``."""
        self.builder.clear(cause)
        self.assembler.clear(reason, cause)
        self.transforms.clear_dynamic()

    def _build(self, frames: list[AssembledFrame], now_ns: int) -> list[PosedFrame]:
        ready = []
        for frame in frames:
            ready += self.builder.add(frame, now_ns)
        return ready

    @property
    def seen(self) -> int:
        """Frames that could be: images of the anchor camera."""
        return self.assembler.seen

    @property
    def waiting(self) -> int:
        """Frames that wait for images, calibrations or transforms."""
        return self.assembler.waiting + self.builder.waiting

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
