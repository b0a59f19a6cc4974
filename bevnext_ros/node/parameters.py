"""The detector's parameters: one table for the node, its YAML file, the bag runner and the documentation.

No ROS here: the node declares what stands in the table, ``bevnext detect --bag`` reads the same YAML file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bevnext_core.errors import ConfigError

Value = bool | int | float | str | list[str]


@dataclass(frozen=True)
class Parameter:
    """One parameter: its default gives the type; ``limits`` are inclusive; ``live`` ones may change at any time."""

    name: str
    default: Value
    text: str
    limits: tuple[float, float] | None = None
    choices: tuple[str, ...] = ()
    live: bool = False
    read_only: bool = False

    def check(self, value: Any, source: str) -> Value:
        """``value`` in the parameter's type. Raises ConfigError naming the parameter and what is allowed."""
        kind = type(self.default)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if kind is list:
            value = list(value) if isinstance(value, (list, tuple)) else value
            fits = isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)
        else:
            fits = type(value) is kind
        if not fits:
            wanted = "a list of strings" if kind is list else kind.__name__
            raise ConfigError(f"{source}: '{self.name}' must be {wanted}, got {value!r}")
        for item in value if isinstance(value, list) else [value]:
            if self.choices and item not in self.choices:
                raise ConfigError(
                    f"{source}: '{self.name}' must be one of {', '.join(self.choices)}, got {item!r}"
                )
        if self.limits is not None and not self.limits[0] <= value <= self.limits[1]:
            low, high = self.limits
            raise ConfigError(f"{source}: '{self.name}' must be between {low:g} and {high:g}, got {value!r}")
        return value


_P = Parameter
PARAMETERS: tuple[Parameter, ...] = (
    _P("autostart", True, "configure and activate by itself when the node starts", read_only=True),
    _P("checkpoint", "", "the network's file, from bevnext import-checkpoint or from training"),
    _P("model", "", "a model configuration (YAML) that the checkpoint must agree with; empty: any"),
    _P("device", "auto", "cpu, cuda, cuda:1, ...; auto: cuda where there is one"),
    _P("precision", "fp32", "of the convolutions", choices=("fp32", "bf16", "fp16")),
    _P("compile", False, "run the network through torch.compile; the first frame takes a minute or more"),
    _P(
        "compile_mode",
        "default",
        "with compile: torch.compile alone or with CUDA graphs, or CUDA graphs alone",
        choices=("default", "reduce-overhead", "graphs"),
    ),
    _P(
        "cameras",
        [""],
        "the rig's names for the model's cameras, in the model's order; empty: the model's own",
    ),
    _P("image_topics", ["{camera}/image_raw/compressed"], "one per camera, or one pattern for all"),
    _P("camera_info_topics", ["{camera}/camera_info"], "one per camera, or one pattern for all"),
    _P("transports", ["compressed"], "one per camera, or one for all", choices=("compressed", "raw")),
    _P("camera_frames", [""], "optical frames, one per camera; empty: from the image's header"),
    _P("base_frame", "base_link", "the ego frame: x forward, z up, on the ground"),
    _P("fixed_frame", "odom", "a frame in which base_frame moves without jumps"),
    _P("output_frame", "", "frame of the published boxes; empty: base_frame"),
    _P(
        "synchronizer",
        "anchor",
        "how images are joined: nearest to the anchor camera's, or message_filters' approximate time",
        choices=("anchor", "message_filters"),
    ),
    _P("max_spread", 0.06, "s, how far an image may be from the anchor camera's stamp", limits=(0.0, 1.0)),
    _P("image_deadline", 0.2, "s, how long a frame waits for images", limits=(0.0, 10.0)),
    _P(
        "missing_camera",
        "skip",
        "when a camera is missing or bad: wait for it, skip the frame, or mask the camera",
        choices=("wait", "skip", "mask"),
    ),
    _P("silent_after", 1.0, "s, a camera silent for so long is not waited for", limits=(0.0, 60.0)),
    _P("frame_queue", 10, "most frames that wait for images, and for transforms", limits=(1, 1000)),
    _P("transform_deadline", 0.5, "s, how long a frame waits for transforms", limits=(0.0, 10.0)),
    _P("transform_keep", 10.0, "s of transforms kept", limits=(0.1, 600.0)),
    _P("backward_jump", 1.0, "s, a stamp so far back means that time went back", limits=(0.01, 60.0)),
    _P(
        "distortion",
        "rectify",
        "lens distortion: rectify it, refuse it, or the images are rectified already",
        choices=("rectify", "refuse", "rectified"),
    ),
    _P("image_reliability", "best_effort", "QoS of images", choices=("best_effort", "reliable")),
    _P("image_depth", 5, "QoS of images: queue per camera", limits=(1, 1000)),
    _P("overload", "newest", "when frames come too fast: newest wins, or queue", choices=("newest", "queue")),
    _P("overload_queue", 10, "most frames that wait for the network with overload: queue", limits=(1, 1000)),
    _P("only_when_subscribed", True, "compute nothing while nobody subscribes to an output", live=True),
    _P("score_threshold", 0.1, "lowest score published", limits=(0.0, 1.0), live=True),
    _P("max_detections", 200, "most boxes published per frame, best first", limits=(1, 500), live=True),
    _P("history_max_gap", 2.0, "s between frames above which the past is forgotten", limits=(0.0, 60.0)),
    _P(
        "slow_frame",
        1.0,
        "s from a frame's newest image to its boxes that are slow",
        limits=(0.0, 60.0),
        live=True,
    ),
    _P("slow_frames", 10, "slow frames in a row that are an error", limits=(1, 10_000), live=True),
    _P("diagnostics_period", 1.0, "s between diagnostics", limits=(0.05, 60.0)),
)

