"""Videos of pictures: MP4 with H.264, which browsers play, or an animated GIF where there is no such encoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bevnext_core.errors import BevnextError
from bevnext_core.files import atomic_path

GIF_WIDTH = 1280
"""Pixels; GIF files of full-size pictures are too large to look at."""
QUALITY = 24
"""Constant rate factor of H.264: lower is better and larger; 18 can hardly be told from the original."""


def h264_encoder() -> Any:
    """The module ``av`` (FFmpeg's libraries) if it is installed and can encode H.264, else ``None``."""
    try:
        import av
    except ImportError:
        return None
    return av if "libx264" in av.codecs_available else None


@contextmanager
def open_video(stem: str | Path, fps: float) -> Iterator[VideoWriter]:
    """A writer of ``stem.mp4``, or of ``stem.gif`` where no H.264 encoder is installed.

    The file (``writer.path``) appears when the block ends without error.

    Args:
        stem: path without suffix. fps: pictures per second.

    Raises:
        BevnextError: the pictures have different sizes, or there are none.
    """
    stem = Path(stem)
    encoder = h264_encoder()
    path = stem.with_name(stem.name + (".mp4" if encoder else ".gif"))
    with atomic_path(path) as temporary:
        writer = _Mp4Writer(path, temporary, fps, encoder) if encoder else _GifWriter(path, temporary, fps)
        with closing(writer):
            yield writer
            if writer.size is None:
                raise BevnextError(f"{stem}: a video needs at least one picture")
            writer.finish()


def write_video(stem: str | Path, pictures: Callable[[], Iterator[np.ndarray]], fps: float) -> Path:
    """Write all pictures as a video -> its file; see :func:`open_video`.

    Args:
        pictures: gives an iterator over ``[H, W, 3]`` uint8 RGB pictures of one size.
    """
    with open_video(stem, fps) as video:
        for picture in pictures():
            video.write(picture)
    return video.path


class VideoWriter(ABC):
    """Takes pictures one by one; made by :func:`open_video`.

    Attributes:
        path: the file that will be there at the end. size: (width, height), known after the first picture.
    """

    def __init__(self, path: Path, temporary: Path, fps: float) -> None:
        self.path = path
        self.size: tuple[int, int] | None = None
        self._temporary = temporary
        self._fps = fps

    def write(self, picture: np.ndarray) -> None:
        """Add a picture: ``[H, W, 3]`` uint8 RGB. Raises BevnextError when its size is not that of the first."""
        size = (picture.shape[1], picture.shape[0])
        if self.size is None:
            self.size = size
        elif size != self.size:
            raise BevnextError(
                f"{self.path.with_suffix('')}: the pictures of a video must have one size, "
                f"got {size[0]}x{size[1]} after {self.size[0]}x{self.size[1]}"
            )
        self._add(picture)

    @abstractmethod
    def _add(self, picture: np.ndarray) -> None: ...

    @abstractmethod
    def finish(self) -> None:
        """Write what is not in the file yet."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the file, finished or not."""


class _Mp4Writer(VideoWriter):
    def __init__(self, path: Path, temporary: Path, fps: float, encoder: Any) -> None:
        super().__init__(path, temporary, fps)
        self._av = encoder
        # faststart: a browser can begin before it has the whole file
        self._container = encoder.open(str(temporary), "w", options={"movflags": "faststart"})
        self._stream: Any = None

    def _add(self, picture: np.ndarray) -> None:
        # Players want half the resolution in colour, hence even sizes: an odd last row or column is left out.
        picture = np.ascontiguousarray(picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2])
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
        self._container.mux(self._stream.encode())

    def close(self) -> None:
        self._container.close()


class _GifWriter(VideoWriter):
    def __init__(self, path: Path, temporary: Path, fps: float) -> None:
        super().__init__(path, temporary, fps)
        self._images: list[Image.Image] = []

    def _add(self, picture: np.ndarray) -> None:
        image = Image.fromarray(picture)
        if image.width > GIF_WIDTH:
            image = image.resize((GIF_WIDTH, round(image.height * GIF_WIDTH / image.width)))
        self._images.append(image.quantize(128))

    def finish(self) -> None:
        first, *rest = self._images
        duration = round(1000 / self._fps)
        first.save(self._temporary, "GIF", save_all=True, append_images=rest, duration=duration, loop=0)

    def close(self) -> None:
        self._images.clear()
