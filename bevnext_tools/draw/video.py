# SPDX-License-Identifier: Apache-2.0
"""Videos of pictures: MP4 with H.264, which browsers play."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from bevnext_core.errors import BevnextError
from bevnext_core.files import atomic_path
from bevnext_core.images import read_image

QUALITY = 24
"""Constant rate factor of H.264: lower is better and larger; 18 can hardly be told from the original."""


def h264_encoder() -> Any:
    """The module ``av`` (FFmpeg's libraries) if it is installed and can encode H.264, else ``None``."""
    try:
        import av
    except ImportError:
        return None
    return av if "libx264" in av.codecs_available else None


def frame_rate(stamps_ns: Sequence[int]) -> float:
    """Frames per second of a recording, by the median of its steps; 2 where there is none."""
    steps = np.diff(stamps_ns)
    steps = steps[steps > 0]
    return round(1e9 / float(np.median(steps)), 2) if len(steps) else 2.0


class Video:
    """Takes pictures one by one; made by :func:`open_video`.

    Attributes:
        path: the file that will be there at the end, or ``None``. size: (width, height) of the first picture.
    """

    def __init__(self, path: Path | None, add: Any = None) -> None:
        self.path, self.size, self._add = path, (0, 0), add

    def write(self, picture: np.ndarray) -> None:
        """Add a picture: ``[H, W, 3]`` uint8 RGB. Raises BevnextError when its size is not that of the first."""
        size = (picture.shape[1], picture.shape[0])
        self.size = self.size if any(self.size) else size
        if size != self.size:
            raise BevnextError(
                f"{self.path or 'video'}: the pictures of a video must have one size, "
                f"got {size[0]}x{size[1]} after {self.size[0]}x{self.size[1]}"
            )
        if self._add:
            # Players want half the resolution in colour, hence even sizes: an odd last row or column is left out.
            self._add(np.ascontiguousarray(picture[: size[1] // 2 * 2, : size[0] // 2 * 2]))


@contextmanager
def open_video(path: str | Path, fps: float) -> Iterator[Video]:
    """A writer of an MP4 file, which appears when the block ends without error.

    Where no H.264 encoder is installed the writer takes the pictures all the same, its ``path`` is ``None``, and a line
    on stderr says so.

    Args:
        fps: pictures per second.

    Raises:
        BevnextError: the pictures have different sizes, or there are none.
    """
    av, path = h264_encoder(), Path(path)
    if av is None:
        print(f"bevnext: warning: no video {path}: there is no H.264 encoder here, only pictures", file=sys.stderr)
        yield Video(None)
        return
    # faststart: a browser can begin before it has the whole file
    with atomic_path(path) as temporary, av.open(str(temporary), "w", options={"movflags": "faststart"}) as container:
        # the colours are converted by the older of the two standards: players have to be told
        options = {"preset": "veryfast", "crf": str(QUALITY), "x264-params": "colormatrix=smpte170m"}
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000), options=options)
        stream.pix_fmt = "yuv420p"

        def add(picture: np.ndarray) -> None:
            if not stream.codec_context.is_open:
                stream.height, stream.width = picture.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))

        video = Video(path, add)
        yield video
        if not any(video.size):
            raise BevnextError(f"{path}: a video needs at least one picture")
        container.mux(stream.encode())


def write_video(path: str | Path, pictures: Sequence[Path], stamps_ns: Sequence[int]) -> Path | None:
    """Make a video of picture files, as fast as it was recorded -> the file; see :func:`open_video`. Of one: none."""
    if len(pictures) == 1:
        return None
    with open_video(path, frame_rate(stamps_ns)) as video:
        for picture in pictures:
            video.write(read_image(picture, "picture"))
    return video.path