_OWN = "remove it: a past frame always has its own (the published choice is in 'bevnext evaluate --mode window')"
REMOVED = {"crf_canvas": _OWN, "camera_params": _OWN, "cuda_graphs": "use compile: true, compile_mode: reduce-overhead"}
"""Parameters of the release before, and what is in their place; refused by name."""


@dataclass(frozen=True)
class Options:
    """The values of :data:`PARAMETERS`, checked."""

    autostart: bool
    checkpoint: str
    model: str
    device: str
    precision: str
    compile: bool
    compile_mode: str
    cameras: list[str]
    image_topics: list[str]
    camera_info_topics: list[str]
    transports: list[str]
    camera_frames: list[str]
    base_frame: str
    fixed_frame: str
    output_frame: str
    synchronizer: str
    max_spread: float
    image_deadline: float
    missing_camera: str
    silent_after: float
    frame_queue: int
    transform_deadline: float
    transform_keep: float
    backward_jump: float
    distortion: str
    image_reliability: str
    image_depth: int
    overload: str
    overload_queue: int
    only_when_subscribed: bool
    score_threshold: float
    max_detections: int
    history_max_gap: float
    slow_frame: float
    slow_frames: int
    diagnostics_period: float

    @property
    def mask_faulty(self) -> bool:
        """Whether a camera whose data cannot be used is masked rather than stopping the frame."""
        return self.missing_camera == "mask"


def make_options(values: Mapping[str, Any], source: str) -> Options:
    """Options from values by name; what is left out keeps its default.

    Raises:
        ConfigError: an unknown or removed name, a wrong type, or a value that is not allowed; names ``source``.
    """
    known = {parameter.name: parameter for parameter in PARAMETERS}
    for name in sorted(set(values) & set(REMOVED)):
        raise ConfigError(f"{source}: the parameter '{name}' is gone; {REMOVED[name]}")
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ConfigError(f"{source}: unknown parameter {', '.join(unknown)}; known are {', '.join(known)}")
    checked = {name: p.check(values.get(name, p.default), source) for name, p in known.items()}
    return Options(**checked)  # type: ignore[arg-type]


def load_options(path: str | Path) -> Options:
    """Options from a ROS parameter file, as the node takes it.

    Raises:
        ConfigError: missing or no parameter file, or what :func:`make_options` finds.
    """
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no such parameter file: {path}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from None
    values: dict[str, Any] = {}
    sections = data.values() if isinstance(data, Mapping) else []
    blocks = [s["ros__parameters"] for s in sections if isinstance(s, Mapping) and "ros__parameters" in s]
    if not blocks or not all(isinstance(block, Mapping) for block in blocks):
        raise ConfigError(f"{path}: is no ROS parameter file (expected '/**: {{ros__parameters: ...}}')")
    for block in blocks:
        values.update(block)
    values.pop("use_sim_time", None)  # every node has it
    return make_options(values, str(path))


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
    if names == [""]:
        names = [name.lower() for name in model_cameras]
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

    images, infos = spread("image_topics"), spread("camera_info_topics")
    for parameter, topics in (("image_topics", images), ("camera_info_topics", infos)):
        if len(set(topics)) != len(topics):
            raise ConfigError(f"the parameter '{parameter}' gives two cameras one topic: {', '.join(topics)}")
    transports, frames = spread("transports"), spread("camera_frames")
    return tuple(
        RigCamera(name, image, info, transport == "raw", frame)
        for name, image, info, transport, frame in zip(names, images, infos, transports, frames, strict=True)
    )


def dump_options(options: Options) -> str:
    """A parameter file of these values, each with its description."""
    values = dataclasses.asdict(options)
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
        value = yaml.safe_dump(values[parameter.name], default_flow_style=True, width=1000).splitlines()[0]
        lines += [f"    # {'; '.join(notes)}", f"    {parameter.name}: {value}"]
    return "\n".join(lines) + "\n"
