"""Images of 16 bits a channel, which Pillow cuts to 8 bits."""

from __future__ import annotations

import os
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, TiffImagePlugin

__all__ = ["read_deep"]

# v / 257, rounded: 65535 becomes 255
_TO_8_BITS = ((np.arange(2**16, dtype=np.uint32) + 128) // 257).astype(np.uint8)
_PREMULTIPLIED = 1
_ALPHA = 2
_WHITE_IS_ZERO = 0
_CMYK = 5
_PLANES_APART = 2


def read_deep(image: Image.Image, file: BinaryIO) -> Image.Image:
    """Read an image of 16 bits a channel and round it to 8 bits.

    Args:
        image: the image as Pillow opens it, a PNG or a TIFF.
        file: the file that it is read from.

    Returns:
        An image of mode L, LA, RGB, RGBA, RGBa or CMYK, as it lies in the file: not upright.

    Raises:
        RuntimeError, ValueError: damaged data, or a compression of TIFF that is not supported.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return _read_tiff(image, file)
    return _read_png(image, file)


def _read_png(image: Image.Image, file: BinaryIO) -> Image.Image:
    import imagecodecs

    pixels = imagecodecs.png_decode(os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0))
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    # grey with alpha has two channels; a single transparent colour comes as alpha, too
    return _image(_TO_8_BITS[pixels], ("L", "LA", "RGB", "RGBA")[pixels.shape[-1] - 1])


def _read_tiff(image: TiffImagePlugin.TiffImageFile, file: BinaryIO) -> Image.Image:
    import tifffile

    tags: Any = image.tag_v2
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        pixels = tiff.pages[0].asarray()
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    elif tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == _PLANES_APART:
        pixels = pixels.transpose(1, 2, 0)
    levels = _TO_8_BITS[pixels]
    photometric = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION)
    if photometric == _WHITE_IS_ZERO:
        levels = 255 - levels
    if photometric == _CMYK:
        return _image(levels[..., :4], "CMYK")
    if levels.shape[-1] < 3:
        return _image(levels[..., :1], "L")
    alpha = {_PREMULTIPLIED: "RGBa", _ALPHA: "RGBA"}.get(next(iter(tags.get(TiffImagePlugin.EXTRASAMPLES, ())), 0))
    return _image(levels[..., :4], alpha) if alpha else _image(levels[..., :3], "RGB")


def _image(levels: np.ndarray, mode: str) -> Image.Image:
    height, width = levels.shape[:2]
    return Image.frombytes(mode, (width, height), np.ascontiguousarray(levels).tobytes())
