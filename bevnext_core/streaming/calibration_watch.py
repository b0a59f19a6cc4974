# SPDX-License-Identifier: Apache-2.0
"""Notices that the rig was calibrated anew: what was encoded before does not fit then."""

from __future__ import annotations

import numpy as np

from bevnext_core.frame import CameraFrame

_LIMITS = {"image_sizes": 0.0, "intrinsics": 1e-3, "ego_from_camera": 1e-4}
_TITLES = {"image_sizes": "image size", "intrinsics": "intrinsics", "ego_from_camera": "extrinsics"}


class CalibrationWatch:
    """Knows the latest calibration of each camera."""

    def __init__(self) -> None:
        self._known: dict[str, np.ndarray] = {}

    def clear(self) -> None:
        self._known = {}

    def change(self, frame: CameraFrame) -> str:
        """What is another than before in the first camera that has changed; empty when nothing is."""
        for index in np.flatnonzero(frame.valid) if self._known else ():
            for name, limit in _LIMITS.items():
                if np.abs(self._known[name][index] - getattr(frame, name)[index]).max() > limit:
                    return f"{_TITLES[name]} of {frame.cameras[index]} changed"
        return ""

    def note(self, frame: CameraFrame) -> None:
        """Remember the calibration; a masked camera keeps what was known of it, which may be nothing (NaN)."""
        for name in _LIMITS:
            new = getattr(frame, name)
            seen = frame.valid.reshape(-1, *[1] * (new.ndim - 1))
            self._known[name] = np.where(seen, new, self._known.get(name, np.full(new.shape, np.nan)))
