"""Memory that is free, and the largest tiles that it has room for."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from sr_models.flow.tiling import LEAST_TILE

__all__ = ["fitting_tile", "free_memory", "smaller_tile", "surely_fits"]

#: More than decoding takes for a low-resolution pixel at 4x, in bytes, and besides for each sample of it: by any of our
#: models, and with the gaps between blocks that the C library keeps.
_ENOUGH, _ENOUGH_FOR_SAMPLE = 24 * 2**10, 4 * 2**10
#: Latents and images of a whole image that is decoded in tiles, for a pixel and a sample at 4x.
_PER_PIXEL_OF_TILED = 400
#: Larger tiles are no faster.
_LARGEST_TILE = 1024
_SHARE = 0.8
#: Where the system shows limits of groups of processes: those of a container, of a job of a cluster.
_GROUPS, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


class _Files(NamedTuple):
    """Names of a group's files, and of the line of its statistics that counts files which make room when needed."""

    limit: str
    used: str
    kept_files: str


_VERSION_1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = _Files("memory.max", "memory.current", "inactive_file")


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that a device, or the machine, has free; ``None`` where that cannot be found out."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    found = [_free_in(folder, files) for folder, files in _groups()]
    with contextlib.suppress(OSError, StopIteration, ValueError):
        found.append(1024 * _number(Path("/proc/meminfo"), "MemAvailable:"))
    return min((free for free in found if free is not None), default=None)


def _groups() -> Iterator[tuple[Path, _Files]]:
    """Yield the folders of the groups that the process is in, and of those that these are in."""
    # in a container the group that the process knows may be shown as the outermost one
    own = [("memory", "/"), ("", "/")]
    with contextlib.suppress(OSError, ValueError):
        for line in _OWN_GROUPS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            own.append((controllers, path))
    for controllers, path in own:
        root, files = (_GROUPS / "memory", _VERSION_1) if controllers else (_GROUPS, _VERSION_2)
        if not controllers or "memory" in controllers.split(","):
            folder = root / path.lstrip("/")
            yield from ((place, files) for place in (folder, *folder.parents) if place.is_relative_to(root))


def _free_in(group: Path, files: _Files) -> int | None:
    """Return the bytes that a group may still take; ``None`` if it does not say so.

    Without a limit version 1 says about 2^63, and version 2 a word.
    """
    with contextlib.suppress(OSError, StopIteration, ValueError):
        limit, used = (int((group / name).read_text()) for name in (files.limit, files.used))
        # files that the system keeps in memory count as used, and make room when it is needed
        kept_files = _number(group / "memory.stat", files.kept_files)
        return max(limit - used + kept_files, 0)
    return None


def _number(file: Path, name: str) -> int:
    """Return the number that stands behind a name in a system's file."""
    return int(next(words[1] for line in file.read_text().splitlines() if (words := line.split())[:1] == [name]))


def surely_fits(height: int, width: int, samples: int, scale: int, free: int | None) -> bool:
    """Return whether a whole image fits into memory, whatever the model; also if nobody knows what is free.

    Args:
        height, width, samples, scale, free: as of :func:`fitting_tile`.
    """
    pixel = (scale / 4) ** 2 * (_ENOUGH + _ENOUGH_FOR_SAMPLE * samples)
    return free is None or height * width * pixel <= _SHARE * free


def fitting_tile(height: int, width: int, samples: int, scale: int, free: int, pixel: float) -> int | None:
    """Return the side of the largest tiles that fit into memory, or ``None`` if the whole image does.

    Args:
        height, width: of the low-resolution image.
        samples: that are drawn together.
        scale: enlargement.
        free: bytes.
        pixel: bytes that decoding so many samples takes for a low-resolution pixel.
    """
    if height * width * pixel <= _SHARE * free:
        return None
    rest = _SHARE * free - height * width * (scale / 4) ** 2 * _PER_PIXEL_OF_TILED * samples
    side = int(math.sqrt(max(rest, 0) / pixel)) // LEAST_TILE * LEAST_TILE
    return min(max(side, LEAST_TILE), _LARGEST_TILE)


def smaller_tile(height: int, width: int, tile: int | None) -> int | None:
    """Return a side of tiles that needs a quarter of the memory; ``None`` if there is none.

    Args:
        height, width: of the low-resolution image.
        tile: that was too large; ``None``: the whole image was.
    """
    side = min(tile or max(height, width), max(height, width))
    smaller = side // 2 // LEAST_TILE * LEAST_TILE
    return max(smaller, LEAST_TILE) if side > LEAST_TILE else None
