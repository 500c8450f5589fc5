"""Projection of images onto those that MATLAB's bicubic reduction makes into a given low-resolution image."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import cho_solve_banded, cholesky_banded
from torch import Tensor

from sr_models.io.resize import axis_weights

__all__ = ["Reduction", "approach", "exact_dtype", "project", "reduction_for"]

#: Rows of low-resolution pixels that one matrix product makes; more would multiply by more zeros.
_BLOCK = 32
#: After so many projections, the squared error must have fallen by a twentieth.
_STALLED = 10
#: Weights of the pseudo-inverse below this are left out. They fall by a factor of three with every pixel.
_NEGLIGIBLE = 1e-12


class Block(NamedTuple):
    """The rows of a matrix from one row to another, which have no other columns than these.

    Attributes:
        columns: columns outside of which the rows are zero.
        matrix: (rows, columns).
    """

    columns: slice
    matrix: Tensor


class Reduction:
    r"""MATLAB's antialiased bicubic reduction :math:`A` and its pseudo-inverse, for images of one size.

    Rows and columns are reduced one after the other: :math:`A X = V X H^T` with a matrix for each axis. The
    pseudo-inverse :math:`A^+ = A^T (A A^T)^{-1}` therefore is :math:`A^+ Y = V^+ Y (H^+)^T`. The matrices of an axis
    are banded, and :math:`V V^T` has a condition number of 2.

    Args:
        height, width: size of the low-resolution image.
        scale: factor of both sides, at least 1.
        dtype, device: those of the matrices, and hence of the images.

    Attributes:
        dtype: the given one.
    """

    def __init__(self, height: int, width: int, scale: int, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype = dtype
        self._axes = [
            [
                [Block(columns, torch.from_numpy(matrix).to(device, dtype)) for columns, matrix in blocks]
                for blocks in _axis_blocks(length, scale)
            ]
            for length in (height, width)
        ]

    def rows(self, images: Tensor) -> Tensor:
        """Reduce the first axis: (..., scale h, W) to (..., h, W)."""
        return _down(self._axes[0][0], images)

    def columns(self, images: Tensor) -> Tensor:
        """Reduce the second axis: (..., H, scale w) to (..., H, w)."""
        return _across(self._axes[1][0], images)

    def reduce(self, images: Tensor) -> Tensor:
        """Compute :math:`A X`: (..., scale h, scale w) to (..., h, w), not rounded."""
        return self.columns(self.rows(images))

    def lift(self, lr: Tensor) -> Tensor:
        """Compute :math:`A^+ Y`, the smallest image that reduces to ``lr``: (..., h, w) to (..., scale h, scale w)."""
        return _across(self._axes[1][1], _down(self._axes[0][1], lr))


def project(images: Tensor, lr: Tensor) -> Tensor:
    r"""Move images as little as possible, so that they reduce to a low-resolution image.

    .. math:: x + A^+ (y - A x)

    The result is not clamped. It depends linearly on both arguments, and gradients flow to both.

    References:
        Y. Bahat and T. Michaeli, *Explorable super resolution*, CVPR 2020.

    Args:
        images: (..., scale h, scale w), floating point.
        lr: (..., h, w); leading dimensions are expanded to those of ``images``.

    Returns:
        Images of the shape and the dtype of ``images``.

    Raises:
        ValueError: sizes of which one is no multiple of the other.

    Example:
        >>> images, lr = torch.rand(2, 3, 32, 24), torch.rand(2, 3, 8, 6)
        >>> nearest = project(images, lr)
        >>> torch.allclose(project(nearest, lr), nearest, atol=1e-6)
        True
    """
    a = reduction_for(images, lr, exact_dtype(images))
    return images + a.lift(lr.to(a.dtype) - a.reduce(images.to(a.dtype))).to(images.dtype)


@torch.no_grad()
def approach(images: Tensor, lr: Tensor, *, tolerance: float, passes: int) -> Tensor:
    """Move images in [0, 1] until they reduce to a low-resolution image, and keep them in [0, 1].

    Projection and clamping alternate, with Nesterov's momentum. The reduction is that of 8-bit images, which clips
    after each axis, so a white low-resolution pixel asks for white or more. Gradients do not flow.

    Args:
        images: (..., scale h, scale w), floating point.
        lr: (..., h, w) in [0, 1]; leading dimensions are expanded to those of ``images``.
        tolerance: end when no value of the reduced images is farther from ``lr`` than this.
        passes: end after so many projections, or when they no longer help.

    Returns:
        Images in [0, 1], of the shape and the dtype of ``images``.

    Raises:
        ValueError: sizes of which one is no multiple of the other.
    """
    a = reduction_for(images, lr, _loop_dtype(images))
    lr = lr.expand(*images.shape[:-2], *lr.shape[-2:])
    if images.device.type != "cpu" or images.dim() == 2 or not images.numel():
        return _approach(a, images, lr, tolerance, passes)
    # a plane alone stays in a cache, and is done as soon as it is near
    planes = zip(images.flatten(0, -3), lr.flatten(0, -3), strict=True)
    return torch.stack([_approach(a, plane, low, tolerance, passes) for plane, low in planes]).view_as(images)


def _approach(a: Reduction, images: Tensor, lr: Tensor, tolerance: float, passes: int) -> Tensor:
    x = ahead = images.to(a.dtype).clamp(0, 1)
    y, momentum, last, former = lr.to(a.dtype).clamp(0, 1), 1.0, math.inf, math.inf
    for number in range(passes):
        missing = y - a.columns(a.rows(ahead).clamp_(0, 1))
        missing = torch.where(y >= 1, missing.clamp(min=0), torch.where(y <= 0, missing.clamp(max=0), missing))
        largest, error = torch.stack([missing.abs().max(), missing.square().sum()]).tolist()
        if largest <= tolerance:
            break
        if number % _STALLED == 0:
            if error > 0.95 * former:
                break
            former = error
        momentum = 1.0 if error > last else momentum
        following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        moved = a.lift(missing).add_(ahead).clamp_(0, 1)
        ahead = torch.lerp(x, moved, 1 + (momentum - 1) / following)
        x, momentum, last = moved, following, error
    return ahead.clamp(0, 1).to(images.dtype)


def reduction_for(images: Tensor, lr: Tensor, dtype: torch.dtype) -> Reduction:
    """Return the reduction of images (..., scale h, scale w) to the size of ``lr`` (..., h, w).

    Those of the last sizes are kept.

    Raises:
        ValueError: sizes of which one is no multiple of the other.
    """
    (height, width), (high, wide) = lr.shape[-2:], images.shape[-2:]
    scale = high // max(height, 1)
    if scale < 1 or (scale * height, scale * width) != (high, wide):
        raise ValueError(f"images must have a multiple of lr's size {height} x {width}, got {high} x {wide}")
    return _reduction(height, width, scale, dtype, images.device)


@lru_cache(maxsize=16)
def _reduction(height: int, width: int, scale: int, dtype: torch.dtype, device: torch.device) -> Reduction:
    return Reduction(height, width, scale, dtype, device)


def exact_dtype(images: Tensor) -> torch.dtype:
    """Return the dtype of exact products: products of float32 may be those of bfloat16, as the user has set."""
    return torch.float32 if images.device.type == "mps" else torch.float64


def _loop_dtype(images: Tensor) -> torch.dtype:
    """Return float32 where it is faster and computes what it says, otherwise :func:`exact_dtype`."""
    if images.dtype != torch.float64 and images.device.type == "cpu":
        matmul = getattr(torch.backends.mkldnn, "matmul", None)
        if getattr(matmul, "fp32_precision", "unknown") in ("none", "ieee"):
            return torch.float32
    return exact_dtype(images)


def _down(blocks: Sequence[Block], x: Tensor) -> Tensor:
    return torch.cat([matrix @ x[..., columns, :] for columns, matrix in blocks], -2)


def _across(blocks: Sequence[Block], x: Tensor) -> Tensor:
    return torch.cat([x[..., columns] @ matrix.T for columns, matrix in blocks], -1)


def _axis_blocks(length: int, scale: int) -> list[list[tuple[slice, np.ndarray]]]:
    """Return the blocks of one axis's matrix (length, scale length), and of its pseudo-inverse."""
    weights = axis_weights(scale * length, length, 1 / scale)
    gram = (weights @ weights.T).tocoo()
    band = np.zeros((int(np.abs(gram.row - gram.col).max()) + 1, length))
    lower = gram.row >= gram.col
    band[(gram.row - gram.col)[lower], gram.col[lower]] = gram.data[lower]
    factor = cholesky_banded(band, lower=True)

    def inverse(rows: slice) -> np.ndarray:
        return cho_solve_banded((factor, True), weights[:, rows].toarray()).T

    return [_blocks(lambda rows: weights[rows].toarray(), length, 1), _blocks(inverse, length, scale)]


def _blocks(rows_of: Callable[[slice], np.ndarray], length: int, scale: int) -> list[tuple[slice, np.ndarray]]:
    found = []
    for start in range(0, length, _BLOCK):
        rows = rows_of(slice(scale * start, scale * min(start + _BLOCK, length)))
        used = np.flatnonzero((np.abs(rows) > _NEGLIGIBLE).any(0))
        columns = slice(int(used[0]), int(used[-1]) + 1)
        found.append((columns, np.where(np.abs(rows) > _NEGLIGIBLE, rows, 0)[:, columns]))
    return found
