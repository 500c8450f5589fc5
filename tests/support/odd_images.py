"""Image files of kinds that Pillow does not write: 16 bits a channel, wide-gamut profiles."""

from __future__ import annotations

import struct
import zlib

import numpy as np

__all__ = ["icc_profile", "png"]


def chunk(kind: bytes, content: bytes) -> bytes:
    """Encode a chunk of a PNG file."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(pixels: np.ndarray, *, before: bytes = b"", after: bytes = b"") -> bytes:
    """Encode (H, W, 1 to 4), uint8 or uint16, as a PNG file, with chunks before and after the pixels."""
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(pixels.dtype.newbyteorder(">")).tobytes() for row in pixels)
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.itemsize, colour_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + before + chunk(b"IDAT", zlib.compress(rows)) + after
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def icc_profile(space: str, gamma: float = 2.2) -> bytes:
    """Return a profile of "RGB " colours with the primaries of Adobe RGB, or of "GRAY"."""

    def fixed(value: float) -> bytes:
        return struct.pack(">i", round(value * 2**16))

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(map(fixed, values))

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    name = b"a test"
    tags = [
        (b"desc", b"desc\0\0\0\0" + struct.pack(">I", len(name) + 1) + name + b"\0" * 79),
        (b"cprt", b"text\0\0\0\0none\0"),
        (b"wtpt", xyz(0.9642, 1, 0.8249)),
    ]
    if space == "GRAY":
        tags.append((b"kTRC", curve))
    else:
        tags += [
            (b"rXYZ", xyz(0.6097, 0.3111, 0.0195)),
            (b"gXYZ", xyz(0.2053, 0.6257, 0.0609)),
            (b"bXYZ", xyz(0.1492, 0.0632, 0.7446)),
            *((kind, curve) for kind in (b"rTRC", b"gTRC", b"bTRC")),
        ]
    table, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for kind, content in tags:
        content += b"\0" * (-len(content) % 4)
        table += kind + struct.pack(">II", start + len(body), len(content))
        body += content
    head = struct.pack(">I4sI4s4s4s", start + len(body), b"\0" * 4, 0x02100000, b"mntr", space.encode(), b"XYZ ")
    head += struct.pack(">6H4s", 2020, 1, 1, 0, 0, 0, b"acsp") + b"\0" * 28 + fixed(0.9642) + fixed(1) + fixed(0.8249)
    return head.ljust(128, b"\0") + table + body
