"""Bicubic resizing that agrees with MATLAB's ``imresize`` to the last bit.

Super-resolution benchmarks define the low-resolution image as the output of MATLAB's ``imresize``. Pillow, torchvision
and ``torch.nn.functional.interpolate`` treat the borders or the rounding differently, which costs several decibels of
LR-PSNR, so this module follows the MATLAB arithmetic and nothing else.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from numbers import Integral, Real

import numpy as np
from scipy.sparse import csr_array

__all__ = ["axis_weights", "imresize"]

_KERNEL_WIDTH = 4.0


def imresize(image: np.ndarray, scale: float | None = None, *, size: Sequence[int] | None = None) -> np.ndarray:
    r"""Resize an image with the antialiased bicubic kernel of MATLAB's ``imresize``.

    Along each axis, output pixel :math:`j` (counted from 0) sits at :math:`u = (j + 1/2) / s - 1/2` of the input and is

    .. math:: y_j = \sum_i w_{ji} x_i, \qquad w_{ji} = \frac{k(t (u - i))}{\sum_l k(t (u - l))}, \qquad t = \min(s, 1)

    with the cubic convolution kernel (:math:`a = -1/2`)

    .. math:: k(d) = \begin{cases} \frac32 |d|^3 - \frac52 |d|^2 + 1 & |d| \le 1 \\
              -\frac12 |d|^3 + \frac52 |d|^2 - 4 |d| + 2 & 1 < |d| \le 2 \\ 0 & \text{otherwise.} \end{cases}

    When shrinking, :math:`t < 1` stretches the kernel, which suppresses aliasing. Pixels beyond the border mirror those
    within, the border pixel being repeated. The axis with the smaller scale comes first, the vertical one on a tie.

    References:
        R. Keys, *Cubic convolution interpolation for digital image processing*, IEEE Trans. ASSP 29(6), 1981;
        the documented behaviour of MATLAB's ``imresize(image, scale, "bicubic")``.

    Args:
        image: Image of shape (H, W) or (H, W, C), uint8 or floating point.
        scale: Factor :math:`s > 0` of both axes; the output has ``ceil(scale * H)`` by ``ceil(scale * W)`` pixels.
        size: Height and width of the output instead of ``scale``; then :math:`s` is output over input for each axis.

    Returns:
        The resized image, with the number of axes of ``image``. It is uint8 for uint8, clipped and rounded (half to
        even) after *each* axis, as MATLAB does. It is float64 for floating point, neither clipped nor rounded.

    Raises:
        TypeError: If ``image`` is not a uint8 or floating-point array, or ``scale`` or ``size`` is not made of numbers.
        ValueError: If ``image`` is empty or not 2-d or 3-d, if not exactly one of ``scale`` and ``size`` is given, or
            if they are not positive and finite.

    Example:
        >>> imresize(np.full((64, 48, 3), 7, dtype=np.uint8), 1 / 4).shape
        (16, 12, 3)
    """
    _check_image(image)
    height, width = image.shape[:2]
    if (scale is None) == (size is None):
        raise ValueError(f"give exactly one of scale and size, got scale={scale!r} and size={size!r}")
    if scale is not None:
        scales = (_check_scale(scale),) * 2
        lengths = (math.ceil(scales[0] * height), math.ceil(scales[1] * width))
    else:
        assert size is not None
        lengths = _check_size(size)
        scales = (lengths[0] / height, lengths[1] / width)

    result = image
    for axis in sorted((0, 1), key=lambda axis: scales[axis]):
        result = _resize_axis(result, axis, lengths[axis], scales[axis])
    return result


def _resize_axis(image: np.ndarray, axis: int, length: int, scale: float) -> np.ndarray:
    matrix = axis_weights(image.shape[axis], length, scale)
    columns = np.moveaxis(image, axis, 0)
    flat = columns.reshape(columns.shape[0], -1).astype(np.float64)
    resized = np.moveaxis((matrix @ flat).reshape(length, *columns.shape[1:]), 0, axis)
    if image.dtype == np.uint8:
        resized = np.clip(np.rint(resized), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(resized)


@lru_cache(maxsize=256)
def axis_weights(in_length: int, out_length: int, scale: float) -> csr_array:
    """Return the sparse matrix (out_length, in_length) by which :func:`imresize` resizes one axis.

    Args:
        in_length, out_length: lengths of the axis before and after, at least 1.
        scale: :math:`s`, positive.
    """
    stretch = min(scale, 1.0)
    support = _KERNEL_WIDTH / stretch
    # Positions count from 1, as in MATLAB: another origin gives other last bits, hence other roundings of exact halves.
    centres = np.arange(1, out_length + 1) / scale + 0.5 * (1 - 1 / scale)
    taps = math.ceil(support) + 2
    positions = np.floor(centres - support / 2)[:, None] + np.arange(taps)
    weights = stretch * _cubic(stretch * (centres[:, None] - positions))
    weights /= weights.sum(axis=1, keepdims=True)

    mirrored = (positions.astype(np.int64) - 1) % (2 * in_length)
    indices = np.minimum(mirrored, 2 * in_length - 1 - mirrored)
    starts = np.arange(out_length + 1) * taps
    matrix = csr_array((weights.ravel(), indices.ravel(), starts), shape=(out_length, in_length))
    matrix.eliminate_zeros()
    return matrix


def _cubic(distance: np.ndarray) -> np.ndarray:
    d = np.abs(distance)
    near = 1.5 * d**3 - 2.5 * d**2 + 1
    far = -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
    return np.where(d <= 1, near, np.where(d <= 2, far, 0.0))


def _check_image(image: np.ndarray) -> None:
    if not isinstance(image, np.ndarray):
        raise TypeError(f"image must be a numpy array, got {type(image).__name__}")
    if image.dtype != np.uint8 and not np.issubdtype(image.dtype, np.floating):
        raise TypeError(f"image must be uint8 or floating point, got dtype {image.dtype}")
    if image.ndim not in (2, 3) or image.size == 0:
        raise ValueError(f"image must be (H, W) or (H, W, C) and not empty, got shape {image.shape}")


def _check_scale(scale: float) -> float:
    if not isinstance(scale, Real):
        raise TypeError(f"scale must be a number, got {type(scale).__name__}")
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale must be positive and finite, got {scale!r}")
    return float(scale)


def _check_size(size: Sequence[int]) -> tuple[int, int]:
    if not isinstance(size, Sequence) or not all(isinstance(length, Integral) for length in size):
        raise TypeError(f"size must be a pair of integers (height, width), got {size!r}")
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size must be a pair of positive integers (height, width), got {size!r}")
    return int(size[0]), int(size[1])
