"""Random crops of photographs that lie on a device as 8-bit values: cutting them takes no time of the processor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sr_models.io.images import read_image
from sr_models.io.resize import imresize

__all__ = ["DeviceCrops", "read_photographs"]


def read_photographs(folder: Path, *, reduced_above: int) -> list[np.ndarray]:
    """Read the photographs of a folder, and those reduced once more by 1/2 whose sides are then still long enough.

    Args:
        folder: PNG files.
        reduced_above: least side of the reduced ones.

    Returns:
        (H, W, 3), uint8, with sides divisible by 4.
    """
    found = [read_image(path) for path in sorted(folder.glob("*.png"))]
    smaller = [imresize(image, 0.5) for image in found if min(image.shape[:2]) >= 2 * reduced_above]
    return [image[: image.shape[0] // 4 * 4, : image.shape[1] // 4 * 4] for image in [*found, *smaller]]


class DeviceCrops:
    """Random crops with their low-resolution images, flipped and turned by quarters.

    A photograph is chosen with a probability that grows like the square root of its number of pixels.

    Args:
        images: photographs (H, W, 3), uint8, with sides divisible by the scale and of at least the crop's side.
        crop: side of the crops.
        scale: enlargement.
        device: holds all photographs, 3 bytes a pixel.
    """

    def __init__(self, images: Sequence[np.ndarray], *, crop: int, scale: int, device: torch.device) -> None:
        low = [imresize(image, 1 / scale) for image in images]
        self._high, self._low = _Pixels(images, device), _Pixels(low, device)
        chances = np.sqrt([float(image.shape[0] * image.shape[1]) for image in images])
        self._cumulative = torch.from_numpy(np.cumsum(chances) / chances.sum()).float().to(device)
        self._crop, self._scale, self._device = crop, scale, device

    def __call__(self, count: int) -> tuple[Tensor, Tensor]:
        """Return crops (count, 3, crop, crop) and their low-resolution images in [0, 1], with channels last in memory.

        They are drawn from torch's generator of the device.
        """
        chosen = torch.searchsorted(self._cumulative, self._random(count)).clamp_(max=len(self._cumulative) - 1)
        side = self._crop // self._scale
        corner = [(self._random(count) * (length[chosen] - side + 1)).long() for length in self._low.sides]
        flips = [(self._random(count) < 0.5)[:, None, None] for _ in range(3)]
        high = self._high.cut(chosen, [self._scale * place for place in corner], self._crop, flips)
        return high, self._low.cut(chosen, corner, side, flips)

    def _random(self, count: int) -> Tensor:
        return torch.rand(count, device=self._device)


class _Pixels:
    """Images of different sizes, one after the other."""

    def __init__(self, images: Sequence[np.ndarray], device: torch.device) -> None:
        self._values = torch.from_numpy(np.concatenate([image.reshape(-1, 3) for image in images])).to(device)
        sizes = torch.tensor([image.shape[:2] for image in images], device=device)
        self.sides = sizes.unbind(1)
        self._starts = sizes.prod(1).cumsum(0) - sizes.prod(1)

    def cut(self, images: Tensor, corner: Sequence[Tensor], side: int, flips: Sequence[Tensor]) -> Tensor:
        """Return squares (B, 3, side, side) in [0, 1] of images; ``flips`` are turning, upside down and mirroring."""
        steps = torch.arange(side, device=self._values.device)
        rows, columns = steps[:, None].expand(side, side), steps[None].expand(side, side)
        turned, upside_down, mirrored = flips
        rows, columns = torch.where(turned, columns, rows), torch.where(turned, rows, columns)
        rows = torch.where(upside_down, side - 1 - rows, rows)
        columns = torch.where(mirrored, side - 1 - columns, columns)
        width = self.sides[1][images]
        first = self._starts[images] + corner[0] * width + corner[1]
        index = first[:, None, None] + rows * width[:, None, None] + columns
        return self._values[index].permute(0, 3, 1, 2).float() / 255
