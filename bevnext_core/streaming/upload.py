# SPDX-License-Identifier: Apache-2.0
"""From the host to the device: on a GPU through pinned memory and on a stream of its own, so that nothing waits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bevnext_core.network.camera_geometry import CameraGeometry


class Uploader:
    """Copies to ``device``. What it returns may be used on the current stream at once, and keeps no host memory busy.

    The pinned memory comes from PyTorch's cache, which does not give it away again before the copy is done.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, host: Tensor) -> Tensor:
        """``host`` on the device."""
        if self._stream is None:
            return host.to(self.device)
        pinned = host.pin_memory()
        with torch.cuda.stream(self._stream):
            moved = pinned.to(self.device, non_blocking=True)
        return self._handed_over(moved)

    def images(self, images: Sequence[np.ndarray], map_images: Callable[..., Iterable[Any]] = map) -> Tensor:
        """``[N, H, W, C]`` on the device of N images ``[H, W, C]`` uint8.

        On a GPU each image is on its way while the next ones are copied into pinned memory, by ``map_images``: ``map``
        or that of a thread pool.
        """
        if self._stream is None:
            return torch.from_numpy(np.stack(images)).to(self.device)
        pinned = torch.empty((len(images), *images[0].shape), dtype=torch.uint8, pin_memory=True)
        with torch.cuda.stream(self._stream):
            moved = torch.empty(pinned.shape, dtype=torch.uint8, device=self.device)
            for index, _ in enumerate(map_images(np.copyto, pinned.numpy(), images)):
                moved[index].copy_(pinned[index], non_blocking=True)
        return self._handed_over(moved)

    def geometry(self, geometry: CameraGeometry) -> CameraGeometry:
        """``geometry`` on the device, in one copy."""
        if self._stream is None:
            return geometry.to(self.device)
        return unpacked(self(packed(geometry)), geometry)

    def _handed_over(self, moved: Tensor) -> Tensor:
        """The current stream waits for the copy, and the memory is its until it is done with it."""
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self._stream)
        moved.record_stream(current)
        return moved


def packed(geometry: CameraGeometry) -> Tensor:
    """All of a geometry in one float32 vector."""
    return torch.cat([value.flatten().float() for value in vars(geometry).values()])


def unpacked(values: Tensor, like: CameraGeometry) -> CameraGeometry:
    """The geometry of :func:`packed`, with the shapes and types of ``like``."""
    parts = zip(vars(like).items(), values.split([value.numel() for value in vars(like).values()]), strict=True)
    return CameraGeometry(**{name: part.view(value.shape).to(value.dtype) for (name, value), part in parts})
