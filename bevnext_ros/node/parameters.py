# SPDX-License-Identifier: Apache-2.0
"""The detector's parameters: one table for the node, its YAML file, the bag runner and the documentation.

No ROS here: the node declares what stands in the table, ``bevnext detect --bag`` reads the same YAML file.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field

from bevnext_core.errors import ConfigError
from bevnext_core.precision import AnyPrecision
from bevnext_core.strict import choices, from_mapping, model, model_fields, suggestion, to_mapping
from bevnext_ros.node.parameter_file import ParameterFile

_log = logging.getLogger(__name__)


def _p(default: Any, text: str, within: Any = (None, None), **flags: bool) -> Any:
    """A parameter: ``within`` are inclusive limits; ``live`` ones may change at any time, others while unconfigured."""
    return Field(default, description=text, ge=within[0], le=within[1], json_schema_extra={**flags})


Names = Annotated[tuple[str, ...], Field(min_length=1)]


@model
class Options:
    """The table, and the values of a run."""

    autostart: bool = _p(True, "configure and activate by itself when the node starts", read_only=True)
    checkpoint: str = _p("", "the network's file, or the name of published weights (bevnext weights), or demo")
    model: str = _p("", "a model configuration (YAML) that the checkpoint must agree with; empty: any")
    device: str = _p("auto", "cpu, cuda, cuda:1, ...; auto: cuda where there is one")
    precision: AnyPrecision = _p("auto", "of the convolutions; auto: as bevnext doctor says")
    compile: bool = _p(False, "run the network through torch.compile; the first frame takes a minute or more")
    compile_mode: Literal["default", "reduce-overhead", "graphs"] = _p(
        "default", "with compile: torch.compile alone or with CUDA graphs, or CUDA graphs alone"
    )
    threads: int = _p(0, "computing threads; 0: OMP_NUM_THREADS, or the cores at hand", (0, 1024))
    cameras: Names = _p(
        ("",), "the rig's names for the model's cameras, in the model's order; empty: the model's own"
    )
    image_topics: Names = _p(
        ("",),
        "one per camera, or one pattern for all; empty: {camera}/image_raw, with /compressed if that is the transport",
    )
    camera_info_topics: Names = _p(("{camera}/camera_info",), "one per camera, or one pattern for all")
    transports: Annotated[tuple[Literal["compressed", "raw"], ...], Field(min_length=1)] = _p(
        ("compressed",), "one per camera, or one for all"
    )
    camera_frames: Names = _p(("",), "optical frames, one per camera; empty: from the image's header")
    tf_topic: str = _p("/tf", "transforms that move; /robot1/tf for a robot with a namespace of its own")
    tf_static_topic: str = _p("/tf_static", "transforms that do not")
    base_frame: str = _p("base_link", "the ego frame: x forward, z up, on the ground")
    fixed_frame: str = _p("odom", "a frame in which base_frame moves without jumps")
    output_frame: str = _p("", "frame of the published boxes; empty: base_frame")
    synchronizer: Literal["anchor", "message_filters"] = _p(
        "anchor",
        "how images are joined: nearest to the anchor camera's, or message_filters' approximate time",
    )
    max_spread: float = _p(0.06, "s, how far an image may be from the anchor camera's stamp", (0, 1))
    image_deadline: float = _p(0.2, "s, how long a frame waits for images", (0, 10))
    missing_camera: Literal["wait", "skip", "mask"] = _p(
        "skip", "when a camera is missing or bad: wait for it, skip the frame, or mask the camera"
    )
    silent_after: float = _p(1.0, "s, a camera silent for so long is not waited for", (0, 60))
    frame_queue: int = _p(10, "most frames that wait for images, and for transforms", (1, 1000))
    transform_deadline: float = _p(0.5, "s, how long a frame waits for transforms", (0, 10))
    transform_keep: float = _p(10.0, "s of transforms kept", (0.1, 600))
    backward_jump: float = _p(1.0, "s, a stamp so far back means that time went back", (0.01, 60))
    distortion: Literal["rectify", "refuse", "rectified"] = _p(
        "rectify", "lens distortion: rectify it, refuse it, or the images are rectified already"
    )
    image_reliability: Literal["best_effort", "reliable"] = _p("best_effort", "QoS of images")
    image_depth: int = _p(5, "QoS of images: queue per camera", (1, 1000))
    overload: Literal["newest", "queue"] = _p("newest", "when frames come too fast: newest wins, or queue")
    overload_queue: int = _p(10, "most frames that wait for the network with overload: queue", (1, 1000))
    max_rate: float = _p(
        0.0, "Hz, most frames computed a second, the others are skipped on purpose; 0: no limit", (0, 1000), live=True
    )
    only_when_subscribed: bool = _p(True, "compute nothing while nobody subscribes to an output", live=True)
    score_threshold: float = _p(0.1, "lowest score published", (0, 1), live=True)
    max_detections: int = _p(200, "most boxes published per frame, best first", (1, 500), live=True)
    history_max_gap: float = _p(2.0, "s between frames above which the past is forgotten", (0, 60))
    slow_frame: float = _p(
        1.0, "s from a frame's newest image to its boxes that are slow", (0, 60), live=True
    )
    slow_frames: int = _p(10, "slow frames in a row that are an error", (1, 10000), live=True)
    max_loss: float = _p(0.1, "share of frames lost in ten seconds above which is warned", (0, 1), live=True)
    no_output_after: float = _p(
        5.0, "s without output, although images come, that are an error", (0.1, 3600), live=True
    )
    diagnostics_period: float = _p(1.0, "s between diagnostics", (0.05, 60))
    activation_wait: float = _p(
        0.0,
        "s that autostart waits, once configured, for a subscriber of ~/transition_event, which tells of it once",
        (0, 600),
        read_only=True,
    )

    @property
    def mask_faulty(self) -> bool:
        """Whether a camera whose data cannot be used is masked rather than stopping the frame."""
        return self.missing_camera == "mask"


@dataclass(frozen=True)
class Parameter:
    """One line of the table, for those who declare or print it; ``limits`` are inclusive."""

    name: str
    default: bool | int | float | str | list[str]
    text: str
    limits: tuple[float, float] | None
    choices: tuple[str, ...]
    live: bool = False
    read_only: bool = False


def _parameters() -> tuple[Parameter, ...]:
    found = []
    for name, field in model_fields(Options).items():
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        ends = [getattr(m, key) for key in ("ge", "le") for m in field.metadata if hasattr(m, key)]
        flags: Any = field.json_schema_extra
        within = (ends[0], ends[1]) if ends else None
        text = field.description or ""
        found.append(Parameter(name, default, text, within, choices(field.annotation), **flags))
    return tuple(found)


PARAMETERS = _parameters()
_OWN = (
    "remove it: a past frame always has its own (the published choice is in 'bevnext evaluate --mode window')"
)
REMOVED = {
    "crf_canvas": _OWN,
    "camera_params": _OWN,
    "cuda_graphs": "use compile: true, compile_mode: reduce-overhead",
}
"""Parameters of the release before, and what is in their place; refused by name."""
GENERAL = ("use_sim_time", "start_type_description_service", "qos_overrides")
"""What every node has, or the first part of its name."""


def make_options(values: Mapping[str, Any], source: str, shared: Collection[str] = ()) -> Options:
    """Options from values by name; what is left out keeps its default, what every node has is passed over.

    Args:
        shared: names that were said to several nodes: an unknown one may be another node's, and is only logged
            unless it looks like a typing error.

    Raises:
        ConfigError: an unknown or removed name, a wrong type, or a value that is not allowed; names ``source``.
    """
    known = model_fields(Options)
    own = {name: value for name, value in values.items() if name.split(".")[0] not in GENERAL}
    for name in sorted(own.keys() & REMOVED.keys()):
        raise ConfigError(f"{source}: the parameter '{name}' is gone; {REMOVED[name]}")
    foreign = {name for name in own.keys() - known.keys() if name in shared and not suggestion([name], known)}
    if foreign:
        _log.warning("%s: no parameter of this node: %s", source, ", ".join(sorted(foreign)))
    unknown = sorted(own.keys() - known.keys() - foreign)
    if unknown:
        hint = suggestion(unknown, known) or f"; known are {', '.join(known)}"
        raise ConfigError(f"{source}: unknown parameter {', '.join(unknown)}{hint}")
    return from_mapping(Options, {name: value for name, value in own.items() if name in known}, source)


def load_options(path: str | Path, node: str = "") -> Options:
    """Options from a ROS parameter file, as the node takes it.

    Args:
        node: the node's name with its namespace, ``/robot1/detector``; by default ``detector``, in the namespace that
            the file gives it.

    Raises:
        ConfigError: missing or no parameter file, or what :func:`make_options` finds.
    """
    file = ParameterFile.read(path)
    node = f"/{node.strip('/')}" if node else file.node_named("detector")
    return make_options(file.values(node), str(path), shared_names([path], node))


def shared_names(files: Iterable[str | Path], node: str) -> set[str]:
    """Parameters of ``node`` that only sections with wildcards give; logs which file says nothing to it."""
    read = [ParameterFile.read(file) for file in files]
    for file in read:
        if not file.speaks_to(node):
            _log.warning(
                "%s: nothing for the node %s, only for %s", file.path, node, ", ".join(file.patterns)
            )
    return {name for file in read for name in file.shared(node)}


_SUFFIX = {"compressed": "/compressed", "raw": ""}
"""Of image_transport's topics."""


