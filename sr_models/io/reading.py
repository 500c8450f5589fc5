"""Reading images of every kind that people have as upright 8-bit sRGB."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import Image, TiffImagePlugin

from sr_models.io.colour import colour_mode, profile_to_srgb, to_srgb
from sr_models.io.completeness import tail
from sr_models.io.deep import read_deep
from sr_models.io.opening import bits_per_channel, opened
from sr_models.io.png import decode_png

__all__ = ["WHITE_BACKGROUND", "ImageHeader", "read_header", "read_image", "read_image_with_alpha"]

#: What a header says of an image with transparency.
WHITE_BACKGROUND = "transparent pixels become white"

_ORIENTATION = 0x0112
# What a PNG may say about its orientation after the pixels, where Pillow finds it only by decoding them.
_LATE_ORIENTATION = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")


@dataclass(frozen=True)
class ImageHeader:
    """Description of an image by its file, before the pixels are decoded.

    Attributes:
        height: rows of the upright image.
        width: columns of the upright image.
        format: Pillow's name of the format: "PNG", "JPEG", "MPO", "WEBP", "TIFF", "BMP" or "GIF".
        notes: what :func:`read_image` changes beyond decoding, and the user may want to know; one clause each, the same
            words for every file of the kind.
    """

    height: int
    width: int
    format: str
    notes: tuple[str, ...]


def read_header(path: str | os.PathLike[str]) -> ImageHeader:
    """Read the size of an image, and check that it can be used, without decoding it.

    Found are files that are missing, empty, no images, of a kind that cannot be read, cut off, or too large for the
    memory. Not found is damage between header and tail.

    Args:
        path: the file, of any suffix.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: :func:`read_image` would refuse the image. The message names file and reason.
    """
    with opened(path) as (image, file):
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            # Pillow's versions differ in whether the size of a TIFF is that of the upright image
            width, height = (image.tag_v2[tag] for tag in (TiffImagePlugin.IMAGEWIDTH, TiffImagePlugin.IMAGELENGTH))
        else:
            width, height = image.size
        if _orientation(image, file) >= 5:
            width, height = height, width
        return ImageHeader(height, width, str(image.format), tuple(_notes(image, file)))


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an image as 8-bit sRGB, upright.

    - The EXIF orientation is applied.
    - Colours with an ICC profile are converted to sRGB; without a usable one they are taken as sRGB.
    - 16 bits a channel are rounded to 8.
    - Grey, palette and CMYK images become RGB.
    - Transparent pixels are composited on white, since the colour stored beneath them is arbitrary.
    - Of an animation the first frame is read.

    A JPEG that is damaged in the middle may be read with wrong pixels, because the format has no checksum.

    Args:
        path: a PNG, JPEG, WebP, TIFF, BMP or GIF file; its suffix does not matter.

    Returns:
        Array (H, W, 3), uint8.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is no image, cut off or damaged, has more than 16 bits a channel or floating-point values,
            or decoding it would take more than half of the machine's memory. The message names file and reason.
    """
    return _read(path, with_alpha=False)[0]


def read_image_with_alpha(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray | None]:
    """Read an image like :func:`read_image`, but with its transparency apart.

    Args:
        path: as for :func:`read_image`.

    Returns:
        Array (H, W, 3), uint8, with the colours that are stored, also beneath transparent pixels; and alpha, (H, W),
        uint8, from 0 (transparent) to 255, or ``None`` if all is opaque.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_image`.
    """
    return _read(path, with_alpha=True)


def _read(path: str | os.PathLike[str], *, with_alpha: bool) -> tuple[np.ndarray, np.ndarray | None]:
    alpha = None
    with opened(path) as (image, file):
        profile = image.info.get("icc_profile")
        orientation = _orientation(image, file)
        deep = bits_per_channel(image, file) > 8
        if not deep and (decoded := decode_png(image, file)) is not None:
            pixels = to_srgb(Image.fromarray(decoded), profile) if profile else decoded
        else:
            source = read_deep(image, file) if deep else image
            source.load()
            if not deep and isinstance(image, TiffImagePlugin.TiffImageFile):
                orientation = 1  # applied by Pillow
            if with_alpha and source.has_transparency_data:
                alpha = np.asarray(source.convert("RGBA").getchannel("A"))
                alpha = None if alpha.min() == 255 else _upright(alpha, orientation)
            pixels = to_srgb(source, profile, on_white=alpha is None)
    return _upright(pixels, orientation), alpha


def _orientation(image: Image.Image, file: BinaryIO) -> int:
    """Return the EXIF orientation, 1 to 8; 1 if there is none, or a damaged one."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        found = image.tag_v2.get(_ORIENTATION, 1)
    else:
        if image.format == "PNG" and "exif" not in image.info:
            end = tail(file)
            if any(mark in end for mark in _LATE_ORIENTATION):
                image.load()
        try:
            # not that of a PNG, which would decode the image
            found = Image.Image.getexif(image).get(_ORIENTATION, 1)
        # damaged EXIF data is reported with exceptions of many types, and is no reason to refuse the image
        except Exception:
            found = 1
    return found if found in range(1, 9) else 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _notes(image: Image.Image, file: BinaryIO) -> list[str]:
    notes = []
    # a JPEG of several pictures (MPO) is a photograph with its previews
    if image.format != "MPO" and getattr(image, "is_animated", False):
        notes.append("only the first frame of an animation is used")
    if bits_per_channel(image, file) > 8:
        notes.append("16 bits a channel are rounded to 8")
    if image.has_transparency_data:
        notes.append(WHITE_BACKGROUND)
    mode, profile = colour_mode(image), image.info.get("icc_profile")
    if profile:
        try:
            convert, name = profile_to_srgb(profile, mode)
        except ValueError as error:
            notes.append(f"a colour profile that cannot be used ({error}) is ignored")
        else:
            if convert is not None:
                notes.append(f"colours are converted from {name} to sRGB")
    elif mode == "CMYK":
        notes.append("CMYK colours without a profile become RGB approximately")
    return notes
