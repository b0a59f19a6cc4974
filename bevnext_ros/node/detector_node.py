# SPDX-License-Identifier: Apache-2.0
"""The detector node: parameters -> options -> stream and worker -> one callback per topic. Imports rclpy."""

from __future__ import annotations

import dataclasses
import gc
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from bevnext_core.errors import BevnextError, ConfigError, one_line
from bevnext_ros.messages.factory import RclpyFactory, message_class
from bevnext_ros.messages.images import image_to_rgb
from bevnext_ros.node.diagnostics import Diagnostics, Report, make_diagnostics
from bevnext_ros.node.inputs import Inputs
from bevnext_ros.node.outputs import Outputs
from bevnext_ros.node.parameters import PARAMETERS, Options, Parameter, make_options, shared_names
from bevnext_ros.node.rate import RateLimit
from bevnext_ros.node.worker import DetectionWorker, Result
from bevnext_ros.streams.faults import Faults
from bevnext_ros.streams.frame_builder import PosedFrame
from bevnext_ros.streams.rig_stream import RigStream

DetectorFactory = Callable[[Options], Any]
_POLL_SECONDS = 0.02
_STOP_SECONDS = 30.0
_WARN_SECONDS = 1.0


class DetectorNode(LifecycleNode):
    """Six cameras and TF in, boxes out.

    Args:
        detector_factory: makes the detector from the options; called when the node is configured. The detector
            has ``config`` (a :class:`bevnext_core.config.ModelConfig`), ``step`` and ``reset``.
        parameter_files: those that the node was started with: a name in a section for several nodes may be another's.
        node_options: passed on to rclpy's node.

    Raises:
        ConfigError: a parameter is unknown, removed, of a wrong type, or out of range.
    """

    def __init__(
        self, detector_factory: DetectorFactory, parameter_files: Sequence[str] = (), **node_options: Any
    ) -> None:
        super().__init__("detector", **node_options)
        self._make_detector = detector_factory
        for parameter in PARAMETERS:
            self.declare_parameter(parameter.name, parameter.default, _descriptor(parameter))
        # rclpy passes over what is given and not declared, typing errors too
        given = {n: p.value for n, p in self._parameter_overrides.items() if not self.has_parameter(n)}
        shared = shared_names(parameter_files, self.get_fully_qualified_name())
        self._options = make_options(self._values() | given, "the node's parameters", shared)
        self.add_on_set_parameters_callback(self._check_parameters)
        self._factory = RclpyFactory()
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._diagnostics = Diagnostics()
        self._rate = RateLimit()
        self._detector: Any = None
        self._stream: RigStream | None = None
        self._worker: DetectionWorker | None = None
        self._last_worker: DetectionWorker | None = None
        self._outputs: Outputs | None = None
        self._inputs: Inputs | None = None
        self._poll_timer: Any = None
        self._state = "unconfigured"
        self._fault = ""
        self._faults = Faults(self._warn)
        self._last_warning = 0.0
        self._counted_before: dict[str, int] = {}
        self._seen_before = self._published_before = 0
        self._diagnostics_output = self.create_publisher(
            message_class("diagnostic_msgs/msg/DiagnosticArray"), "/diagnostics", 10
        )
        self._diagnostics_timer = self.create_timer(
            self._options.diagnostics_period, self._publish_diagnostics, clock=self._steady
        )
        self._start_timer: Any = None
        if self._options.autostart:
            self._activate_by = time.monotonic() + self._options.activation_wait
            self._start_timer = self.create_timer(_POLL_SECONDS, self._autostart, clock=self._steady)

    # ------------------------------------------------------------------------------------- life cycle
    def _autostart(self) -> None:
        if self._state == "unconfigured":
            self.trigger_configure()
        if self._state == "inactive":
            heard = self.count_subscribers("~/transition_event") > 0
            if not heard and time.monotonic() < self._activate_by:
                return
            self.trigger_activate()
        self.destroy_timer(self._start_timer)
        self._start_timer = None

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Read the parameters, load the detector, make the publishers; after an error nothing has changed."""
        try:
            self._options = make_options(self._values(), "the node's parameters")
            self._detector = self._make_detector(self._options)
            config = self._detector.config
            self._stream = RigStream(
                self._options, config.cameras, config.anchor_camera, faults=self._faults
            )
        except BevnextError as error:
            return self._refuse(one_line(error))
        except Exception as error:  # out of memory, a missing library: to be mended and tried again
            return self._refuse(f"the detector cannot be made: {type(error).__name__}: {one_line(error)}")
        self.get_logger().info(f"configured: {self._detector}")
        self._outputs = Outputs(self, self._factory)
        self._fault = ""
        self._state = "inactive"
        return TransitionCallbackReturn.SUCCESS

    def _refuse(self, fault: str) -> TransitionCallbackReturn:
        self._detector = self._stream = None
        self._fault = fault
        self.get_logger().error(f"not configured: {fault}")
        return TransitionCallbackReturn.FAILURE

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe and start the worker. After a deactivation the first frame resets the history."""
        assert self._stream is not None
        if self._last_worker is not None and self._last_worker.is_alive:
            self.get_logger().error("not activated: the inference of the last activation still runs")
            return TransitionCallbackReturn.FAILURE
        self._worker = DetectionWorker(
            self._detector,
            self._stream.model_cameras,
            image_to_rgb,
            self._publish,
            self._faults,
            overload=self._options.overload,  # type: ignore[arg-type]  # checked by the table
            queue_size=self._options.overload_queue,
            mask_faulty=self._options.mask_faulty,
        )
        self._inputs = Inputs(self, self._options, self._stream.cameras, self)
        self._poll_timer = self.create_timer(_POLL_SECONDS, self._poll, clock=self._steady)
        self._state = "active"
        names = ", ".join(f"{camera.name} ({camera.image_topic})" for camera in self._stream.cameras)
        self.get_logger().info(f"active; cameras: {names}; anchor: {self._stream.anchor}")
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe, wait for a running inference, forget what was under way."""
        self._stop()
        self._state = "inactive"
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Give the detector and the publishers up."""
        self._release()
        self._state = "unconfigured"
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Everything of deactivation and clean-up."""
        self.shut_down(_STOP_SECONDS)
        return super().on_shutdown(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Back to unconfigured."""
        self.shut_down(_STOP_SECONDS)
        self._state = "unconfigured"
        return TransitionCallbackReturn.SUCCESS

    def shut_down(self, timeout: float) -> bool:
        """Stop and release everything; ``False`` when an inference still runs after ``timeout`` seconds."""
        ended = self._stop(timeout)
        self._release()
        self._state = "finalized"
        return ended

    def _stop(self, timeout: float = _STOP_SECONDS) -> bool:
        if self._inputs is not None:
            self._inputs.close()
            self._inputs = None
        if self._poll_timer is not None:
            self.destroy_timer(self._poll_timer)
            self._poll_timer = None
        if self._stream is not None:
            self._stream.clear("activated", "deactivated")
        if self._worker is None:
            return True
        ended = self._worker.stop(timeout)
        self._carry_counts(self._worker.drops.snapshot())
        self._published_before += self._worker.published
        self._last_worker, self._worker = self._worker, None
        return ended

    def _carry_counts(self, drops: dict[str, int]) -> None:
        """Totals go on over activations and configurations: every frame stays accounted for."""
        before = self._counted_before
        self._counted_before = {c: before.get(c, 0) + drops.get(c, 0) for c in {*before, *drops}}

    def _release(self) -> None:
        if self._stream is not None:
            self._carry_counts(self._stream.frame_drops)
            self._seen_before += self._stream.seen
        if self._outputs is not None:
            self._outputs.close()
            self._outputs = None
        self._detector = self._stream = None
        gc.collect()

    # ------------------------------------------------------------------------------------- inputs
    def on_image(self, camera: str, message: Any, waited_ns: int) -> None:
        """An image that the middleware received ``waited_ns`` ago."""
        now = time.monotonic_ns()
        if self._stream is not None:
            self._accept(self._stream.image(camera, message, now, now - waited_ns))

    def on_camera_info(self, camera: str, message: Any) -> None:
        """A calibration."""
        if self._stream is not None:
            self._accept(self._stream.camera_info(camera, message, time.monotonic_ns()))

    def on_tf(self, static: bool, message: Any) -> None:
        """Transforms."""
        if self._stream is not None:
            self._accept(self._stream.transform(message, static, time.monotonic_ns()))

    def on_clock_jump(self, to_ns: int, backward: bool) -> None:
        """``/clock`` jumped (with ``use_sim_time``)."""
        if self._stream is not None:
            self._accept(self._stream.clock_jumped(to_ns, backward, time.monotonic_ns()))

    def _poll(self) -> None:
        if self._stream is not None:
            self._accept(self._stream.poll(time.monotonic_ns()))

    def _accept(self, frames: list[PosedFrame]) -> None:
        worker, outputs = self._worker, self._outputs
        if worker is None or outputs is None:
            return  # no frame comes: the stream was cleared when they went
        for posed in frames:
            if not outputs.are_wanted(self._options):
                worker.skip(posed, "no_subscriber")
            elif not self._rate.takes(posed.assembled.stamp_ns, self._options.max_rate):
                worker.skip(posed, "max_rate")
            else:
                worker.submit(posed)

    # ------------------------------------------------------------------------------------- outputs
    def _publish(self, result: Result) -> None:
        """In the detector's thread."""
        assert self._outputs is not None
        seconds = self._outputs.publish(result, self._options)
        self._diagnostics.note_result(result.detections, seconds, self._options.slow_frame)

    def _warn(self, text: str) -> None:
        """Into the log, at most once a second. Any thread."""
        now = time.monotonic()
        if now - self._last_warning >= _WARN_SECONDS:
            self._last_warning = now
            self.get_logger().warning(text)

    @property
    def _seen(self) -> int:
        return self._seen_before + (self._stream.seen if self._stream else 0)

    @property
    def _published(self) -> int:
        return self._published_before + (self._worker.published if self._worker else 0)

    def _frame_drops(self) -> dict[str, int]:
        parts = [self._counted_before]
        if self._stream is not None:
            parts.append(self._stream.frame_drops)
        if self._worker is not None:
            parts.append(self._worker.drops.snapshot())
        return {cause: sum(part.get(cause, 0) for part in parts) for cause in sorted(set().union(*parts))}

    def report(self) -> Report:
        """The node's state in numbers; every frame seen is published, dropped under a cause, or in flight."""
        stream, worker, options = self._stream, self._worker, self._options
        return Report(
            state=self._state,
            fault=self._fault,
            active=self._state == "active",
            ages=stream.assembler.ages(time.monotonic_ns()) if stream else {},
            anchor=stream.anchor if stream else "",
            silent_after=options.silent_after,
            drops=self._frame_drops(),
            image_drops=_image_drops(stream, worker),
            transform_drops=stream.transforms.drops.snapshot() if stream else {},
            calibration_drops=stream.builder.calibration_drops.snapshot() if stream else {},
            seen=self._seen,
            published=self._published,
            in_flight=(stream.waiting if stream else 0) + (worker.in_flight if worker else 0),
            note=self._faults.last(),
            wanted=self._outputs is None or self._outputs.are_wanted(options),
            bad_cameras=stream.bad_cameras if stream else {},
            no_output_after=options.no_output_after,
            max_loss=options.max_loss,
            slow_frame=options.slow_frame,
            slow_frames=options.slow_frames,
        )

    def _publish_diagnostics(self) -> None:
        statuses = self._diagnostics.statuses(self.report())
        stamp = self.get_clock().now().nanoseconds
        name, hardware = self.get_fully_qualified_name(), f"{platform.node()} {self._options.device}"
        self._diagnostics_output.publish(make_diagnostics(self._factory, statuses, name, stamp, hardware))

    # ------------------------------------------------------------------------------------- parameters
    def _values(self) -> dict[str, Any]:
        return {parameter.name: self.get_parameter(parameter.name).value for parameter in PARAMETERS}

    def _check_parameters(self, changes: list[Any]) -> SetParametersResult:
        """Live parameters change at once; the others only while the node is unconfigured."""
        table = {parameter.name: parameter for parameter in PARAMETERS}
        changed = {change.name: change.value for change in changes if change.name in table}
        try:
            checked = make_options(changed, "the new value")
        except ConfigError as error:
            return SetParametersResult(successful=False, reason=str(error))
        fixed = [name for name in changed if not table[name].live]
        if fixed and self._state in ("inactive", "active"):
            reason = f"'{fixed[0]}' takes effect when the node is configured: clean it up first"
            return SetParametersResult(successful=False, reason=reason)
        live = {name: getattr(checked, name) for name in changed if table[name].live}
        self._options = dataclasses.replace(self._options, **live)
        return SetParametersResult(successful=True)


