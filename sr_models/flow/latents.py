"""The latents of a flow: drawn for samples, interpolated between images, or transferred from one to another.

Latents are lists of (B, C, H, W), one tensor for every latent, in encode order. They are standardised: those of real
images look like samples of N(0, I). Latents drawn from it therefore decode to natural images. Latents of one image,
decoded with the low-resolution image of another, give the latter the former's details.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from torch.nn import functional as F

from sr_models.randomness import random_stream

__all__ = ["TEMPERATURE", "draw_latents", "interpolate", "temperatures_of", "transfer"]

#: Temperature of samples unless a model has one of its own; that of the published figures.
TEMPERATURE = 0.9

#: Below this angle the two ways to interpolate are the same to rounding, and the spherical one divides by zero.
_SMALLEST_ANGLE = 1e-4
#: So many numbers take longer to draw than threads to start.
_WORTH_THREADS = 2**17


def temperatures_of(temperature: float | Sequence[float], latents: int) -> list[float]:
    """Give every latent its temperature.

    Args:
        temperature: one for all latents, or one a latent.
        latents: number of latents.

    Raises:
        ValueError: a temperature that is negative or not finite, or the wrong number of them.
    """
    given = [float(temperature)] * latents if isinstance(temperature, float | numbers.Real) else list(temperature)
    if len(given) != latents:
        raise ValueError(f"temperature must be a number or {latents} numbers, one a latent, got {len(given)}")
    for value in given:
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"temperature must be finite and at least 0, got {value}")
    return given


def draw_latents(
    shapes: Sequence[tuple[int, ...]],
    samples: Sequence[int],
    temperature: float | Sequence[float],
    seed: int,
    attempt: int = 0,
    *,
    pinned: bool = False,
) -> list[Tensor]:
    """Draw the latents of samples. Those of a sample depend on neither the batch nor the number of samples.

    Args:
        shapes: (C, H, W) of every latent.
        samples: indices of the samples, from 0.
        temperature: standard deviation, one number or one a latent.
        seed: in 0..2^31 - 1.
        attempt: number of the draw; every attempt gives other latents.
        pinned: return tensors in pinned memory, from which a copy to a GPU does not wait.

    Returns:
        Normal values (number of samples, C, H, W) for every latent, float32, on the CPU.

    Raises:
        TypeError: a seed that is not an integer.
        ValueError: a temperature or seed out of range, or the wrong number of temperatures.
    """
    temperatures = temperatures_of(temperature, len(shapes))
    generators = [random_stream(seed, "latents", index, attempt) for index in samples]
    latents = [
        torch.empty((len(generators), *shape), dtype=torch.float32, device="cpu", pin_memory=pinned) for shape in shapes
    ]

    def draw(index: int) -> None:
        for value, shape, latent in zip(temperatures, shapes, latents, strict=True):
            torch.randn(shape, generator=generators[index], dtype=torch.float32, device="cpu", out=latent[index]).mul_(
                value
            )

    threads = min(torch.get_num_threads(), len(generators))
    if threads > 1 and sum(map(Tensor.numel, latents)) >= _WORTH_THREADS:
        # torch draws a stream of numbers one after the other, without Python's lock
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(draw, range(len(generators))))
    else:
        for index in range(len(generators)):
            draw(index)
    return latents


def interpolate(first: Sequence[Tensor], second: Sequence[Tensor], weight: float) -> list[Tensor]:
    r"""Interpolate between the latents of two batches of images, on the sphere:

    .. math:: z = \frac{\sin((1 - w) \Omega)}{\sin \Omega} z_1 + \frac{\sin(w \Omega)}{\sin \Omega} z_2,
              \qquad \Omega = \angle(z_1, z_2)

    for every latent of every image (White, *Sampling Generative Networks*, 2016). Unlike a straight line it keeps the
    norm: halfway between two typical latents lies a typical one. The mean of both has :math:`1 / \sqrt 2` of the
    standard deviation and decodes to a picture that is too smooth.

    Args:
        first: result for weight 0.
        second: result for weight 1, of the same shapes.
        weight: w, in 0..1.

    Returns:
        Latents of the same shapes and dtypes.

    Raises:
        ValueError: different shapes, or a weight out of range.
    """
    _check_shapes(first, second, "second")
    if not 0 <= weight <= 1:
        raise ValueError(f"weight must be in 0..1, got {weight}")
    return [_interpolate(a, b, weight) for a, b in zip(first, second, strict=True)]


def _interpolate(first: Tensor, second: Tensor, weight: float) -> Tensor:
    a, b = first.double().flatten(1), second.double().flatten(1)
    norms = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    cosine = ((a * b).sum(1) / norms.clamp(min=1e-300)).clamp(-1, 1)
    # latents that are zero, opposite or alike have no arc between them
    angle = torch.where(norms > 0, cosine.acos(), 0.0)
    straight = (angle < _SMALLEST_ANGLE) | (angle > math.pi - _SMALLEST_ANGLE)
    angle = torch.where(straight, 1.0, angle)
    parts = [torch.where(straight, w, (w * angle).sin() / angle.sin())[:, None] for w in (1 - weight, weight)]
    return (parts[0] * a + parts[1] * b).reshape(first.shape).to(first.dtype)


def transfer(source: Sequence[Tensor], target: Sequence[Tensor], mask: Tensor) -> list[Tensor]:
    """Join the latents of ``source`` inside a mask with those of ``target`` outside.

    Decode the result with the low-resolution image of the target. Its content within the mask then takes the details of
    the source (Lugmayr et al., SRFlow, 2020).

    Args:
        source: latents of images.
        target: latents of other images, of the same shapes.
        mask: (B or 1, 1, H, W) in 0..1, of the high resolution. A latent takes the mask's mean over each of its pixels.
            A mean between 0 and 1 mixes both so that the variance stays.

    Returns:
        Latents of the same shapes.

    Raises:
        ValueError: different shapes, or a mask of another shape or range.
    """
    _check_shapes(source, target, "target")
    batch = source[0].shape[0]
    if mask.dim() != 4 or mask.shape[0] not in (1, batch) or mask.shape[1] != 1:
        raise ValueError(f"mask must have shape ({batch} or 1, 1, height, width), got {tuple(mask.shape)}")
    if mask.numel() and not (mask.min() >= 0 and mask.max() <= 1):
        raise ValueError(f"mask must be in 0..1, got values in {mask.min().item():g}..{mask.max().item():g}")
    for latent in source:
        if any(large % small for large, small in zip(mask.shape[2:], latent.shape[2:], strict=True)):
            raise ValueError(
                f"mask must be a multiple of every latent's size, got {tuple(mask.shape[2:])} for {tuple(latent.shape)}"
            )
    mixed = []
    for a, b in zip(source, target, strict=True):
        share = F.adaptive_avg_pool2d(mask.to(a.dtype), (a.shape[2], a.shape[3]))
        mixed.append(share.sqrt() * a + (1 - share).sqrt() * b)
    return mixed


def _check_shapes(first: Sequence[Tensor], second: Sequence[Tensor], name: str) -> None:
    expected, given = ([tuple(latent.shape) for latent in latents] for latents in (first, second))
    if not expected or expected != given:
        raise ValueError(f"{name} must have shapes {expected}, got {given}")
