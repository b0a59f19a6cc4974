# SPDX-License-Identifier: Apache-2.0
"""Where a rig's images and their stamps come from: folders, videos, single files; what is missing or turned."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from bevnext_core.errors import DatasetError
from bevnext_tools.cli.main import main
from tests.own_rig import (
    HEIGHT,
    SLOT,
    SLOTS,
    START,
    STEP,
    WIDTH,
    color_of,
    frames_of,
    reader_of,
    stamp_of,
    write_recording,
)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    return write_recording(tmp_path / "rec")


def test_stamps_from_a_file_of_names_choose_and_order_the_images(recording: Path) -> None:
    folder = recording / "images" / "left"
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(folder / f"image{number}.png")
    with pytest.raises(DatasetError, match=r"image0.png: its name holds no stamp .* write .*left.txt"):
        reader_of(recording)
    listed = [f"{stamp_of('left', n) / 1e9:.9f},image{n}.png" for n in (2, 0, 1)]
    (recording / "images" / "left.txt").write_text("#timestamp,file\n" + "\n".join(listed))
    for number, frame in enumerate(frames_of(reader_of(recording))):
        assert tuple(frame.images[SLOTS[1]][0, 0]) == color_of("left", number)  # type: ignore[index]
    (recording / "images" / "left.txt").write_text("1700000000.0 gone.png")
    with pytest.raises(DatasetError, match=r"left.txt, line 1: there is no image .*gone.png"):
        reader_of(recording)
    (recording / "images" / "left.txt").write_text("1700000000.0\n1700000001.0\n")
    with pytest.raises(DatasetError, match=r"left.txt has 2 stamps, but .* has 3 images"):
        reader_of(recording)


def test_a_rate_takes_the_place_of_stamps(recording: Path) -> None:
    for name in SLOT:
        folder = recording / "images" / name
        for number, path in enumerate(sorted(folder.iterdir())):
            path.rename(folder / f"{9 + number}.png")  # 9, 10, 11: numbers, not letters, are in order
    frames = frames_of(reader_of(recording, poses=False, rate=4.0))
    assert [frame.stamp_ns for frame in frames] == [0, 250_000_000, 500_000_000]
    for number, frame in enumerate(frames):
        assert tuple(frame.images[SLOTS[0]][0, 0]) == color_of("front", number)  # type: ignore[index]


def test_one_image_per_camera(recording: Path) -> None:
    images = recording / "images"
    for name in SLOT:
        (images / name / f"{stamp_of(name, 1)}.png").rename(images / f"{name}.png")
        for path in (images / name).iterdir():
            path.unlink()
        (images / name).rmdir()
    (frame,) = frames_of(reader_of(recording, poses=False))
    assert [tuple(frame.images[slot][0, 0]) for slot in SLOTS] == [color_of(name, 1) for name in SLOT]  # type: ignore[index]
    assert frame.stamp_ns == 0 and (frame.camera_stamps_ns == 0).all()


def test_a_video_per_camera(recording: Path) -> None:
    av = pytest.importorskip("av")
    images = recording / "images"
    for name in SLOT:
        for path in (images / name).iterdir():
            path.unlink()
        (images / name).rmdir()
        with av.open(str(images / f"{name}.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=2)
            stream.width, stream.height, stream.pix_fmt, stream.bit_rate = WIDTH, HEIGHT, "yuv420p", 4_000_000
            for number in range(3):
                plain = np.full((HEIGHT, WIDTH, 3), color_of(name, number), np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(plain, format="rgb24")))
            container.mux(stream.encode())
    frames = frames_of(reader_of(recording, poses=False))
    assert [frame.stamp_ns for frame in frames] == [0, STEP, 2 * STEP]
    for number, frame in enumerate(frames):
        for name, slot in zip(SLOT, SLOTS):
            assert np.abs(frame.images[slot][40, 80].astype(int) - color_of(name, number)).max() < 12  # type: ignore[index]
        (images / f"front.{number}").touch()  # is no image
    for name in SLOT:
        (images / f"{name}.txt").write_text("".join(f"{stamp_of(name, n)}\n" for n in range(3)))
    reader = reader_of(recording)
    refs = reader.refs("images")
    assert reader.load(refs[2]).stamp_ns == START + 2 * STEP
    assert np.abs(reader.load(refs[0]).images[SLOTS[0]][40, 80].astype(int) - color_of("front", 0)).max() < 12  # type: ignore[index]
    whole = (images / "left.mp4").read_bytes()
    (images / "left.mp4").write_bytes(whole[: len(whole) // 3])
    with pytest.raises(DatasetError, match=r"left.mp4: cannot be read as a video"):
        reader_of(recording)


def test_no_images_of_a_camera_is_one_line(recording: Path) -> None:
    (recording / "images" / "left").rename(recording / "images" / "lefd")
    with pytest.raises(DatasetError, match=r"of camera 'left': .*left.jpg; .* back, front, lefd, right; did you mean"):
        reader_of(recording)
    (recording / "images" / "lefd").rename(recording / "gone")
    (recording / "images" / "left.heic").write_bytes(b"heic")
    with pytest.raises(DatasetError, match=r"; left.heic is of no format that is read \(.jpg, .*, .webp\); a camera"):
        reader_of(recording)


def test_what_the_rig_does_not_name_is_told(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reader_of(recording).unnamed() == []
    (recording / "images" / "roof").mkdir()
    (recording / "images" / "rear.jpg").write_bytes(b"")
    (recording / "images" / "notes.txt").write_text("")
    (recording / "images" / "left.old").mkdir()
    assert reader_of(recording).unnamed() == ["left.old", "rear.jpg", "roof"]
    rig, images, out = (str(recording / name) for name in ("rig.yaml", "images", "look"))
    assert main(["rig", "check", "--rig", rig, "--images", images, "--out", out]) == 0
    assert f"bevnext: note: not in {rig}, left out: left.old, rear.jpg, roof\n" in capsys.readouterr().err


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("end", ["jpg", "tif"])
def test_an_image_is_turned_once_as_its_exif_says(end: str, orientation: int, recording: Path) -> None:
    """As OpenCV reads a JPEG, which calibrations are made with; TIFFs are turned by their decoder."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    pixels = np.stack([rows * 2, columns, (rows > columns) * 200], -1).astype(np.uint8)
    stored = pixels if orientation < 5 else np.ascontiguousarray(pixels.transpose(1, 0, 2))
    exif = Image.Exif()
    exif[0x0112] = orientation
    for path in (recording / "images" / "left").iterdir():
        path.unlink()
        path = path.with_suffix(f".{end}")
        Image.fromarray(stored).save(path, exif=exif, quality=95)
    image = frames_of(reader_of(recording))[0].images[SLOTS[1]]
    assert image is not None
    if end == "jpg":
        expected = cv2.imread(str(path))[..., ::-1]
        Image.fromarray(stored).save(path, quality=95)
    else:
        expected = {
            1: stored, 2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1], 5: stored.transpose(1, 0, 2),
            6: np.rot90(stored, -1), 7: stored[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(stored),
        }[orientation]  # fmt: skip
    assert np.abs(image.astype(int) - expected).mean() < 1
    if orientation > 1:
        others = (image[::-1], image[:, ::-1], image[::-1, ::-1])
        assert min(np.abs(other.astype(int) - expected).mean() for other in others) > 10


