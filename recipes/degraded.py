"""Low-resolution images as users bring them: sharp, noisy, compressed, drawn. The high-resolution ones agree with them.

A flow that has seen clean reductions only may explode on anything else. Here what is done to a low-resolution image is
done to the high-resolution image too: the least change that reduces to it. The model so learns to enlarge noise rather
than to remove it, and samples agree with the low resolution that was given.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from sr_models.flow.projection import project

__all__ = ["Degrading"]

#: Standard deviation of the noise, in grey levels. Less cannot be told from texture, and would blur clean images.
_NOISE = (5.0, 30.0)


class Degrading:
    """Change a share of the crops of a batch on the CPU.

    Args:
        scale: enlargement.
        share: share of the crops that is changed.
    """

    def __init__(self, *, scale: int, share: float) -> None:
        self._scale, self._share = scale, share
        self._kinds: tuple[Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], ...] = (
            _noisy,
            _sharpened,
            self._aliased,
            _compressed,
            self._drawn,
        )

    def __call__(self, hr: Tensor, lr: Tensor) -> tuple[Tensor, Tensor]:
        """Return crops (B, 3, H, W) and their low-resolution images, 8-bit values divided by 255.

        Random numbers come from torch's generator of the CPU. The high-resolution crops may leave [0, 1].
        """
        pairs = [self._changed(*pair) if _random() < self._share else pair for pair in zip(hr, lr, strict=True)]
        return torch.stack([pair[0] for pair in pairs]), torch.stack([pair[1] for pair in pairs])

    def _changed(self, hr: Tensor, lr: Tensor) -> tuple[Tensor, Tensor]:
        kind = self._kinds[int(_random() * len(self._kinds))]
        hr, changed = kind(hr, lr)
        if _random() < 0.25:
            hr, changed = _noisy(hr, changed)
        changed = (255 * changed).round().clamp(0, 255) / 255
        return project(hr, changed), changed

    def _aliased(self, hr: Tensor, lr: Tensor) -> tuple[Tensor, Tensor]:
        """One pixel of every square, as sharp as a photograph straight from a camera, or a mixture with the mean."""
        row, column = (int(_random() * self._scale) for _ in range(2))
        return hr, torch.lerp(lr, hr[:, row :: self._scale, column :: self._scale], _between(0.5, 1.0))

    def _drawn(self, hr: Tensor, lr: Tensor) -> tuple[Tensor, Tensor]:
        """Flat figures with sharp edges in a part of the crop: stripes, boards, blocks like letters."""
        side = lr.shape[1]
        size = 1 + int(3 * _random() ** 2)
        rows, columns = (torch.arange(side) // size) % 2, (torch.arange(side) // size) % 2
        kind = int(4 * _random())
        if kind == 0:
            pattern = (rows[:, None] + columns) % 2
        elif kind == 1:
            pattern = columns.expand(side, side)
        else:
            pattern = (torch.rand(side // size + 1, side // size + 1) < (0.5 if kind == 2 else 0.2)).long()
            pattern = pattern.repeat_interleave(size, 0).repeat_interleave(size, 1)[:side, :side]
        colours = torch.rand(2, 3) if _random() < 0.5 else torch.rand(2, 1).round().expand(2, 3)
        drawing = colours[pattern].permute(2, 0, 1).float()
        start, stop = sorted(int(_random() * (side + 1)) for _ in range(2))
        where = torch.zeros(1, side, side)
        where[:, start:stop] = 1
        enlarged = [
            part.repeat_interleave(self._scale, 1).repeat_interleave(self._scale, 2) for part in (drawing, where)
        ]
        return torch.where(enlarged[1] > 0, enlarged[0], hr), torch.where(where > 0, drawing, lr)


def _noisy(hr: Tensor, lr: Tensor) -> tuple[Tensor, Tensor]:
    noise = torch.randn(3 if _random() < 0.6 else 1, *lr.shape[1:])
    return hr, lr + _between(*_NOISE) / 255 * noise


def _sharpened(hr: Tensor, lr: Tensor) -> tuple[Tensor, Tensor]:
    """Unsharp masking."""
    blurred = F.avg_pool2d(F.pad(lr[None], (1, 1, 1, 1), mode="replicate"), 3, 1)[0]
    return hr, lr + _between(0.7, 2.5) * (lr - blurred)


def _compressed(hr: Tensor, lr: Tensor) -> tuple[Tensor, Tensor]:
    buffer = io.BytesIO()
    pixels = (255 * lr).round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=int(_between(20, 70)))
    return hr, torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1).float() / 255


def _random() -> float:
    return float(torch.rand(()))


def _between(low: float, high: float) -> float:
    return low + (high - low) * _random()
