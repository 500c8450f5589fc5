"""Processor time of one training crop, from image files, from the disk cache and from a pack, on one thread."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from time import process_time
from unittest import mock

import numpy as np
import torch
from PIL import Image

from benchmarks.spread import Spread, spreads
from sr_models.data.crops import RandomCrops
from sr_models.data.packing import write_pack
from sr_models.io.images import read_image, to_tensor
from sr_models.io.listing import list_images
from sr_models.io.resize import imresize

__all__ = ["crops_table", "measure_crops"]

_CROP, _SCALE, _CORES = 160, 4, 8
_LARGE, _SUB = (1356, 2040), (480, 480)
_FILES = 4


def measure_crops(rounds: int) -> list[Spread]:
    """Time whole crops of 160 x 160 pixels at scale 4, and their parts, all in turn.

    A whole crop is an item of ``RandomCrops``: read, cut, flipped, turned, reduced, and made a tensor. No image is
    kept in memory, as if there were far more images than memory, and none on the disk unless the row says so. Files are
    in the system's cache.

    Args:
        rounds: at least 2.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, mock.patch("sr_models.data.memory.LIMIT", 0):
        calls = _calls(Path(folder))
        times: dict[str, list[float]] = {name: [] for name in calls}
        for number in range(rounds + 1):
            for name, call in calls.items():
                start = process_time()
                call(number)
                if number:  # the first call loads what it needs
                    times[name].append(1e3 * (process_time() - start))
    return spreads(times)


def crops_table(rows: list[Spread]) -> str:
    """Format figures as a table for the terminal."""
    width = max(len(row.name) for row in rows)
    head = f"{'':{width}}  ms of processor time (quartiles), a second on {_CORES} cores"
    lines = [
        f"{row.name:{width}}  {row.median:8.2f} ({row.low:.2f} to {row.high:.2f}), {1e3 * _CORES / row.median:.0f}"
        for row in rows
    ]
    return "\n".join([head, *lines])


def _calls(folder: Path) -> dict[str, Callable[[int], object]]:
    """Write the files, and return what is timed: functions of the number of the round."""
    pictures = [_photograph(*_LARGE, seed) for seed in range(_FILES)]
    sources = {
        "PNG, 2040 x 1356": ("large", pictures, "png"),
        "PNG, 480 x 480": ("sub", [picture[: _SUB[0], : _SUB[1]] for picture in pictures], "png"),
        "JPEG, 2040 x 1356": ("jpeg", pictures, "jpg"),
    }
    for name, images, suffix in sources.values():
        (folder / name).mkdir()
        for number, image in enumerate(images):
            Image.fromarray(image).save(folder / name / f"{number}.{suffix}", quality=90)
    write_pack(list_images(folder / "large"), folder / "large.pack")
    calls: dict[str, Callable[[int], object]] = {}
    for title, (name, _, _) in sources.items():
        calls[f"crop of a {title}"] = _crops(folder / name)
    calls["crop of a PNG, 2040 x 1356, decoded before"] = _kept(folder)
    calls["crop of a pack"] = _crops(folder / "large.pack")
    calls["crop of a pack, degradation 'real'"] = _crops(folder / "large.pack", "real")
    for title, (name, _, suffix) in sources.items():
        calls[f"read_image, {title}"] = _always(read_image, folder / name / f"0.{suffix}")
    crop = np.ascontiguousarray(pictures[0][:_CROP, :_CROP])
    calls["imresize"] = _always(imresize, crop, 1 / _SCALE)
    calls["to_tensor"] = _always(to_tensor, crop)
    return calls


def _always(function: Callable[..., object], *arguments: object) -> Callable[[int], object]:
    return lambda number: function(*arguments)


def _crops(images: Path, degradation: str = "bicubic", disk_cache: float = 0) -> Callable[[int], object]:
    crops = RandomCrops(
        images, scale=_SCALE, crop=_CROP, length=2**31, seed=0, degradation=degradation, disk_cache=disk_cache
    )
    return crops.__getitem__


def _kept(folder: Path) -> Callable[[int], object]:
    """Return crops of large PNG files whose decoded pixels are on the disk already, as after the first epoch."""
    with mock.patch("sr_models.data.kept.FEW", 0), mock.patch.dict("os.environ", XDG_CACHE_HOME=str(folder / "cache")):
        crop = _crops(folder / "large", disk_cache=1)
    for number in range(10 * _FILES):
        crop(number)
    return crop


def _photograph(height: int, width: int, seed: int) -> np.ndarray:
    """Make an image with details of all sizes, whose PNG has half of its pixels' size, as those of photographs have."""
    generator = np.random.default_rng(seed)
    total = np.full((height, width, 3), 110.0)
    for octave in range(9):
        # smooth patches of 2^octave pixels, mostly grey
        shape = (height // 2**octave + 2, width // 2**octave + 2)
        field = generator.standard_normal((*shape, 1)) + 0.5 * generator.standard_normal((*shape, 3))
        strength = 2.0 * 2 ** (0.62 * octave) if octave else 2.8
        for channel in range(3):
            enlarged = Image.fromarray(field[..., channel].astype(np.float32)).resize((width, height))
            total[..., channel] += strength * np.asarray(enlarged)
    return np.clip(total, 0, 255).astype(np.uint8)
