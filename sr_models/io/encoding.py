"""Image files of several formats that carry a text about how they were made."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import ExifTags, Image

from sr_models.io.images import PNG_SRGB, encode_png

__all__ = ["SUFFIXES", "Format", "check_side", "encode_image", "read_text"]

#: ``png16`` is PNG with 16 bits a channel.
Format = Literal["png", "png16", "jpeg", "webp"]
#: Format -> suffix of its files.
SUFFIXES: dict[str, str] = {"png": ".png", "png16": ".png", "jpeg": ".jpg", "webp": ".webp"}
#: Largest sides that the formats have numbers for.
_LARGEST = {"jpeg": 65535, "webp": 16383}
_QUALITY = 95
_IHDR_END = 33
#: Colour space in EXIF.
_SRGB = 1
#: What a comment in EXIF begins with if it is ASCII.
_ASCII = b"ASCII\0\0\0"


def check_side(format: str, height: int, width: int) -> None:
    """Raise ``ValueError`` if an image is too large for a format."""
    largest = _LARGEST.get(format)
    if largest is not None and max(height, width) > largest:
        raise ValueError(
            f"{width} x {height} pixels are too many for format {format}, which has at most {largest} a side"
        )


def encode_image(image: np.ndarray, format: Format, name: str, about: Mapping[str, Any]) -> bytes:
    """Encode an image as a file with a description.

    PNG is lossless, and so is WebP here. JPEG has quality 95 and colours of full resolution. The description is a text
    in a PNG, and the user comment of EXIF in a JPEG or WebP. Every file says that its colours are sRGB.

    Args:
        image: (H, W, 3), or (H, W, 4) with alpha, which JPEG does not take; uint16 for ``png16``, else uint8.
        format: one of :data:`SUFFIXES`.
        name: of the description; ASCII.
        about: the description, which JSON can write.
    """
    text = json.dumps(about)
    if format == "png16":
        import imagecodecs

        return _with_text(bytes(imagecodecs.png_encode(np.ascontiguousarray(image))), name, text)
    if format == "png":
        return encode_png(image, {name: text})
    buffer = io.BytesIO()
    picture = Image.fromarray(image)
    exif = Image.Exif()
    details = exif.get_ifd(ExifTags.IFD.Exif)
    details[ExifTags.Base.ColorSpace] = _SRGB
    details[ExifTags.Base.UserComment] = _ASCII + json.dumps({name: text}).encode()
    if format == "jpeg":
        picture.save(buffer, "JPEG", quality=_QUALITY, subsampling=0, exif=exif)
    else:
        # exact keeps the colours of transparent pixels
        picture.save(buffer, "WEBP", lossless=True, exact=True, exif=exif)
    return buffer.getvalue()


def read_text(file: Path, name: str) -> dict[str, Any] | None:
    """Return the description that :func:`encode_image` has put into a file; ``None`` if there is none."""
    try:
        with Image.open(file, formats=("PNG", "JPEG", "WEBP")) as image:
            if image.format == "PNG":
                text = image.info[name]
            else:
                comment = image.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
                text = json.loads(comment.removeprefix(_ASCII))[name]
        found = json.loads(text)
    # damaged files are reported with exceptions of many types
    except Exception:
        return None
    return found if isinstance(found, dict) else None


def _with_text(png: bytes, name: str, text: str) -> bytes:
    """Put a text, and that colours are sRGB, behind the header of a PNG."""
    chunks = b"".join(PNG_SRGB), b"tEXt" + name.encode() + b"\0" + text.encode()
    written = (struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in chunks)
    return png[:_IHDR_END] + b"".join(written) + png[_IHDR_END:]
