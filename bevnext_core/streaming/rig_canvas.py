# SPDX-License-Identifier: Apache-2.0
"""A rig's images as canvases on the device: resized and cropped by PIL on the host, or by the device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from bevnext_core.config import ImageConfig
from bevnext_core.streaming.device_resize import resize_and_crop_on_device
from bevnext_core.streaming.preprocess import ImageTransform, resize_and_crop
from bevnext_core.streaming.upload import Uploader


class RigCanvas:
    """
    Args:
        cameras: how many the rig has; as many threads work on the host.
        on_device: where images are resized; both give the same canvases.
    """

    def __init__(self, upload: Uploader, target: ImageConfig, cameras: int, on_device: bool) -> None:
        self._upload, self._on_device = upload, on_device
        self._shape = (target.height, target.width, 3)
        self._threads = ThreadPoolExecutor(max_workers=cameras, thread_name_prefix="images")

    def __call__(self, images: Sequence[np.ndarray | None], transforms: Sequence[ImageTransform]) -> Tensor:
        """``[N, H, W, 3]`` uint8 on the device; a camera without an image is black.

        Args:
            images: N, ``[H, W, 3]`` uint8 RGB.
        """
        if not self._on_device:
            canvas = self._threads.map(self._resized, images, transforms)
            return self._upload(torch.from_numpy(np.stack(list(canvas))))
        alike: dict[tuple[tuple[int, ...], ImageTransform], list[int]] = defaultdict(list)
        for index, (image, transform) in enumerate(zip(images, transforms, strict=True)):
            if image is not None:
                alike[image.shape, transform].append(index)
        rows: dict[int, Tensor] = {}
        for (_, transform), indices in alike.items():
            sources = self._upload.images([images[i] for i in indices], self._threads.map)  # type: ignore[misc]
            rows |= zip(indices, resize_and_crop_on_device(sources, transform), strict=True)
        black = torch.zeros(*self._shape, dtype=torch.uint8, device=self._upload.device)
        return torch.stack([rows.get(index, black) for index in range(len(images))])

    def _resized(self, image: np.ndarray | None, transform: ImageTransform) -> np.ndarray:
        if image is None:
            return np.zeros(self._shape, np.uint8)
        return resize_and_crop(image, transform)
