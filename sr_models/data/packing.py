"""Packs: the decoded images of a data set in one file, which every process maps into its memory.

A pack begins with :data:`MAGIC`. The pixels of the images follow, uint8, row after row without gaps, then the index and
a trailer of fixed size. The index is JSON: ``{"images": [[name, height, width, bytes of the original file], ...]}``.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

from sr_models.data import memory
from sr_models.io.files import write_stream
from sr_models.io.images import read_image
from sr_models.io.json_text import parse_json
from sr_models.io.listing import Listing, Unused, check_unused, fingerprint_of, list_images, one_line

__all__ = ["MAGIC", "SUFFIX", "PackedImages", "check_pack_name", "open_images", "packing_hint", "write_pack"]

#: Suffix of a pack, by which it is told from a folder or an image.
SUFFIX = ".pack"
#: The first bytes of a pack; the number is that of the format.
MAGIC = b"sr_models pack 1\n"
_ANY_MAGIC = b"sr_models pack "
# Offset and length of the index, its SHA-256, and a last word that a file which was cut off lacks.
_TRAILER = struct.Struct("<QQ32s8s")
_LAST_WORD = b"pack end"
# Images that are decoded at once.
_THREADS = 8
# Mean pixels from which decoding takes a multiple of all other work on a crop.
_WORTH_PACKING = 500_000


class PackedImages:
    """The images of a pack, mapped into memory: the rows that are read are loaded from the disk, and nothing else.

    All processes that map a pack share one copy of it, in the system's cache. A copy that goes to another process maps
    the file anew.

    Args:
        path: the pack.

    Attributes:
        path: as given, with ``~`` expanded.
        names: paths of the original files below their folder, with ``/`` between folders.
        sizes: (height, width) of each image.
        lengths: size in bytes of each original file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a pack, one of another format, or a damaged one.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser()
        try:
            entries, self._pixels = _open(self.path)
        except FileNotFoundError:
            raise FileNotFoundError(f"pack {one_line(self.path)} does not exist") from None
        self.names: list[str] = [entry[0] for entry in entries]
        self.sizes: list[tuple[int, int]] = [(entry[1], entry[2]) for entry in entries]
        self.lengths: list[int] = [entry[3] for entry in entries]
        self._ends = np.cumsum([3 * height * width for height, width in self.sizes])
        self._indices = {name: index for index, name in enumerate(self.names)}

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> np.ndarray:
        """Return an image as a view of the file: (H, W, 3), uint8, not to be written to."""
        height, width = self.sizes[index]
        end = self._ends[index]
        return self._pixels[end - 3 * height * width : end].reshape(height, width, 3)

    def __reduce__(self) -> tuple[Any, ...]:
        return (PackedImages, (self.path,))

    @property
    def fingerprint(self) -> str:
        """Hash of the original files' names and sizes in bytes."""
        return self.listing().fingerprint

    def read(self, path: Path) -> np.ndarray:
        """Return an image as a view of the file, by its path in a :meth:`listing`."""
        return self[self._indices[path.relative_to(self.path).as_posix()]]

    def listing(self, *, smallest: int = 1, strict: bool = False) -> Listing:
        """List the images as :func:`sr_models.io.listing.list_images` lists the original files.

        The fingerprint is that of the folder if it has the same images, so that a run may change from one to the other.

        Args:
            smallest: rows and columns that an image must have at least.
            strict: an image that is too small is an error.

        Returns:
            The images, with paths of the form ``x.pack/name``.

        Raises:
            ValueError: no image is large enough; with ``strict``, one is too small.
        """
        indices, unused = [], []
        for index, (height, width) in enumerate(self.sizes):
            if min(height, width) >= smallest:
                indices.append(index)
            else:
                reason = f"must be at least {smallest} x {smallest} pixels, got {height} x {width}"
                unused.append(Unused(self.path / self.names[index], reason, "too small"))
        check_unused(one_line(self.path), len(indices), unused, strict)
        paths = [self.path / self.names[index] for index in indices]
        common = os.path.commonpath({str(path.parent) for path in paths})
        names = [os.path.relpath(path, common) for path in paths]
        fingerprint = fingerprint_of(names, [self.lengths[index] for index in indices])
        return Listing(paths, [self.sizes[index] for index in indices], unused, fingerprint, self.path)


def open_images(
    source: str | os.PathLike[str], *, smallest: int = 1, strict: bool = False
) -> tuple[Listing, Callable[[Path], np.ndarray]]:
    """List the images of a pack, or of what else :func:`sr_models.io.listing.list_images` takes.

    Args:
        source, smallest, strict: as for that function.

    Returns:
        The listing, and the function that reads an image by its path in it: (H, W, 3), uint8, not to be written to.

    Raises:
        FileNotFoundError, ValueError: as that function and :class:`PackedImages`.
    """
    if Path(source).suffix == SUFFIX and not Path(source).expanduser().is_dir():
        packed = PackedImages(source)
        return packed.listing(smallest=smallest, strict=strict), packed.read
    return list_images(source, smallest=smallest, strict=strict), read_image


def packing_hint(listing: Listing) -> list[str]:
    """Say in one line what a pack would spare, if the images are large and more than what is kept in memory."""
    pixels = sum(height * width for height, width in listing.sizes)
    if 3 * pixels <= memory.LIMIT or pixels < _WORTH_PACKING * len(listing):
        return []
    return [
        f"nearly every crop decodes a whole image, of {pixels / len(listing) / 1e6:.1f} megapixels on average; "
        f"sr-models pack spares that, for a file of {3 * pixels / 1e9:.1f} GB"
    ]


