# SPDX-License-Identifier: Apache-2.0
"""Layouts of Foxglove and RViz for one bag: those of config/, with its cameras and frames and without what it lacks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import yaml

from bevnext_core.classes import CAMERAS
from bevnext_core.files import atomic_path
from bevnext_ros.node.parameters import Options, RigCamera
from bevnext_tools.resources import shared_file


def write_layouts(folder: Path, topics: Set[str], cameras: Sequence[RigCamera], options: Options) -> None:
    """Write ``foxglove.json`` and ``detector.rviz`` for a bag that holds ``topics``.

    Args:
        cameras: of the rig; they take the places of the layouts' cameras one by one, in the model's order.
    """
    names = {"base_link": options.base_frame, "odom": options.fixed_frame}
    for theirs, camera in zip(map(str.lower, CAMERAS), cameras):
        names[theirs] = camera.name
        names[f"/{theirs}/image_raw/compressed"] = _absolute(camera.image_topic)
        names[f"/{theirs}/camera_info"] = _absolute(camera.info_topic)
    foxglove = _renamed(json.loads(shared_file("config/foxglove/detector.json").read_text()), names)
    panels = foxglove["configById"]
    for name in [name for name, panel in panels.items() if not _panel_topics(panel) & topics]:
        del panels[name]
    for panel in panels.values():
        if "topics" in panel:
            panel["topics"] = {topic: look for topic, look in panel["topics"].items() if topic in topics}
    foxglove["layout"] = _without_gaps(foxglove["layout"], panels)
    rviz = _renamed(yaml.safe_load(shared_file("config/rviz/detector.rviz").read_text()), names)
    manager = rviz["Visualization Manager"]
    manager["Displays"] = [d for d in manager["Displays"] if "Topic" not in d or d["Topic"]["Value"] in topics]
    for name, text in (
        ("foxglove.json", json.dumps(foxglove, indent=1)),
        ("detector.rviz", yaml.safe_dump(rviz, sort_keys=False)),
    ):
        with atomic_path(folder / name) as path:
            path.write_text(text + "\n", encoding="utf-8")


def _absolute(topic: str) -> str:
    return "/" + topic.lstrip("/")


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """A copy in which each text that is one of ``names`` is replaced."""
    if isinstance(value, dict):
        return {key: _renamed(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_renamed(item, names) for item in value]
    return names.get(value, value) if isinstance(value, str) else value


def _panel_topics(panel: dict[str, Any]) -> set[str]:
    """The topics for which a Foxglove panel is there: an image panel is for its image, not for the boxes in it."""
    if "imageMode" in panel:
        return {panel["imageMode"]["imageTopic"]}
    lines = {line["value"].partition(".")[0] for line in panel.get("paths", ())}
    return lines | {panel["topicToRender"]} if "topicToRender" in panel else lines or set(panel.get("topics", ()))


def _without_gaps(node: Any, panels: Mapping[str, Any]) -> Any:
    """Foxglove's tree of panels without those that are gone: the other half takes their place."""
    if isinstance(node, str):
        return node if node in panels else None
    first, second = (_without_gaps(node[half], panels) for half in ("first", "second"))
    return {**node, "first": first, "second": second} if first and second else first or second
