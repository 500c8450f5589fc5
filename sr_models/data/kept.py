"""Decoded photographs on the disk: one process decodes each once, and all processes map it from then on."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
import stat
import warnings
from collections.abc import Sequence
from pathlib import Path
from shutil import disk_usage
from time import time

import numpy as np
from PIL import Image

from sr_models.io.files import remove_leftovers, user_cache, write_stream
from sr_models.io.images import read_image
from sr_models.io.listing import Listing, one_line

__all__ = ["DISK_CACHE", "FEW", "KeptImages"]

#: GB of decoded photographs that a data set may have on the disk, unless the user says otherwise.
DISK_CACHE = 30.0
#: Bytes of decoded images that every process can keep in its own memory: such data sets need no disk.
FEW = 2**27
#: Changes whenever the same file may be decoded to other pixels.
_FORMAT = f"sr_models decoded 1, Pillow {Image.__version__}"
_NAME = re.compile(r"[0-9a-f]{32}\.npy")
_DAY, _WEEK = 86_400, 7 * 86_400


class KeptImages:
    """Images of a data set, whose decoded pixels are kept in the user's cache folder.

    The folder is ``$XDG_CACHE_HOME/sr_models/decoded`` (``~/.cache`` by default). It has one ``.npy`` file a
    photograph, named by a hash of the original file's content. Files appear complete or not at all. Any number of
    processes may use the folder, and anybody may delete it at any time.

    A data set keeps as many images as fit into ``limit``, the first ones. Half of the disk's free space stays free.
    What no run has used for a week is removed when a run begins. A disk that takes no more changes nothing but the
    time.

    Args:
        listings: the images.
        limit: GB that they may take, 3 bytes a pixel; 0: nothing is kept.

    Attributes:
        active: whether anything is kept.
        notes: lines that say to the user what is kept, or why nothing is.

    Raises:
        ValueError: a limit that is no number of GB.
    """

    def __init__(self, listings: Sequence[Listing], limit: float = DISK_CACHE) -> None:
        if not (math.isfinite(limit) and limit >= 0):
            raise ValueError(f"disk_cache must be a number of GB of at least 0, got {limit}")
        self.active, self.notes = False, list[str]()
        self._paths: set[Path] = set()
        self._keys: dict[Path, tuple[tuple[int, int], str]] = {}
        self._written: list[Path] = []
        needed = sum(3 * height * width for listing in listings for height, width in listing.sizes)
        if needed <= FEW or not limit:
            return
        folder = user_cache("decoded")
        problem = "there is no home folder" if folder is None else _problem(folder)
        if folder is None or problem:
            self.notes.append(f"decoded photographs are not kept on the disk: {problem}; set XDG_CACHE_HOME")
            return
        self._folder = folder
        # the space that stays free, whatever the processes of this run and of others add at the same time
        self._reserve = (disk_usage(_existing(folder)).free + _tidied(folder)) // 2
        self._choose(listings, min(1e9 * limit, self._reserve))
        self.active = bool(self._paths)
        count = sum(map(len, listings))
        some = f" for {len(self._paths)} of {count} images" if len(self._paths) < count else ""
        self.notes.append(
            f"decoded photographs are kept in {one_line(folder)}, up to {self._size / 1e9:.1f} GB{some}, for later "
            f"epochs and runs; disk_cache 0 keeps none"
        )

    def _choose(self, listings: Sequence[Listing], room: float) -> None:
        self._size = 0
        for listing in listings:
            for path, (height, width) in zip(listing.paths, listing.sizes, strict=True):
                if self._size + 3 * height * width <= room:
                    self._size += 3 * height * width
                    self._paths.add(path)

    def read(self, path: Path) -> np.ndarray:
        """Read an image like :func:`sr_models.io.images.read_image`, mapped from the disk if that is possible.

        Args:
            path: one of the listings' paths.

        Returns:
            Array (H, W, 3), uint8, not to be written to.

        Raises:
            FileNotFoundError, ValueError: the original file cannot be used any more.
        """
        status = _regular(path) if path in self._paths else None
        if status is None:
            return read_image(path)
        file = self._folder / f"{self._key(path, status)}.npy"
        image = _mapped(file)
        if image is None:
            image = read_image(path)
            # else these may be the pixels of another content
            if _unchanged(path, status) and self._write(file, image):
                mapped = _mapped(file)
                image = image if mapped is None else mapped
        image.flags.writeable = False
        return image

    def _key(self, path: Path, status: os.stat_result) -> str:
        """Hash the content of a file, once as long as it does not change."""
        stamp = (status.st_size, status.st_mtime_ns)
        known = self._keys.get(path)
        if known is None or known[0] != stamp:
            digest = hashlib.sha256(_FORMAT.encode() + b"\0")
            digest.update(path.read_bytes())
            known = self._keys[path] = (stamp, digest.hexdigest()[:32])
        return known[1]

    def _write(self, file: Path, image: np.ndarray) -> bool:
        """Keep an image, if the disk has room."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if disk_usage(self._folder).free - image.nbytes < self._reserve:
                return False
            write_stream(file, lambda out: np.save(out, image, allow_pickle=False))
        except OSError as error:
            self._stop(error)
            return False
        self._written.append(file)
        return True

    def _stop(self, error: OSError) -> None:
        """Give the room back that this process has taken: a quota may be full, and checkpoints need it."""
        self._paths.clear()
        for file in self._written:
            file.unlink(missing_ok=True)
        self._written.clear()
        warnings.warn(
            f"decoded photographs are not kept any more: {error}; lower disk_cache, or set XDG_CACHE_HOME to a folder "
            f"with more room",
            stacklevel=2,
        )


def _regular(path: Path) -> os.stat_result | None:
    """Return the status of a regular file, and nothing for what else may have taken its place."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def _unchanged(path: Path, before: os.stat_result) -> bool:
    after = _regular(path)
    return after is not None and (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def _mapped(file: Path) -> np.ndarray | None:
    """Map a file of pixels; nothing if it is not there, or not as it was written."""
    try:
        image: np.ndarray = np.lib.format.open_memmap(file, mode="r")
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            return None
        if time() - file.stat().st_mtime > _DAY:
            os.utime(file)
    except (OSError, ValueError):
        return None
    return image


def _existing(folder: Path) -> Path:
    """Return the folder, or the first one above it that exists."""
    return next(place for place in (folder, *folder.parents) if os.path.exists(place))


def _problem(folder: Path) -> str:
    """Say why a folder cannot be made or written to; nothing if it can."""
    place = _existing(folder)
    usable = place.is_dir() and os.access(place, os.W_OK | os.X_OK)
    return "" if usable else f"{one_line(folder)} cannot be written to"


def _tidied(folder: Path) -> int:
    """Remove what was not used for a week, and return the bytes of what is left."""
    with contextlib.suppress(OSError):
        remove_leftovers(folder, age=_WEEK)
    size = 0
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            if not _NAME.fullmatch(entry.name):
                continue
            # another run may be tidying up, too
            with contextlib.suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                if time() - status.st_mtime > _WEEK:
                    os.unlink(entry)
                else:
                    size += status.st_size
    return size
