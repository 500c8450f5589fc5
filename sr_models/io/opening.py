"""Opening an image file with Pillow, or saying precisely why it cannot be used."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, ImageFile, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from sr_models.io.completeness import check_complete

__all__ = ["bits_per_channel", "opened"]

# Others are not tried: a PostScript file with the name of a picture would be run.
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF")
_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr")
_DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N")

# Memory while decoding, by bytes a pixel: Pillow's copy and the array, and twice that for 16 bits a channel.
_BYTES = 8
_DEEP_BYTES = 16


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[tuple[Image.Image, BinaryIO]]:
    """Open an image whose header and tail say that it can be used; its pixels are not decoded.

    Pillow's limit of 179 million pixels does not apply, because the user named the file. Instead, decoding must not
    take more than half of the machine's memory.

    Args:
        path: the file.

    Yields:
        The image, and the file that it is read from.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the image cannot be used; also if the ``with`` block fails in any way.
    """
    try:
        with _PILLOW, _open_file(path) as file, Image.open(file, formats=_FORMATS) as image:
            _check_kind(image, file)
            _check_memory(image, file)
            check_complete(image, file)
            yield image, file
    except FileNotFoundError:
        name, target = os.fspath(path), os.path.realpath(path)
        reason = f"is a link to {target}, which does not exist" if Path(path).is_symlink() else "does not exist"
        raise FileNotFoundError(f"image {name} {reason}") from None
    except UnidentifiedImageError:
        raise ValueError(f"cannot read image {os.fspath(path)}: {_what_it_is(path)}") from None
    # Pillow's decoders report broken files with nearly every exception type there is, SyntaxError included.
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        reason = " ".join(reason.split()) or type(error).__name__
        raise ValueError(f"cannot read image {os.fspath(path)}: {reason}") from error


def bits_per_channel(image: Image.Image, file: BinaryIO) -> int:
    """Return the bits a channel in the file. Pillow opens colours of 16 bits as colours of 8 without a word."""
    if image.format == "PNG":
        return os.pread(file.fileno(), 1, 24)[0]
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
    return 8


class _PillowSettings:
    """Pillow's settings while files are read here, whatever the program has set for itself. Threads may share them."""

    def __init__(self) -> None:
        self._wanted: list[tuple[Any, str, Any]] = [
            (Image, "MAX_IMAGE_PIXELS", None),
            # else a damaged image is read as grey where its pixels are missing
            (ImageFile, "LOAD_TRUNCATED_IMAGES", False),
            # photographs with long editing histories exceed the usual limit
            (PngImagePlugin, "MAX_TEXT_CHUNK", PngImagePlugin.MAX_TEXT_MEMORY),
        ]
        self._lock = threading.Lock()
        self._users = 0
        self._former: list[Any] = []

    def __enter__(self) -> None:
        with self._lock:
            if not self._users:
                self._former = [getattr(module, name) for module, name, _ in self._wanted]
                for module, name, value in self._wanted:
                    setattr(module, name, value)
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                for (module, name, _), value in zip(self._wanted, self._former, strict=True):
                    setattr(module, name, value)


_PILLOW = _PillowSettings()


def _open_file(path: str | os.PathLike[str]) -> BinaryIO:
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        # a pipe would be waited for
        raise ValueError("it is a folder" if stat.S_ISDIR(mode) else "it is not a regular file")
    return open(path, "rb")


def _check_kind(image: Image.Image, file: BinaryIO) -> None:
    bits = bits_per_channel(image, file)
    if image.mode not in (*_MODES, *_DEEP_MODES) or (bits > 8 and bits != 16):
        raise ValueError(
            f"it must be grey, RGB or CMYK of at most 8, or of 16, bits a channel, got Pillow mode {image.mode!r} of "
            f"{bits} bits"
        )


def _check_memory(image: Image.Image, file: BinaryIO) -> None:
    width, height = image.size
    needed = width * height * (_DEEP_BYTES if bits_per_channel(image, file) > 8 else _BYTES)
    memory = _machine_memory()
    if needed > memory // 2:
        raise ValueError(
            f"its {width} x {height} pixels take {needed / 2**30:.1f} GiB to decode, more than half of this machine's "
            f"memory of {memory / 2**30:.1f} GiB; cut it into parts"
        )


@lru_cache(maxsize=1)
def _machine_memory() -> int:
    """Memory of the machine, or of the container if that has less, in bytes."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no container, or one without a limit
        return memory


def _what_it_is(path: str | os.PathLike[str]) -> str:
    """Say what a file that is no image looks like."""
    with open(path, "rb") as file:
        head = file.read(64)
    text = head.lstrip().lower()
    if not head:
        return "the file is empty"
    if text.startswith((b"<!doctype html", b"<html")):
        return "it is a web page, perhaps of a download that failed"
    if head.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS; git lfs pull fetches the image"
    if head.startswith(b"\x00\x05\x16\x07"):
        return "it holds what macOS keeps beside a file, and no image"
    if not head.strip(b"\0"):
        return "it begins with zeros, as after a download or a copy that failed"
    if head[4:8] == b"ftyp":
        kind = "a HEIC or AVIF image"
    elif head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        kind = "a TIFF of a kind that cannot be read, or damaged"
    else:
        kind = f"no image that can be read, or damaged: it begins with {head[:8]!r}"
    return f"it is {kind}; PNG, JPEG, WebP, TIFF and BMP can be read"
