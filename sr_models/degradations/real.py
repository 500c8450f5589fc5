r"""Blur, noise and JPEG: low-resolution images as cameras and web sites make them.

A model that was trained on bicubic reductions expects sharp images without noise. It takes the noise and the blocks of
a photograph from a telephone for texture, and enlarges them. This degradation shows them in training.

The order is that of the classical model, :math:`y = \mathrm{JPEG}((x * k)\downarrow_s + n)`. Every image draws its own
parameters, uniformly from the ranges below. Except for the noise's dependence on brightness they are those of
Real-ESRGAN's first stage of degradation. Its second stage, its random sizes in between, its ringing and its kernels
that are not Gaussian are left out.

The result is a function of the image, the scale and the random stream, on every machine: kernel and noise are rounded
to fixed-point numbers, and sums of these are exact in any order. Only JPEG may differ. The libjpeg-turbo in Pillow's
wheels gives the same result on every processor, another libjpeg may give another.

References:
    X. Wang et al., *Real-ESRGAN: training real-world blind super-resolution with pure synthetic data*, 2021;
    A. Foi et al., *Practical Poissonian-Gaussian noise modeling and fitting for single-image raw-data*, 2008.
"""

from __future__ import annotations

import io
import math
from functools import cache

import numpy as np
import torch
from PIL import Image
from scipy.signal import fftconvolve
from scipy.special import ndtri

from sr_models.degradations.registry import register_degradation
from sr_models.io.resize import imresize

__all__ = ["add_noise", "blur", "compress", "real"]

#: Standard deviation of the blur along each of its two axes, in pixels of the low-resolution image. Real-ESRGAN: 0.2 to
#: 3 pixels of the high-resolution image at scale 4.
BLUR = (0.05, 0.75)

#: Standard deviation of the noise at medium grey, in grey levels. Real-ESRGAN: 1 to 30.
NOISE = (1.0, 30.0)

#: Probability that the noise is the same in all three colours. Real-ESRGAN: 0.4.
GREY_NOISE = 0.4

#: Quality of the JPEG file. Real-ESRGAN: 30 to 95. Colours have half the resolution, as in most files.
QUALITY = (30, 95)

# Fixed-point numbers: kernels sum to this, and normal values are multiples of its reciprocal.
_ONE = 2**16


@register_degradation("real")
def real(hr: np.ndarray, scale: int, stream: torch.Generator) -> np.ndarray:
    """Blur, bicubic reduction, noise and JPEG, each of random strength, for real photographs."""
    size = (hr.shape[0] // scale, hr.shape[1] // scale)
    return compress(add_noise(imresize(blur(hr, scale, stream), size=size), stream), stream)


def blur(hr: np.ndarray, scale: int, stream: torch.Generator) -> np.ndarray:
    """Convolve with a Gaussian of two random widths and a random direction; the image is mirrored at its border.

    Args:
        hr: array (H, W, 3), uint8.
        scale: reduction that follows; the widths grow with it.
        stream: source of the random numbers.

    Returns:
        Array (H, W, 3), uint8.
    """
    widths = [scale * _uniform(*BLUR, stream) for _ in range(2)]
    kernel = _gaussian(widths, _uniform(0, math.pi, stream))
    margin = len(kernel) // 2
    padded = np.pad(hr, ((margin, margin), (margin, margin), (0, 0)), mode="symmetric").astype(np.float64)
    # All products and sums are integers below 2^24. The transform's error is far below 1/2: rounding removes it.
    total = np.rint(fftconvolve(padded, kernel[:, :, None], mode="valid", axes=(0, 1)))
    return np.floor((total + _ONE / 2) / _ONE).astype(np.uint8)


def add_noise(lr: np.ndarray, stream: torch.Generator) -> np.ndarray:
    r"""Add normal noise, a random share of which is shot noise.

    The variance is affine in the brightness :math:`x`, as that of a sensor (Foi et al.):
    :math:`\sigma^2 (1 - a + a x / 128)`, with :math:`a` uniform in [0, 1].

    Args:
        lr: array (h, w, 3), uint8.
        stream: source of the random numbers.

    Returns:
        Array (h, w, 3), uint8.
    """
    deviation, shot = _uniform(*NOISE, stream), _uniform(0, 1, stream)
    colours = 1 if _uniform(0, 1, stream) < GREY_NOISE else 3
    draws = torch.randint(len(_normal_values()), (*lr.shape[:2], colours), generator=stream, device="cpu")
    # only operations that are rounded exactly, by the same rule on all machines
    noise = deviation * np.sqrt(1 - shot + shot * lr / 128) * _normal_values()[draws.numpy()]
    return np.clip(np.rint(lr + noise), 0, 255).astype(np.uint8)


def compress(lr: np.ndarray, stream: torch.Generator) -> np.ndarray:
    """Compress to JPEG of random quality, and decompress.

    Args:
        lr: array (h, w, 3), uint8.
        stream: source of the random numbers.

    Returns:
        Array (h, w, 3), uint8.
    """
    low, high = QUALITY
    quality = int(torch.randint(low, high + 1, (), generator=stream, device="cpu"))
    buffer = io.BytesIO()
    Image.fromarray(lr).save(buffer, format="JPEG", quality=quality, subsampling="4:2:0")
    return np.array(Image.open(buffer))


def _uniform(low: float, high: float, stream: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=stream, dtype=torch.float64, device="cpu"))


def _gaussian(widths: list[float], angle: float) -> np.ndarray:
    """Return a kernel (n, n), n odd, of integers whose sum is 2^16."""
    radius = max(1, math.ceil(3 * max(widths)))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    along, across = (math.cos(angle) * x + math.sin(angle) * y, math.cos(angle) * y - math.sin(angle) * x)
    density = np.exp(-0.5 * ((along / widths[0]) ** 2 + (across / widths[1]) ** 2))
    kernel = np.rint(density * (_ONE / density.sum()))
    kernel[radius, radius] += _ONE - kernel.sum()
    return kernel


@cache
def _normal_values() -> np.ndarray:
    """Return 2^16 equally probable normal values, within 4.2 standard deviations."""
    return np.rint(ndtri((np.arange(2**16) + 0.5) / 2**16) * _ONE) / _ONE