def check_pack_name(path: str | os.PathLike[str]) -> Path:
    """Return the path of a pack that is to be written, with ``~`` expanded.

    Raises:
        FileNotFoundError: its folder does not exist.
        ValueError: it does not end in ``.pack``, or is a folder.
    """
    path = Path(path).expanduser()
    if path.suffix != SUFFIX or path.is_dir():
        raise ValueError(f"output must be a file whose name ends in {SUFFIX}, got {one_line(path)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {one_line(path)}: folder {one_line(path.parent)} does not exist")
    return path


def write_pack(listing: Listing, path: str | os.PathLike[str], *, strict: bool = False) -> list[Unused]:
    """Decode images into a pack, atomically: the file appears complete or not at all.

    A few images are in memory at a time, however many there are.

    Args:
        listing: the images.
        path: file to write, whose name ends in ``.pack``; an existing one is replaced.
        strict: an image that cannot be decoded is an error.

    Returns:
        The images of the listing that could not be decoded and are not in the pack.

    Raises:
        FileNotFoundError: the folder of ``path`` does not exist.
        OSError: the disk has not enough room, which is looked at first, and the like.
        ValueError: another suffix; no image can be decoded; with ``strict``, one cannot be decoded.
    """
    path = check_pack_name(path)
    _check_room(path, sum(3 * height * width for height, width in listing.sizes))
    entries: list[tuple[str, int, int, int]] = []
    unused: list[Unused] = []

    def write(file: BinaryIO) -> None:
        file.write(MAGIC)
        decoded = tqdm(_decoded(listing.paths), "packing", len(listing), unit="image", disable=None)
        for source, name, image in zip(listing.paths, listing.names, decoded, strict=True):
            if isinstance(image, np.ndarray):
                file.write(image.data)
                entries.append((name, image.shape[0], image.shape[1], source.stat().st_size))
                continue
            reason = " ".join(str(image).replace(f"cannot read image {source}: ", "").split())
            unused.append(Unused(source, reason, "damaged"))
            if strict:
                break
        check_unused(one_line(listing.root), len(listing) - len(unused), unused, strict)
        offset = file.tell()
        index = json.dumps({"images": entries}).encode()
        file.write(index)
        file.write(_TRAILER.pack(offset, len(index), hashlib.sha256(index).digest(), _LAST_WORD))

    write_stream(path, write)
    return unused


def _decoded(paths: list[Path]) -> Iterator[np.ndarray | Exception]:
    """Read images by several threads, a few ahead, and yield them in order; an exception in the place of a bad one."""
    waiting: deque[Future[np.ndarray | Exception]] = deque()
    threads = min(_THREADS, len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(threads) as pool:
        for path in paths:
            waiting.append(pool.submit(_read, path))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _read(path: Path) -> np.ndarray | Exception:
    try:
        return np.ascontiguousarray(read_image(path))
    except (OSError, ValueError) as error:
        return error


def _check_room(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise OSError(
            f"cannot write {one_line(path)}: it needs {needed / 1e9:.1f} GB, and {one_line(path.parent)} has "
            f"{free / 1e9:.1f} GB of free space"
        )


def _open(path: Path) -> tuple[list[tuple[str, int, int, int]], np.ndarray]:
    """Check a pack and return its index and the mapped bytes of all images."""
    if path.is_dir():
        raise ValueError(f"{one_line(path)} is a folder, not a pack of images")
    with path.open("rb") as file:
        magic = file.read(len(MAGIC))
        if not magic.startswith(_ANY_MAGIC):
            raise ValueError(f"{one_line(path)} is not a pack of images; make one with sr-models pack")
        if magic != MAGIC:
            raise ValueError(f"pack {one_line(path)} has another format than this version reads; make it anew")
        size = os.fstat(file.fileno()).st_size
        file.seek(max(len(MAGIC), size - _TRAILER.size))
        trailer = file.read()
        if len(trailer) != _TRAILER.size or not trailer.endswith(_LAST_WORD):
            raise _damaged(path, "its end is missing")
        offset, length, digest, _ = _TRAILER.unpack(trailer)
        if offset + length + _TRAILER.size != size:
            raise _damaged(path, f"it has {size} bytes, not {offset + length + _TRAILER.size}")
        file.seek(offset)
        index = file.read(length)
        if hashlib.sha256(index).digest() != digest:
            raise _damaged(path, "its index was changed")
        entries = _entries(index)
        if not entries or len(MAGIC) + sum(3 * height * width for _, height, width, _ in entries) != offset:
            raise _damaged(path, "its index does not fit its images")
        return entries, np.asarray(np.memmap(file, np.uint8, "r", len(MAGIC), (offset - len(MAGIC),)))


def _entries(index: bytes) -> list[tuple[str, int, int, int]]:
    """Read the index; an empty list if it is no index."""
    try:
        entries = [(str(name), int(a), int(b), int(c)) for name, a, b, c in parse_json(index)["images"]]
    except (KeyError, OverflowError, TypeError, ValueError):
        return []
    return entries if all(min(numbers) > 0 for _, *numbers in entries) else []


def _damaged(path: Path, reason: str) -> ValueError:
    return ValueError(f"pack {one_line(path)} is damaged: {reason}; make it anew with sr-models pack")
