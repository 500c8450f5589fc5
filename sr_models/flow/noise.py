"""The noise of training, and the condition of models that see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sr_models.flow.model import SuperResolutionFlow
from sr_models.io.resize import imresize

__all__ = ["NoisyPair", "clean_condition", "noisy_pair"]


class NoisyPair(NamedTuple):
    """Arguments of :meth:`SuperResolutionFlow.encode`."""

    hr: Tensor
    lr: Tensor
    noise: Tensor | None


def noisy_pair(
    model: SuperResolutionFlow,
    hr: Tensor,
    lr: Tensor,
    std: float,
    streams: Sequence[torch.Generator],
    *,
    width: float = 0.0,
) -> NoisyPair:
    r"""Add the noise of a training step to a batch of images.

    Most models see :math:`hr + \sigma \varepsilon` with a fixed :math:`\sigma`, or uniform noise instead. A
    noise-conditional one draws
    :math:`c \sim U(0, M)` for every image (Kim and Son, NCSR, 2021, section 3.2). It sees :math:`hr + v` with
    :math:`v = c \, \varepsilon`, and the low-resolution image plus :math:`v` reduced like an image. Its condition is
    :math:`v`, or c if it takes one channel of noise.

    Args:
        model: its ``noise_std`` is M.
        hr: (B, 3, H, W) in [0, 1].
        lr: (B, 3, h, w) in [0, 1].
        std: :math:`\sigma`.
        streams: generators of the CPU, one for every image.
        width: that of noise from U(0, width), where ``std`` is 0.

    Returns:
        The arguments of ``encode``.
    """
    if not (std or width or model.noise_channels):
        return NoisyPair(hr, lr, None)

    def drawn(draw: Callable[..., Tensor], *shape: int) -> Tensor:
        return torch.stack([draw(shape, generator=each, dtype=torch.float32, device="cpu") for each in streams])

    if width and not model.noise_channels:
        return NoisyPair(hr + width * _moved(drawn(torch.rand, *hr.shape[1:]), hr), lr, None)
    noise = drawn(torch.randn, *hr.shape[1:])
    if not model.noise_channels:
        return NoisyPair(hr + std * _moved(noise, hr), lr, None)
    level = model.noise_std * drawn(torch.rand, 1, 1, 1)
    noise = level * noise
    condition = noise if model.noise_channels == 3 else level
    reduced = _moved(_reduced(noise, model.scale), lr)
    return NoisyPair(hr + _moved(noise, hr), lr + reduced, _moved(condition, hr))


def _moved(noise: Tensor, like: Tensor) -> Tensor:
    """Return noise on the device and in the dtype of a tensor, without waiting for the device."""
    return noise.pin_memory().to(like, non_blocking=True) if like.is_cuda else noise.to(like)


def clean_condition(model: SuperResolutionFlow, images: Tensor) -> Tensor | None:
    """Return the noise argument for images without noise: zero, or ``None`` for a model that takes none."""
    return images.new_zeros(len(images), 1, 1, 1) if model.noise_channels else None


def _reduced(noise: Tensor, scale: int) -> Tensor:
    """Reduce noise like the low-resolution images, but neither clip nor round it."""
    batch, channels, height, width = noise.shape
    planes = noise.permute(2, 3, 0, 1).reshape(height, width, batch * channels).numpy()
    reduced = torch.from_numpy(np.moveaxis(imresize(planes, 1 / scale), -1, 0))
    return reduced.reshape(batch, channels, height // scale, width // scale)
