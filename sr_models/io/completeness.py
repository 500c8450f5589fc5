"""Noticing image files that are cut off, from their last bytes, without decoding them."""

from __future__ import annotations

import os
from typing import BinaryIO

from PIL import Image, TiffImagePlugin

__all__ = ["check_complete", "tail"]

_TAIL_BYTES = 2**16
_PNG_END = b"IEND\xaeB`\x82"
_JPEG_END = b"\xff\xd9"


def check_complete(image: Image.Image, file: BinaryIO) -> None:
    """Check that an image file is not cut off.

    Bytes after the end of the image are fine: telephones append videos, and servers append zeros.

    Args:
        image: the image, opened by Pillow, not decoded.
        file: the file that it is read from; its position stays.

    Raises:
        ValueError: the file is cut off.
    """
    size = os.fstat(file.fileno()).st_size
    if image.format == "PNG":
        complete = _png_ends(file, size)
    elif image.format in ("JPEG", "MPO"):
        complete = _jpeg_ends(file, size)
    elif image.format == "WEBP":
        complete = 8 + int.from_bytes(os.pread(file.fileno(), 4, 4), "little") <= size
    elif isinstance(image, TiffImagePlugin.TiffImageFile):
        complete = _last_byte_of_tiff(image) <= size
    else:
        complete = _last_raw_byte(image) <= size
    if not complete:
        raise ValueError(f"the file is cut off after {size} bytes")


def tail(file: BinaryIO) -> bytes:
    """Return the last 64 KiB of a file; its position stays."""
    size = os.fstat(file.fileno()).st_size
    return os.pread(file.fileno(), _TAIL_BYTES, max(size - _TAIL_BYTES, 0))


def _png_ends(file: BinaryIO, size: int) -> bool:
    end = tail(file)
    if end.endswith(_PNG_END) or _PNG_END in end:
        return True
    # more than the tail may follow the image: go from chunk to chunk
    position = 8
    while position + 12 <= size:
        head = os.pread(file.fileno(), 8, position)
        position += 12 + int.from_bytes(head[:4], "big")
        if head[4:] == b"IEND":
            return position <= size
    return False


def _jpeg_ends(file: BinaryIO, size: int) -> bool:
    if tail(file).rstrip(b"\0").endswith(_JPEG_END):
        return True
    content = os.pread(file.fileno(), size, 0)
    # Within the scans every 255 is followed by zero, so the first end marker is the image's. What comes before the
    # scans may hold a thumbnail with an end of its own.
    return content.find(_JPEG_END, _first_scan(content)) >= 0


def _first_scan(content: bytes) -> int:
    """Return the position of a JPEG file's first scan, or the end of the file if there is none."""
    position = 2
    while position + 4 <= len(content):
        if content[position] != 0xFF or content[position + 1] == 0xFF:
            position += 1  # padding
        elif content[position + 1] == 0xDA:
            return position
        else:
            position += 2 + int.from_bytes(content[position + 2 : position + 4], "big")
    return len(content)


def _last_byte_of_tiff(image: TiffImagePlugin.TiffImageFile) -> int:
    tags = image.tag_v2
    for starts, lengths in (
        (TiffImagePlugin.STRIPOFFSETS, TiffImagePlugin.STRIPBYTECOUNTS),
        (TiffImagePlugin.TILEOFFSETS, TiffImagePlugin.TILEBYTECOUNTS),
    ):
        if starts in tags and lengths in tags:
            return max((a + b for a, b in zip(tags[starts], tags[lengths], strict=False)), default=0)
    return 0


def _last_raw_byte(image: Image.Image) -> int:
    """Return where the pixels of an uncompressed image end; 0 if they are compressed."""
    last = 0
    for decoder, extents, offset, arguments in getattr(image, "tile", ()):
        if decoder == "raw" and isinstance(arguments, tuple) and len(arguments) > 1 and extents:
            last = max(last, offset + arguments[1] * (extents[3] - extents[1]))
    return last