def _image_drops(stream: RigStream | None, worker: DetectionWorker | None) -> dict[str, int]:
    drops = stream.assembler.image_drops.snapshot() if stream else {}
    masked = worker.masked_images["bad_image"] if worker else 0
    return drops | ({"masked": masked} if masked else {})


def _descriptor(parameter: Parameter) -> ParameterDescriptor:
    """The parameter's table entry as rclpy wants it."""
    notes = [f"one of {', '.join(parameter.choices)}"] if parameter.choices else []
    if not parameter.live and not parameter.read_only:
        notes.append("takes effect when the node is configured")
    descriptor = ParameterDescriptor(
        name=parameter.name,
        description=parameter.text,
        additional_constraints="; ".join(notes),
        read_only=parameter.read_only,
        # 1 is a number too, but rclpy would take 1.0 only; the table checks types
        dynamic_typing=isinstance(parameter.default, float),
    )
    if parameter.limits is not None and isinstance(parameter.default, float):
        low, high = (float(limit) for limit in parameter.limits)
        descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high, step=0.0)]
    elif parameter.limits is not None:
        low_int, high_int = (int(limit) for limit in parameter.limits)
        descriptor.integer_range = [IntegerRange(from_value=low_int, to_value=high_int, step=1)]
    return descriptor
