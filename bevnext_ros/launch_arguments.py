# SPDX-License-Identifier: Apache-2.0
"""What the arguments of launch/detector.launch.py mean: parameters of the node, the player's command, RViz' topics.

A launch file runs in the distribution's Python, which has neither torch nor pydantic: only PyYAML is imported here, and
nothing of launch.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from bevnext_core.errors import ConfigError
from bevnext_core.files import user_path

CAMERA_KEYS = {
    "name": "cameras",
    "image_topic": "image_topics",
    "camera_info_topic": "camera_info_topics",
    "transport": "transports",
    "frame": "camera_frames",
}
"""Keys of a camera file, and the parameter that each is an entry of."""
BOOLEANS = ("true", "false", "True", "False")
_WAIT_SECONDS = 1.0
"""What `ros2 bag play` waits before the first message: the time in which subscribers find a new publisher."""

_LISTEN_SECONDS = 60.0
"""What the node waits for launch's subscription; on a busy machine discovery takes seconds."""


def refuse_unknown(command: Iterable[str], launch_file: str, known: Collection[str]) -> None:
    """`ros2 launch` passes over arguments that no launch file declares.

    Args:
        command: the command line. Where another launch file includes this one, nothing is checked: it has its own.

    Raises:
        ConfigError: ``name:=value`` with a name that is not known.
    """
    words = list(command)
    if Path(launch_file).name not in {Path(word).name for word in words}:
        return
    for name, given, _ in (word.partition(":=") for word in words):
        if given and name not in known:
            close = difflib.get_close_matches(name, list(known), 1)
            hint = f"did you mean '{close[0]}'?" if close else f"known are {', '.join(known)}"
            raise ConfigError(f"unknown launch argument '{name}'; {hint}")


def existing(argument: str, path: str, needs: Callable[[Path], bool]) -> str:
    """A path without its ``~``. Raises ConfigError, naming the argument: there is no such thing."""
    found = user_path(path)
    if not needs(found):
        raise ConfigError(f"{argument}:={path}: no such file")
    return str(found)


def node_parameters(given: Mapping[str, str]) -> dict[str, Any]:
    """The node's parameters that the arguments ``given`` by name set; what is empty sets none.

    Raises:
        ConfigError: a value is no number or no list, a camera file cannot be used.
    """
    values = {name: text for name, text in given.items() if text}
    parameters: dict[str, Any] = {
        n: values[n] for n in ("device", "tf_topic", "tf_static_topic") if n in values
    }
    parameters |= {n: str(user_path(values[n])) for n in ("checkpoint", "model") if n in values}
    if values.get("cameras", "").endswith((".yaml", ".yml")):
        parameters |= _camera_file(existing("cameras", values["cameras"], Path.is_file))
    elif "cameras" in values:
        parameters["cameras"] = _names("cameras", values["cameras"])
    for name in ("image_topics", "camera_info_topics"):
        if name in values:
            parameters[name] = _names(name, values[name])
    if "transport" in values:
        parameters["transports"] = [values["transport"]]
    if "threads" in values:
        if not values["threads"].isdecimal():
            raise ConfigError(
                f"threads:={values['threads']}: expected a whole number, 0 for the cores at hand"
            )
        parameters["threads"] = int(values["threads"])
    if "autostart" in values:
        parameters["autostart"] = is_true(values["autostart"])
    if "bag" in values:
        parameters["activation_wait"] = _LISTEN_SECONDS
    parameters["use_sim_time"] = is_true(values.get("use_sim_time", "true" if "bag" in values else "false"))
    return parameters


def is_true(text: str) -> bool:
    """Of one of :data:`BOOLEANS`."""
    return text.lower() == "true"


def _names(argument: str, text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise ConfigError(f"{argument}:={text}: expected names with commas between them")
    return names


def _camera_file(path: str) -> dict[str, list[str]]:
    try:
        cameras = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is no YAML: {error}") from None
    if (
        not cameras
        or not isinstance(cameras, list)
        or not all(isinstance(c, dict) and "name" in c for c in cameras)
    ):
        raise ConfigError(f"{path}: expected a list of cameras, each with a name")
    unknown = {str(key) for camera in cameras for key in camera} - set(CAMERA_KEYS)
    if unknown:
        raise ConfigError(
            f"{path}: unknown keys {', '.join(sorted(unknown))}; known are {', '.join(CAMERA_KEYS)}"
        )
    parameters = {}
    for key, parameter in CAMERA_KEYS.items():
        entries = [camera[key] for camera in cameras if key in camera]
        if entries and len(entries) < len(cameras):
            raise ConfigError(f"{path}: '{key}' is given for some cameras only")
        if entries:
            parameters[parameter] = [str(entry) for entry in entries]
    return parameters


def play_command(player: list[str], given: Mapping[str, str]) -> list[str]:
    """`ros2 bag play` or `bevnext play` (``player``, they have the same options) of the argument ``bag``; [] without.

    Raises:
        ConfigError: no such bag; a rate that is none; ``rate`` or ``loop`` without a bag.
    """
    loop, rate = is_true(given["loop"]), given["rate"]
    if not given["bag"]:
        if loop or rate:
            raise ConfigError(f"{'loop' if loop else 'rate'} is about a bag: give bag:=FOLDER too")
        return []
    command = [
        *player,
        existing("bag", given["bag"], Path.exists),
        "--clock",
        "--delay",
        f"{_WAIT_SECONDS:g}",
    ]
    if rate:
        try:
            ahead = float(rate) > 0
        except ValueError:
            ahead = False
        if not ahead:
            raise ConfigError(f"rate:={rate}: expected a number above 0")
        command += ["--rate", rate]
    return [*command, "--loop"] if loop else command


def rviz_remappings(layout: str, given: Mapping[str, str]) -> list[tuple[str, str]]:
    """For an RViz in the node's namespace: the layout's absolute topics, as the node of that name there has them."""
    found: dict[str, str] = {}
    if given["namespace"] or given["name"] != "detector":
        for topic in _topics(yaml.safe_load(Path(layout).read_text(encoding="utf-8"))):
            own = topic.startswith("/detector/")
            found[topic] = given["name"] + topic.removeprefix("/detector") if own else topic.lstrip("/")
    found |= {f"/{n}": given[f"{n}_topic"] for n in ("tf", "tf_static") if given[f"{n}_topic"]}
    return list(found.items())


def _topics(layout: Any) -> Iterable[str]:
    if isinstance(layout, list):
        for entry in layout:
            yield from _topics(entry)
    elif isinstance(layout, dict):
        for key, entry in layout.items():
            if key == "Topic":
                yield entry["Value"]
            else:
                yield from _topics(entry)
