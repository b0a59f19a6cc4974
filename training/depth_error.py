#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How well a network's image branch knows the depth: by range, against the lidar of a split's key frames.

    python training/depth_error.py --checkpoint C --dataroot D --version v1.0-mini --split mini_val

The depth of a patch is the mean of its distribution. As published a bin stands for depths from its value upwards and is
lifted to its value, so on average half a step is missing: "as lifted" counts that, "corrected" adds it. A network with
`depth.lift_to: middle` has nothing to correct.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run from a source tree, without installing
    sys.path.insert(0, str(ROOT))

from bevnext_tools.threads import prepare_threads  # noqa: E402

if __name__ == "__main__":  # before PyTorch is imported
    prepare_threads()

import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

from bevnext_core.checkpoint import load_checkpoint  # noqa: E402
from bevnext_core.errors import BevnextError, DatasetError, one_line  # noqa: E402
from bevnext_core.files import Parser  # noqa: E402
from bevnext_core.network.bevnext import BEVNeXt  # noqa: E402
from bevnext_core.streaming.preprocess import canvas_colors, normalize  # noqa: E402
from training.data.dataset import TrainingDataset  # noqa: E402
from training.data.index import open_index  # noqa: E402

RANGES = (1.0, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0)
"""Metres."""


@torch.no_grad()
def depth_errors(network: BEVNeXt, data: TrainingDataset, frames: Sequence[int]) -> list[tuple[float, ...]]:
    """For each of :data:`RANGES`: patches with lidar, mean relative error as lifted and corrected, mean bias in metres
    (corrected); NaN where there is no patch."""
    config, device = network.config.depth, next(network.parameters()).device
    bins = torch.tensor(config.values, device=device).view(1, -1, 1, 1)
    true, found = [], []
    for frame in tqdm(frames, unit="frame", disable=None):
        canvas, geometry = data.alone(frame)
        canvas, parameters = canvas.to(device), geometry.to(device).camera_parameters().flatten(0, 2)
        encoded = network.encode(normalize(canvas).flatten(0, 1), canvas_colors(canvas).flatten(0, 1), parameters)
        lidar = data.lidar_depth(frame).to(device)
        known = (lidar >= config.min) & (lidar < config.max)
        true.append(lidar[known].cpu())
        found.append((encoded.depth * bins).sum(1)[known].cpu())
    lidar, depth = torch.cat(true), torch.cat(found)
    rows: list[tuple[float, ...]] = []
    for low, high in pairwise(RANGES):
        inside = (lidar >= low) & (lidar < high)
        difference, expected = (depth - lidar)[inside], lidar[inside]
        corrected = difference + config.step / 2 * (config.lift_to == "edge")
        errors = difference.abs() / expected, corrected.abs() / expected, corrected
        rows.append((int(inside.sum()), *(values.mean().item() for values in errors)))
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--dataroot", required=True)
    parser.add_argument("--version", default="v1.0-trainval")
    parser.add_argument("--split", default="val")
    parser.add_argument("--index-dir", help="where the index file of the data set is kept")
    options = parser.parse_args(arguments)
    try:
        network = load_checkpoint(options.checkpoint)
        index = open_index(options.dataroot, options.version, options.index_dir, sys.stderr.isatty(), network.config)
        data = TrainingDataset(index, network.config, options.split)
        frames = [frame for frame in data.frames.tolist() if index.lidar_files[frame]]
        if not frames:
            raise DatasetError(f"the frames of {options.split} have no lidar to compare with")
        rows = depth_errors(network, data, frames)
    except (BevnextError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    print(f"{network.config.name}, {options.split}: {len(frames)} frames\n"
          f"{'metres':>9}{'patches':>10}{'as lifted':>11}{'corrected':>11}{'bias, m':>9}")
    for (low, high), (count, lifted, corrected, bias) in zip(pairwise(RANGES), rows, strict=True):
        print(f"{low:4.0f} -{high:3.0f}{count:10d}{lifted:11.1%}{corrected:11.1%}{bias:9.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