@dataclass(frozen=True)
class RigCamera:
    """One camera of the rig: its name, topics and how its images travel."""

    name: str
    image_topic: str
    info_topic: str
    raw: bool
    frame: str


def rig_cameras(options: Options, model_cameras: Sequence[str]) -> tuple[RigCamera, ...]:
    """The rig's cameras in the order of the model's.

    Raises:
        ConfigError: another number of cameras than the model takes, lists of unequal length, repeated topics.
    """
    names = options.cameras
    if names == ("",):
        names = tuple(name.lower() for name in model_cameras)
    if len(names) != len(model_cameras):
        raise ConfigError(
            f"the model takes {len(model_cameras)} cameras ({', '.join(model_cameras)}), "
            f"the parameter 'cameras' names {len(names)} ({', '.join(names)})"
        )
    if len(set(names)) != len(names):
        raise ConfigError(f"the parameter 'cameras' names a camera twice: {', '.join(names)}")

    def spread(parameter: str) -> list[str]:
        items = getattr(options, parameter)
        if len(items) not in (1, len(names)):
            raise ConfigError(
                f"the parameter '{parameter}' has {len(items)} entries for {len(names)} cameras"
            )
        items = items if len(items) == len(names) else items * len(names)
        return [item.replace("{camera}", name) for item, name in zip(items, names, strict=True)]

    transports, frames = spread("transports"), spread("camera_frames")
    images, infos = spread("image_topics"), spread("camera_info_topics")
    for number, (name, transport) in enumerate(zip(names, transports, strict=True)):
        images[number] = images[number] or f"{name}/image_raw{_SUFFIX[transport]}"
        if transport == "raw" and images[number].endswith(_SUFFIX["compressed"]):
            raise ConfigError(
                f"the parameter 'image_topics' gives {images[number]} to {name}, whose transport is raw: name the "
                "topic of raw images, or set 'transports' to compressed"
            )
    for parameter, topics in (("image_topics", images), ("camera_info_topics", infos)):
        if len(set(topics)) != len(topics):
            raise ConfigError(f"the parameter '{parameter}' gives two cameras one topic: {', '.join(topics)}")
    return tuple(
        RigCamera(name, image, info, transport == "raw", frame)
        for name, image, info, transport, frame in zip(names, images, infos, transports, frames, strict=True)
    )


def dump_options(options: Options) -> str:
    """A parameter file of these values, each with its description."""
    lines = [
        "# Parameters of the detector node, and of `bevnext detect --bag`.",
        "/**:",
        "  ros__parameters:",
    ]
    for parameter in PARAMETERS:
        notes = [parameter.text]
        if parameter.choices:
            notes.append(" | ".join(parameter.choices))
        if parameter.limits:
            notes.append(f"{parameter.limits[0]:g} to {parameter.limits[1]:g}")
        value = to_mapping(options)[parameter.name]
        text = yaml.safe_dump(value, default_flow_style=True, width=1000).splitlines()[0]
        lines += [f"    # {'; '.join(notes)}", f"    {parameter.name}: {text}"]
    return "\n".join(lines) + "\n"
