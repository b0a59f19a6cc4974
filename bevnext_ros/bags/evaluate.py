# SPDX-License-Identifier: Apache-2.0
"""Recorded detections -> nuScenes submission: the proof that what the node published is right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bevnext_core.classes import ANCHOR_CAMERA, CLASSES
from bevnext_core.datasets.nuscenes_tables import load_tables, numbers, row_of, split_scenes, value
from bevnext_core.datasets.nuscenes_tables import stamp_ns as table_stamp_ns
from bevnext_core.detections import Detections
from bevnext_core.errors import DatasetError
from bevnext_core.geometry import rigid
from bevnext_ros.bags.reader import BagReader
from bevnext_ros.bags.writer import BagError
from bevnext_ros.messages.conversions import cloud_records, detection_rows, stamp_ns
from bevnext_tools.evaluation.submission import make_submission, submission_records

GLOBAL_FRAMES = ("map", "odom")
"""Frames of the project's nuScenes bags that are the data set's global frame."""


def submission_from_bag(
    bag_path: str | Path,
    tables: Any,
    sample_tokens: list[str],
    *,
    base_frame: str = "base_link",
    anchor_camera: str = ANCHOR_CAMERA,
    detections_topic: str = "",
) -> dict[str, Any]:
    """The submission for ``sample_tokens`` from a bag with recorded ``~/detections`` and ``~/boxes``.

    A message belongs to the key frame whose anchor camera has its stamp. The ego pose is the data set's at that
    stamp, unless the boxes are in the global frame. Velocities come from the ``boxes`` topic beside the detections.

    Args:
        detections_topic: the Detection3DArray topic; empty for the only one named ``.../detections``.

    Raises:
        BagError: no such topics, boxes in an unknown frame, or no detection of any of these key frames.
        DatasetError: a sample without the anchor camera.
    """
    key_frames = _key_frames(tables, sample_tokens, anchor_camera)
    results: dict[str, list[dict[str, Any]]] = {}
    with BagReader(bag_path) as bag:
        topic = detections_topic or _only_topic(bag)
        cloud_topic = topic.rsplit("/", 1)[0] + "/boxes"
        arrays: dict[int, Any] = {}
        clouds: dict[int, np.ndarray] = {}
        for message in bag.messages({topic, cloud_topic}):
            content = message.decode()
            stamp = stamp_ns(content.header)
            if message.topic == topic:
                arrays[stamp] = content
            else:
                clouds[stamp] = cloud_records(content)
    for stamp, content in arrays.items():
        if stamp not in key_frames:
            continue  # a sweep between two key frames, or another scene
        token, global_from_ego = key_frames[stamp]
        frame = content.header.frame_id
        if frame == base_frame:
            pose = global_from_ego
        elif frame in GLOBAL_FRAMES:
            pose = np.eye(4)
        else:
            raise BagError(
                f"{bag_path}: boxes are in '{frame}'; expected '{base_frame}' or {' or '.join(GLOBAL_FRAMES)}"
            )
        results[token] = submission_records(_detections(content, clouds.get(stamp), stamp, pose, token))
    if not results:
        raise BagError(
            f"{bag_path}: none of its {len(arrays)} detections on {topic} has the stamp of a key frame of the data set"
        )
    return make_submission(results, sample_tokens)


def submission_of_split(bag_path: str | Path, tables: Any, eval_set: str) -> dict[str, Any]:
    """The submission for a split's key frames in ``tables``.

    Raises: what :func:`submission_from_bag` raises; DatasetError when the split has no scene here.
    """
    names = set(split_scenes(eval_set, str(tables.version)))
    scenes = {row["token"] for row in tables.scene if row["name"] in names}
    tokens = [row["token"] for row in tables.sample if value("sample", row, "scene_token") in scenes]
    if not tokens:
        raise DatasetError(f"no scene of the split '{eval_set}' is in {tables.dataroot}")
    return submission_from_bag(bag_path, tables, tokens)


def _key_frames(tables: Any, tokens: list[str], anchor_camera: str) -> dict[int, tuple[str, np.ndarray]]:
    """{anchor stamp in ns: (sample token, global_from_ego)}."""
    found = {}
    for token in tokens:
        data = tables.get("sample", token)["data"]
        if anchor_camera not in data:
            raise DatasetError(f"sample {token} has no record of {anchor_camera}")
        row = row_of(tables, "sample_data", data[anchor_camera])
        pose = row_of(tables, "ego_pose", value("sample_data", row, "ego_pose_token"))
        global_from_ego = rigid(
            numbers("ego_pose", pose, "rotation", 4), numbers("ego_pose", pose, "translation", 3)
        )
        found[table_stamp_ns("sample_data", row)] = (token, global_from_ego)
    return found


def _only_topic(bag: BagReader) -> str:
    topics = [
        topic
        for topic, kind in bag.topics.items()
        if kind == "vision_msgs/msg/Detection3DArray" and topic.endswith("/detections")
    ]
    if len(topics) != 1:
        found = ", ".join(topics) or "none"
        raise BagError(f"{bag.path}: expected one Detection3DArray topic '.../detections', found {found}")
    return topics[0]


def _detections(
    content: Any, cloud: np.ndarray | None, stamp: int, global_from_frame: np.ndarray, token: str
) -> Detections:
    rows = list(detection_rows(content))
    boxes = np.array([box for box, _, _ in rows]).reshape(-1, 9)
    names = [name for _, name, _ in rows]
    unknown = sorted(set(names) - set(CLASSES))
    if unknown:
        raise BagError(f"nuScenes has no detection class {', '.join(unknown)}; it has {', '.join(CLASSES)}")
    if cloud is not None and len(cloud) == len(boxes):
        boxes[:, 7], boxes[:, 8] = cloud["vx"], cloud["vy"]
    labels = np.array([CLASSES.index(name) for name in names], np.int64)
    scores = np.array([score for _, _, score in rows])
    return Detections(boxes, scores, labels, CLASSES, stamp, global_from_frame, token)


def run_evaluate_bag(
    bag: str | Path,
    dataroot: str | Path,
    version: str,
    eval_set: str,
    *,
    scenes: list[str] | None = None,
    out: str | Path | None = None,
) -> int:
    """The command: submission from the bag, official score, table; ``out``: as JSON. Raises BevnextError."""
    from bevnext_tools.evaluation.metric import evaluate, report

    with BagReader(bag):
        pass  # a wrong path is found before the tables are loaded, which takes half a minute
    tables = load_tables(dataroot, version)
    submission = submission_of_split(bag, tables, eval_set)
    print(f"{sum(map(bool, submission['results'].values()))} key frames with detections in {bag}")
    report(evaluate(tables, submission, eval_set, scenes), out)
    return 0
