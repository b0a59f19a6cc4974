"""Videos of pictures: MP4 with H.264, which browsers play, and short animations, which pages show as pictures."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

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
    encoder, path = h264_encoder(), Path(path)
    if encoder is None:
        print(
            f"bevnext: warning: no video {path}: there is no H.264 encoder here, only pictures",
            file=sys.stderr,
        )
        yield Video(None, fps)
        return
    # faststart: a browser can begin before it has the whole file
    options = {"movflags": "faststart"}
    with atomic_path(path) as temporary:
        with closing(encoder.open(str(temporary), "w", options=options)) as container:
            video = Video(path, fps, encoder, container)
            yield video
            video.finish()


def write_video(path: str | Path, pictures: Sequence[Path], stamps_ns: Sequence[int]) -> Path | None:
    """Make a video of picture files, as fast as it was recorded -> the file; see :func:`open_video`."""
    with open_video(path, frame_rate(stamps_ns)) as video:
        for picture in pictures:
            video.write(read_image(picture, "picture"))
    return video.path


def write_animation(path: str | Path, pictures: Sequence[np.ndarray], fps: float, quality: int = 60) -> None:
    """Write pictures ``[H, W, 3]`` uint8 RGB of one size as an animated WebP file, which plays again and again."""
    first, *others = (Image.fromarray(picture) for picture in pictures)
    with atomic_path(path) as temporary:
        options = {"duration": round(1000 / fps), "loop": 0, "quality": quality, "method": 2}
        first.save(temporary, "WEBP", save_all=True, append_images=others, **options)


class Video:
    """Takes pictures one by one; made by :func:`open_video`.

    Attributes:
        path: the file that will be there at the end, or ``None``. size: (width, height) of the first picture.
    """

    def __init__(self, path: Path | None, fps: float, encoder: Any = None, container: Any = None) -> None:
        self.path, self.size = path, (0, 0)
        self._fps, self._av, self._container = fps, encoder, container
        self._stream: Any = None

    def write(self, picture: np.ndarray) -> None:
        """Add a picture: ``[H, W, 3]`` uint8 RGB. Raises BevnextError when its size is not that of the first."""
        size = (picture.shape[1], picture.shape[0])
        self.size = self.size if any(self.size) else size
        if size != self.size:
            raise BevnextError(
                f"{self.path or 'video'}: the pictures of a video must have one size, "
                f"got {size[0]}x{size[1]} after {self.size[0]}x{self.size[1]}"
            )
        if self._container is None:
            return
        # Players want half the resolution in colour, hence even sizes: an odd last row or column is left out.
        picture = np.ascontiguousarray(picture[: size[1] // 2 * 2, : size[0] // 2 * 2])
        if self._stream is None:
            rate = Fraction(self._fps).limit_denominator(1000)
            # the colours are converted by the older of the two standards: players have to be told
            options = {"preset": "veryfast", "crf": str(QUALITY), "x264-params": "colormatrix=smpte170m"}
            self._stream = self._container.add_stream("libx264", rate=rate, options=options)
            self._stream.height, self._stream.width = picture.shape[:2]
            self._stream.pix_fmt = "yuv420p"
        frame = self._av.VideoFrame.from_ndarray(picture, format="rgb24")
        self._container.mux(self._stream.encode(frame))

    def finish(self) -> None:
        """Write what is not in the file yet. Raises BevnextError when no picture was given."""
        if self._stream is None:
            raise BevnextError(f"{self.path}: a video needs at least one picture")
        self._container.mux(self._stream.encode())
