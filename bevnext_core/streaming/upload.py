"""From the host to the device: on a GPU through pinned memory and on a stream of its own, so that nothing waits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bevnext_core.network.camera_geometry import CameraGeometry

_MATRICES = {"rotation": 9, "translation": 3, "intrinsics": 9, "image_rotation": 9, "image_translation": 3}
"""Parts of a geometry by camera, and their numbers of values."""


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

    def images(
        self, images: Sequence[np.ndarray], map_images: Callable[..., Iterable[Any]] = map
    ) -> Tensor:
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
        return unpacked(self(packed(geometry)), tuple(geometry.rotation.shape[:3]))

    def _handed_over(self, moved: Tensor) -> Tensor:
        """The current stream waits for the copy, and the memory is its until it is done with it."""
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self._stream)
        moved.record_stream(current)
        return moved


def packed(geometry: CameraGeometry) -> Tensor:
    """All of a geometry in one float32 vector."""
    matrices = [getattr(geometry, name).flatten(3).float() for name in _MATRICES]
    cameras = torch.cat([*matrices, geometry.valid.unsqueeze(3).float()], 3)
    return torch.cat([cameras.flatten(), geometry.bda.flatten().float()])


def unpacked(values: Tensor, shape: tuple[int, ...]) -> CameraGeometry:
    """The geometry of :func:`packed`; ``shape`` is (B, F, N)."""
    cameras, bda = values[: -9 * shape[0]], values[-9 * shape[0] :]
    parts = cameras.view(*shape, -1).split([*_MATRICES.values(), 1], 3)
    matrices = {
        name: part.unflatten(3, (3, 3)) if _MATRICES[name] == 9 else part
        for name, part in zip(_MATRICES, parts)
    }
    return CameraGeometry(**matrices, bda=bda.view(-1, 3, 3), valid=parts[-1].squeeze(3) > 0)
