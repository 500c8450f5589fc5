"""Colours of every kind of image as 8-bit sRGB."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

__all__ = ["colour_mode", "profile_to_srgb", "to_srgb"]

# Pixels that are converted at a time, so that large images take no copy of the whole at every step.
_BLOCK = 2**22
_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}


def colour_mode(image: Image.Image) -> str:
    """Return the kind of an image's colours: "L" (grey), "CMYK" or "RGB"."""
    if image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I;16"):
        return "L"
    return "CMYK" if image.mode == "CMYK" else "RGB"


def to_srgb(image: Image.Image, profile: bytes | None, *, on_white: bool = True) -> np.ndarray:
    """Convert an image to sRGB.

    Args:
        image: an image of 8 bits a channel, in any of Pillow's grey, palette, RGB, CMYK and YCbCr modes.
        profile: ICC profile of its colours; ``None``, or one that cannot be used: they are sRGB.
        on_white: composite transparent pixels on white, rather than return the colours beneath.

    Returns:
        Array (H, W, 3), uint8.
    """
    width, height = image.size
    convert = None
    if profile is not None:
        try:
            convert = profile_to_srgb(profile, colour_mode(image))[0]
        except ValueError:
            convert = None  # the header's notes say so
    result = np.empty((height, width, 3), np.uint8)
    rows = max(_BLOCK // width, 1)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        part = image if (top, bottom) == (0, height) else image.crop((0, top, width, bottom))
        result[top:bottom] = np.asarray(_rgb(part, convert, on_white))
    return result


def _rgb(image: Image.Image, convert: Callable[[Image.Image], Image.Image] | None, on_white: bool) -> Image.Image:
    mode = colour_mode(image)
    alpha = None
    if image.has_transparency_data:
        image = image.convert("LA" if mode == "L" else "RGBA")
        alpha = image.getchannel("A") if on_white else None
    image = image if image.mode == mode else image.convert(mode)
    image = image.convert("RGB") if convert is None and mode != "RGB" else image
    image = image if convert is None else convert(image)
    return image if alpha is None else Image.composite(image, Image.new("RGB", image.size, "white"), alpha)


@lru_cache(maxsize=32)
def profile_to_srgb(profile: bytes, mode: str) -> tuple[Callable[[Image.Image], Image.Image] | None, str]:
    """Make the conversion from an ICC profile's colours to sRGB.

    Args:
        profile: the profile.
        mode: kind of the image's colours, see :func:`colour_mode`. A grey image may have an RGB profile.

    Returns:
        The conversion from an image of that mode to RGB, or ``None`` if the colours are sRGB already; and the profile's
        name.

    Raises:
        ValueError: the profile is damaged, or is not for such colours.
    """
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        name = (ImageCms.getProfileDescription(source) or "a profile without a name").strip()
        given = "RGB" if mode == "L" and space == "RGB" else mode
        if space != _SPACES[given]:
            raise ValueError(f"{name} is for {space} colours")
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            given,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, TypeError) as error:
        raise ValueError(" ".join(str(error).split())) from error

    def convert(image: Image.Image) -> Image.Image:
        return transform.apply(image if image.mode == given else image.convert(given))

    if mode == "CMYK":
        return convert, name
    samples = _samples(mode)
    change = np.abs(np.asarray(convert(samples)).astype(int) - np.asarray(samples.convert("RGB"))).max()
    # rounding alone is no reason to change every pixel
    return (None if change <= 1 else convert), name


def _samples(mode: str) -> Image.Image:
    """Return an image of colours from all over the space."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1)
    return Image.fromarray(colours.reshape(9, 81, 3))
