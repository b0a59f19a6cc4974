# SPDX-License-Identifier: Apache-2.0
"""Where a camera's images are: a folder of files, a video, or one file; each image with its stamp."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bevnext_core.errors import BevnextError, DatasetError, FrameError, one_line
from bevnext_core.images import read_image
from bevnext_core.strict import suggestion
from bevnext_tools.rig.stamps import rows, stamp_in_name, stamp_ns

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""What makes an image upright, by the orientation in its EXIF."""
VIDEOS = (".mp4", ".mkv", ".avi", ".mov", ".webm", ".m4v")


_NOTES = (".txt", ".yaml", ".yml", ".json", ".csv")
"""Ends of files that lie beside images."""


class NoImages(DatasetError):
    """A camera has no images at all."""


class Folder:
    """Image files of one camera, in the order of their stamps (``stamps_ns``)."""

    def __init__(self, camera: str, files: list[Path], stamps: list[int]) -> None:
        order = sorted(range(len(files)), key=lambda index: stamps[index])
        self.camera = camera
        self.files = [files[index] for index in order]
        self.stamps_ns = [stamps[index] for index in order]

    def read(self, index: int) -> np.ndarray:
        """``[H, W, 3]`` uint8 RGB, upright. Raises FrameError."""
        path = self.files[index]
        image, turn = read_image(path, self.camera), _turn_of(path)
        return image if turn is None else np.array(Image.fromarray(image).transpose(turn))

    def where(self, index: int) -> str:
        """What an image is called."""
        return str(self.files[index])


def _turn_of(path: Path) -> Image.Transpose | None:
    """How a JPEG is to be turned, as viewers and OpenCV do by its EXIF; one that cannot be read says nothing."""
    if path.suffix.lower() not in (".jpg", ".jpeg"):
        return None  # TIFFs are turned where they are decoded
    try:
        with Image.open(path) as file:
            return _TURNS.get(file.getexif().get(0x0112, 1))
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError):
        return None


class Video:
    """The frames of a video of one camera. They are decoded one after another: going back begins anew."""

    def __init__(self, camera: str, path: Path, stamps: list[int]) -> None:
        self.camera, self.path, self.stamps_ns = camera, path, stamps
        self._frames = _decoded(path)
        self._next = 0
        self._last: tuple[int, np.ndarray] | None = None
        self._end = len(stamps), ""  # the first frame that cannot be had, and why

    def read(self, index: int) -> np.ndarray:
        """``[H, W, 3]`` uint8 RGB. Raises FrameError."""
        if self._last is not None and self._last[0] == index:
            return self._last[1]
        if index < self._next:
            self._frames, self._next = _decoded(self.path), 0
        while self._next <= index < self._end[0]:
            try:
                image = next(self._frames)
            except (StopIteration, _av().FFmpegError, OSError, ValueError) as error:
                why = one_line(error) if str(error) else "the video ends before"
                self._end = self._next, why
                break
            self._last, self._next = (self._next, image), self._next + 1
        if index >= self._end[0]:
            raise FrameError(f"{self.camera}: {self.where(index)} cannot be decoded: {self._end[1]}")
        assert self._last is not None
        return self._last[1]

    def where(self, index: int) -> str:
        """What an image is called."""
        return f"{self.path}, frame {index}"


Source = Folder | Video


def open_source(folder: Path, camera: str, rate: float | None) -> Source:
    """The images of ``camera`` below ``folder``.

    One image alone may stand in the place of the folder: ``CAMERA.jpg``, its stamp is zero. Otherwise stamps are, the
    first that there is: number / ``rate``; ``CAMERA.txt`` with a line ``stamp`` per image, in order, or
    ``stamp file``; those in the files' names, or of the video.

    Raises:
        NoImages: there are none. DatasetError: there are no stamps, or two have the same.
    """
    directory = folder / camera
    listed = folder / f"{camera}.txt"
    if directory.is_dir():
        files = [path for path in directory.iterdir() if path.suffix.lower() in IMAGES and path.name[0] != "."]
        files.sort(key=lambda path: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", path.name)])
        if not files:
            raise NoImages(f"{directory}: no images of camera '{camera}' (files {', '.join(IMAGES)})")
        if rate is None and listed.is_file():
            files, stamps = _listed(listed, files)
        else:
            stamps = _by_rate(len(files), rate) if rate else [_named(path, listed) for path in files]
        return _ascending(Folder(camera, files, stamps))
    there = [path for path in sorted(folder.iterdir()) if path.name[0] != "."]
    own = {path.suffix.lower(): path for path in there if path.stem == camera and path.is_file()}
    videos, single = ([own[end] for end in ends if end in own] for ends in (VIDEOS, IMAGES))
    if single and not videos:
        return Folder(camera, single[:1], [0])
    if not videos:
        holds = ", ".join(path.name for path in there) or "nothing"
        hint = suggestion([camera], [path.name if path.is_dir() else path.stem for path in there])
        if other := next((path.name for end, path in own.items() if end not in _NOTES), ""):
            hint += f"; {other} is of no format that is read ({', '.join(IMAGES)})"
        raise NoImages(
            f"no images of camera '{camera}': no folder {directory}, video {directory}.mp4 or image {directory}.jpg; "
            f"{folder} holds {holds[:300]}{hint}"
        )
    stamps = _video_stamps(videos[0])
    if rate:
        stamps = _by_rate(len(stamps), rate)
    elif listed.is_file():
        stamps = _counted(listed, len(stamps), f"{videos[0]} has {len(stamps)} frames")
    return _ascending(Video(camera, videos[0], stamps))


def _ascending(source: Source) -> Source:
    for index, (before, after) in enumerate(zip(source.stamps_ns, source.stamps_ns[1:])):
        if after <= before:
            pair = f"{source.where(index)} and {source.where(index + 1)}"
            raise DatasetError(f"camera '{source.camera}': the stamps of {pair} do not grow ({before}, {after} ns)")
    return source


def _by_rate(count: int, rate: float) -> list[int]:
    return [round(index * 1e9 / rate) for index in range(count)]


def _named(path: Path, listed: Path) -> int:
    stamp = stamp_in_name(path.stem)
    if stamp is None:
        raise DatasetError(
            f"{path}: its name holds no stamp (a time since 1970 in s, ms, us or ns): write {listed} with a line "
            "'stamp file' per image, or give --rate for images that were all taken in step"
        )
    return stamp


def _counted(listed: Path, count: int, there: str) -> list[int]:
    """The stamps of a file of one stamp a line."""
    stamps = []
    for number, parts in rows(listed, "file of stamps"):
        stamp = stamp_ns(parts[0]) if len(parts) == 1 else None
        if stamp is None:
            raise DatasetError(f"{listed}, line {number}: expected a stamp, got '{' '.join(parts)[:80]}'")
        stamps.append(stamp)
    if len(stamps) != count:
        raise DatasetError(f"{listed} has {len(stamps)} stamps, but {there}")
    return stamps


def _listed(listed: Path, files: list[Path]) -> tuple[list[Path], list[int]]:
    """The files that a file of stamps names, and their stamps; all files in order where it names none."""
    lines = rows(listed, "file of stamps")
    if all(len(parts) == 1 for _, parts in lines):
        return files, _counted(listed, len(files), f"{files[0].parent} has {len(files)} images")
    known = {path.name: path for path in files}
    chosen, stamps = [], []
    for number, parts in lines:
        stamp, name = stamp_ns(parts[0]), Path(parts[-1]).name
        if stamp is None or len(parts) != 2:
            raise DatasetError(f"{listed}, line {number}: expected 'stamp file', got '{' '.join(parts)[:80]}'")
        if name not in known:
            raise DatasetError(f"{listed}, line {number}: there is no image {files[0].parent / name}")
        chosen.append(known[name])
        stamps.append(stamp)
    return chosen, stamps


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise BevnextError(f"reading videos needs the package av: pip install av ({one_line(error)})") from None
    return av


def _video_stamps(path: Path) -> list[int]:
    """When the frames of a video are shown, nanoseconds from its beginning, by the container: nothing is decoded."""
    try:
        with _av().open(str(path)) as container:
            stream = container.streams.video[0]
            shown = sorted(p.pts for p in container.demux(stream) if p.pts is not None)
            unit = stream.time_base
    except (_av().FFmpegError, OSError, ValueError, IndexError) as error:
        raise DatasetError(f"{path}: cannot be read as a video: {one_line(error)}") from None
    if not shown:
        raise DatasetError(f"{path}: the video has no frames")
    return [round((pts - shown[0]) * unit * 10**9) for pts in shown]


def _decoded(path: Path) -> Iterator[np.ndarray]:
    with _av().open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")
