# SPDX-License-Identifier: Apache-2.0
"""Writes tests/data/published_poses.npz: a clip's camera poses by the published formula, in float32.

    MKL_CBWR=COMPATIBLE .venv/bin/python -m tests.make_poses

With MKL's compatible code path the result is the reference's to the last bit; others round otherwise.
"""

from __future__ import annotations

import numpy as np
import torch

from tests import recipe
from tests.paths import BUNDLED

TAGS = ("A", "A2")


def clip_poses(tag: str, frames: int) -> np.ndarray:
    """Camera -> present ego ``[F, 6, 4, 4]`` float32 of a sample of RECIPE.md, present frame first."""
    infos = recipe.make_infos(tag, frames)

    def matrix(camera: dict, source: str) -> torch.Tensor:
        rotation, translation = camera[f"{source}_rotation"], camera[f"{source}_translation"]
        return torch.from_numpy(recipe.transform(rotation, translation).astype(np.float32))

    ego_from_global = matrix(infos[0]["cams"]["CAM_FRONT"], "ego2global").inverse()
    return np.array(
        [
            [
                (ego_from_global @ matrix(camera, "ego2global") @ matrix(camera, "sensor2ego")).numpy()
                for camera in info["cams"].values()
            ]
            for info in infos
        ]
    )


if __name__ == "__main__":
    np.savez(BUNDLED / "published_poses.npz", **{tag: clip_poses(tag, 9) for tag in TAGS})
