"""Annotated boxes at the moments between key frames, where nuScenes has none: for pictures, not for scores."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np

from bevnext_core.boxes import transform_boxes, wrap_angle
from bevnext_core.datasets.nuscenes import FrameRef, NuScenesReader
from bevnext_core.geometry import invert_rigid


@dataclass(frozen=True)
class TrueBoxes:
    """``boxes [M, 9]`` in the ego frame, and the class of each."""

    boxes: np.ndarray
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)


class TruthTracks:
    """The annotated objects of one scene that a lidar or radar point lies on, at the stamp of any frame.

    At a key frame these are its annotations. Between two of them an object's place and heading are interpolated;
    one that is annotated in only one of the two goes on with its velocity, for half the interval.
    """

    def __init__(self, reader: NuScenesReader, scene: str) -> None:
        self._reader = reader
        self._keys = [ref for ref in reader.refs(scene) if ref.is_key]
        self._stamps = [ref.stamp_ns for ref in self._keys]
        self._cache: dict[int, tuple[np.ndarray, list[str], list[str]]] = {}

    def at(self, ref: FrameRef) -> TrueBoxes:
        """The boxes in the ego frame of ``ref``; none before the first key frame and after the last."""
        if not self._stamps or not self._stamps[0] <= ref.stamp_ns <= self._stamps[-1]:
            return TrueBoxes(np.zeros((0, 9)), ())
        earlier = bisect_right(self._stamps, ref.stamp_ns) - 1
        boxes, names, instances = self._moved(earlier, ref)
        if self._stamps[earlier] == ref.stamp_ns:
            return TrueBoxes(boxes, tuple(names))
        later_boxes, later_names, later_instances = self._moved(earlier + 1, ref)
        share = (ref.stamp_ns - self._stamps[earlier]) / (self._stamps[earlier + 1] - self._stamps[earlier])
        partner = {instance: index for index, instance in enumerate(later_instances)}
        found: list[np.ndarray] = []
        classes: list[str] = []
        for box, name, instance in zip(boxes, names, instances):
            index = partner.pop(instance, None)
            if index is not None:
                found.append(_between(box, later_boxes[index], share))
            elif share < 0.5:
                found.append(_driven(box, (ref.stamp_ns - self._stamps[earlier]) * 1e-9))
            else:
                continue
            classes.append(name)
        for index in partner.values() if share >= 0.5 else ():
            found.append(_driven(later_boxes[index], (ref.stamp_ns - self._stamps[earlier + 1]) * 1e-9))
            classes.append(later_names[index])
        return TrueBoxes(np.array(found).reshape(-1, 9), tuple(classes))

    def _moved(self, key: int, ref: FrameRef) -> tuple[np.ndarray, list[str], list[str]]:
        """Boxes of a key frame in the ego frame of ``ref``, their classes and instances."""
        if key not in self._cache:
            truth = self._reader.ground_truth(self._keys[key])
            truth = truth.select(truth.num_points > 0)
            rows = [self._reader.tables.get("sample_annotation", token) for token in truth.annotation_tokens]
            self._cache[key] = (truth.boxes, truth.names, [row["instance_token"] for row in rows])
        boxes, names, instances = self._cache[key]
        pose = self._reader.global_from_ego(self._keys[key])
        return (
            transform_boxes(boxes, invert_rigid(self._reader.global_from_ego(ref)) @ pose),
            names,
            instances,
        )


def _between(first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
    """The box ``share`` of the way from ``first`` to ``second``, turning the shorter way."""
    box = first + share * (second - first)
    box[6] = first[6] + share * wrap_angle(second[6] - first[6])
    return box


def _driven(box: np.ndarray, seconds: float) -> np.ndarray:
    box = box.copy()
    box[:2] += np.nan_to_num(box[7:9]) * seconds
    return box
