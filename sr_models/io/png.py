"""A decoder of the usual kind of PNG, which takes about half of Pillow's time."""

from __future__ import annotations

import os
from typing import BinaryIO

import numpy as np
from PIL import Image

__all__ = ["decode_png"]


def decode_png(image: Image.Image, file: BinaryIO) -> np.ndarray | None:
    """Decode a PNG of 8-bit RGB without transparency or animation.

    Args:
        image: the image as Pillow opens it.
        file: the file that it is read from.

    Returns:
        Array (H, W, 3), uint8, as it lies in the file: not upright, without conversion of colours. Nothing if the image
        is of another kind, or is refused: then Pillow decodes it, or says what is wrong.
    """
    animated = getattr(image, "is_animated", False)
    if image.format != "PNG" or image.mode != "RGB" or image.has_transparency_data or animated:
        return None
    import imagecodecs

    try:
        pixels: np.ndarray = imagecodecs.spng_decode(os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0))
    except (ImportError, RuntimeError, ValueError):  # also where imagecodecs was built without this decoder
        return None
    width, height = image.size
    return pixels if pixels.shape == (height, width, 3) and pixels.dtype == np.uint8 else None
