"""Memory that is free, and the largest tiles that it has room for."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

import torch

from sr_models.flow.tiling import LEAST_TILE

__all__ = ["fitting_tile", "free_memory", "smaller_tile"]

#: Memory that decoding takes for a low-resolution pixel at 4x, in bytes, and besides for each sample of it. Measured on
#: a CPU for srflow-da-tiny, 256 x 256 pixels: 13.4 KiB for 10 samples together, 22.5 KiB for 32.
_PER_PIXEL, _PER_PIXEL_AND_SAMPLE = 12 * 2**10, 460
#: Latents, images and weights of a whole image that is decoded in tiles, for a pixel and a sample, at 4x.
_PER_PIXEL_OF_TILED = 48 * 4 * 4
#: Larger tiles are no faster.
_LARGEST_TILE = 1024
_SHARE = 0.8
#: The limits of a container.
_GROUP = Path("/sys/fs/cgroup")


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that a device, or the machine, has free; ``None`` where that cannot be found out."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    found = []
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]))
    with contextlib.suppress(OSError, StopIteration, ValueError):
        used = int((_GROUP / "memory.current").read_text())
        # files that the system keeps in memory count as used, and make room when it is needed
        lines = (_GROUP / "memory.stat").read_text().splitlines()
        kept_files = int(next(line for line in lines if line.startswith("inactive_file ")).split()[1])
        found.append(int((_GROUP / "memory.max").read_text()) - used + kept_files)
    return min(found, default=None)


def fitting_tile(height: int, width: int, samples: int, scale: int, free: int | None) -> int | None:
    """Return the side of the largest tiles that fit into memory, or ``None`` if the whole image does.

    Args:
        height, width: of the low-resolution image.
        samples: that are drawn together.
        scale: enlargement.
        free: bytes; ``None`` if nobody knows.
    """
    size = (scale / 4) ** 2
    pixel = size * (_PER_PIXEL + _PER_PIXEL_AND_SAMPLE * samples)
    if free is None or height * width * pixel <= _SHARE * free:
        return None
    rest = _SHARE * free - height * width * size * _PER_PIXEL_OF_TILED * samples
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
