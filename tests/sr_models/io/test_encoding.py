"""Files of every format keep pixels and what they say about themselves."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import ExifTags, Image

from sr_models.io.encoding import SUFFIXES, check_side, encode_image, read_text

ABOUT = {"seed": 3, "temperature": [0.9, 0.5], "text": 'a "quoted" line\nand an ünïcode one'}


def pixels(format: str, channels: int) -> np.ndarray:
    deep = format == "png16"
    return np.random.default_rng(0).integers(
        0, 2**16 if deep else 256, (6, 9, channels), np.uint16 if deep else np.uint8
    )


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("format", ["png", "png16", "webp"])
def test_pixels_are_kept(format: Any, channels: int) -> None:
    image = pixels(format, channels)
    content = encode_image(image, format, "key", ABOUT)
    decode = imagecodecs.webp_decode if format == "webp" else imagecodecs.png_decode
    assert np.array_equal(decode(content), image)
    # a second reader, which checks checksums
    Image.open(io.BytesIO(content)).verify()


@pytest.mark.parametrize("format", SUFFIXES)
def test_files_say_that_they_are_srgb(format: Any) -> None:
    image = Image.open(io.BytesIO(encode_image(pixels(format, 3), format, "key", ABOUT)))
    if image.format == "PNG":
        assert image.info["srgb"] == 0
    else:
        assert image.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ColorSpace] == 1


def test_jpeg_has_full_colours() -> None:
    rows, columns = np.mgrid[:32, :40]
    image = np.stack([8 * rows, 6 * columns, 255 - 4 * rows - 3 * columns], 2).astype(np.uint8)
    content = encode_image(image, "jpeg", "key", ABOUT)
    decoded = np.asarray(Image.open(io.BytesIO(content))).astype(int)
    assert np.abs(decoded - image).max() <= 4


@pytest.mark.parametrize("format", SUFFIXES)
def test_descriptions(tmp_path: Path, format: Any) -> None:
    file = tmp_path / f"a{SUFFIXES[format]}"
    file.write_bytes(encode_image(pixels(format, 3), format, "key", ABOUT))
    assert read_text(file, "key") == ABOUT
    assert read_text(file, "other") is None
    # whole in no reader's way
    file.write_bytes(file.read_bytes()[:40])
    assert read_text(file, "key") is None
    assert read_text(tmp_path / "nowhere.png", "key") is None


@pytest.mark.parametrize("format", SUFFIXES)
def test_images_of_others_have_none(tmp_path: Path, format: str) -> None:
    file = tmp_path / f"a{SUFFIXES[format]}"
    Image.new("RGB", (4, 4)).save(file)
    assert read_text(file, "key") is None


def test_sides() -> None:
    check_side("png", 10**6, 10**6)
    check_side("webp", 16383, 16383)
    check_side("jpeg", 65535, 1)
    with pytest.raises(ValueError, match="1 x 16384 pixels are too many for format webp, which has at most 16383"):
        check_side("webp", 16384, 1)
    with pytest.raises(ValueError, match="65536 x 2 pixels are too many for format jpeg"):
        check_side("jpeg", 2, 65536)