def test_exif_that_cannot_be_read_says_nothing(recording: Path) -> None:
    for path in (recording / "images" / "left").iterdir():
        path.unlink()
        Image.new("RGB", (WIDTH, HEIGHT), (1, 2, 250)).save(path.with_suffix(".jpg"), exif=b"Exif\0\0no tags at all")
    image = frames_of(reader_of(recording))[0].images[SLOTS[1]]
    assert image is not None and image.shape == (HEIGHT, WIDTH, 3) and image[..., 2].min() > 200


def test_photos_without_stamps_have_no_poses(recording: Path) -> None:
    for name in SLOT:
        folder = recording / "images" / name
        next(folder.iterdir()).rename(recording / "images" / f"{name}.png")
        folder.rename(recording / name)
    with pytest.raises(DatasetError, match=r"poses.tum goes from .*: photos without stamps have no poses"):
        reader_of(recording)
    poses = recording / "poses.tum"
    poses.write_text("stamp x y z qx qy qz qw\n" + poses.read_text())
    with pytest.raises(DatasetError, match=r"line 1: .*got 'stamp x y z qx qy qz qw': a header begins with #"):
        reader_of(recording)


def test_a_camera_without_images_is_masked_when_that_is_wanted(recording: Path) -> None:
    (recording / "images" / "left").rename(recording / "gone")
    remedy = "no images of camera 'left': .*; a camera without images is taken out of .*rig.yaml, or masked by"
    with pytest.raises(DatasetError, match=remedy):
        reader_of(recording)
    reader = reader_of(recording, missing="mask")
    assert [np.flatnonzero(frame.valid).tolist() for frame in frames_of(reader)] == [sorted(SLOTS[:1] + SLOTS[2:])] * 3
    assert reader.remarks().startswith("masked: left in 3 frames; the first: no images of camera 'left': no folder ")
    (recording / "images" / "front").rename(recording / "front")  # the anchor cannot be masked
    with pytest.raises(DatasetError, match=r"'front': .* name another camera in .*rig.yaml with 'anchor'"):
        reader_of(recording, missing="mask")


@pytest.mark.parametrize("end", [".JPG", ".Png"])
def test_ends_of_names_in_capitals(end: str, recording: Path) -> None:
    for name in SLOT:
        folder = recording / "images" / name
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        Image.new("RGB", (WIDTH, HEIGHT), (9, 9, 9)).save(recording / "images" / f"{name}{end}")
    assert len(frames_of(reader_of(recording, poses=False))) == 1
