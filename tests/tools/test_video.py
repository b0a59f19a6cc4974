# SPDX-License-Identifier: Apache-2.0
"""Videos of pictures: they play in browsers, hold every picture, and say so where they cannot be made."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from bevnext_core.errors import BevnextError
from bevnext_tools.draw.cameras import write_picture
from bevnext_tools.draw.video import open_video, write_video

REDS = (40, 120, 200)


def pictures(folder: Path) -> list[Path]:
    paths = []
    for value in REDS:
        picture = np.zeros((64, 96, 3), np.uint8)
        picture[..., 0] = value
        paths.append(folder / "frames" / f"{value}.png")
        write_picture(picture, paths[-1])
    return paths


def test_mp4_plays_in_browsers_and_holds_every_picture_in_its_colours(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "scene-0103.mp4"
    # the first two frames have one stamp
    assert write_video(path, pictures(tmp_path), [5, 5, 500_000_005, 1_000_000_005]) == path
    with av.open(str(path)) as container:
        (stream,) = container.streams
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 2
        read = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(read) == 3
    for image, red in zip(read, REDS):
        np.testing.assert_allclose(image.mean((0, 1)), (red, 0, 0), atol=8)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat"), "a browser wants the index first"


def test_without_an_encoder_there_is_one_line_and_no_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    assert write_video(tmp_path / "scene.mp4", pictures(tmp_path), [0, 1, 2]) is None
    assert [path.name for path in tmp_path.iterdir()] == ["frames"]
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line
        == f"bevnext: warning: no video {tmp_path / 'scene.mp4'}: there is no H.264 encoder here, only pictures"
    )


def test_one_picture_is_no_video(tmp_path: Path) -> None:
    assert write_video(tmp_path / "v.mp4", pictures(tmp_path)[:1], [0]) is None and not (tmp_path / "v.mp4").exists()


def test_video_of_nothing_or_of_mixed_sizes_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("av")
    with pytest.raises(BevnextError, match="needs at least one picture"):
        write_video(tmp_path / "v.mp4", [], [])
    with pytest.raises(BevnextError, match="one size, got 98x64 after 96x64"):
        with open_video(tmp_path / "v.mp4", 2.0) as video:
            for width in (96, 98):
                video.write(np.zeros((64, width, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []
