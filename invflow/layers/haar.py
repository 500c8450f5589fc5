"""Haar squeeze: space to channels by a wavelet, which keeps the low frequencies apart."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from invflow._numerics import compute_dtype, no_log_det, state_format
from invflow.layers.conditioning import without_context
from invflow.layers.folding import folding
from invflow.layers.protocol import ConditionedInverse, Shape, SharedContext
from invflow.ops._checks import check_state

__all__ = ["HaarSqueeze"]


class HaarSqueeze(nn.Module):
    r"""Haar squeeze: an orthonormal wavelet of every block of :math:`2^d` pixels, with its :math:`2^d` coefficients as
    channels (Ardizzone et al., Conditional Invertible Neural Networks, 2019; Xiao et al., Invertible Image Rescaling,
    2020). The log-determinant is zero, because the transform is a rotation.

    In each of the d spatial dimensions, two neighbours :math:`a, b` become :math:`(a + b) / \sqrt 2` (bit 0) and
    :math:`(a - b) / \sqrt 2` (bit 1). The bits of all dimensions, the last one lowest, are the number of the band. For
    a block of an image, with :math:`a, b` above :math:`c, d`:

    ====  =================================  ===============================
    band  coefficient                        what it holds
    ====  =================================  ===============================
    0     :math:`(a + b + c + d) / 2`        the block's mean, times 2
    1     :math:`(a - b + c - d) / 2`        difference of the columns
    2     :math:`(a + b - c - d) / 2`        difference of the rows
    3     :math:`(a - b - c + d) / 2`        difference of the diagonals
    ====  =================================  ===============================

    >>> import torch, invflow
    >>> y, log_det = invflow.HaarSqueeze()(torch.ones(1, 3, 4, 4))
    >>> tuple(y.shape), y[0, :, 0, 0].tolist(), log_det.tolist()
    ((1, 12, 2, 2), [2.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0], [0.0])

    Args:
        bands_first: order of the output channels. ``False``: :math:`c \, 2^d + \text{band}`, as in :class:`Squeeze`.
            ``True``: :math:`\text{band} \, C + c`, so that the first C channels are the state at half the size, times
            :math:`2^{d/2}`. This is the order of invertible rescaling networks (HCFlow among them), whose coefficients
            are means: those here divided by :math:`2^{d/2}`.
        means: divide by it. Band 0 is then the block's mean, and the log-determinant is :math:`-N d / 2 \ln 2` for N
            elements.

    Shape:
        x (B, C, *) with d = 1, 2 or 3 even spatial dimensions -> y (B, 2^d C, *) with half of each, log_det (B,).
        A channels_last layout is kept.
    """

    num_latents = 1
    takes_shared_context = True

    def __init__(self, *, bands_first: bool = False, means: bool = False) -> None:
        super().__init__()
        self.bands_first = bands_first
        self.means = means

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_state(x)
        sizes = x.shape[2:]
        self._check_sizes(tuple(sizes))
        y = x.to(compute_dtype(x.dtype)).unsqueeze(2)  # (B, C, bands, *)
        for dimension in range(3, 3 + len(sizes)):
            even, odd = y.unflatten(dimension, (y.shape[dimension] // 2, 2)).unbind(dimension + 1)
            y = torch.stack([even + odd, even - odd], 3).flatten(2, 3)
        y = y * 2 ** (-len(sizes) if self.means else -len(sizes) / 2)
        y = y.transpose(1, 2) if self.bands_first else y
        return _like(y.flatten(1, 2), x), self._log_det(x, -1)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_state(z, "z")
        count = z.dim() - 2
        self._check_count(count)
        bands = 2**count
        if not torch.jit.is_tracing() and z.shape[1] % bands:
            raise ValueError(f"HaarSqueeze: channels of z must be divisible by {bands}, got {z.shape[1]}")
        channels = z.shape[1] // bands
        x = z.to(compute_dtype(z.dtype))
        x = x.unflatten(1, (bands, channels) if self.bands_first else (channels, bands))
        x = x.transpose(1, 2) if self.bands_first else x
        for dimension in range(2 + count, 2, -1):
            low, high = x.unflatten(2, (x.shape[2] // 2, 2)).unbind(3)
            x = torch.stack([low + high, low - high], dimension + 1).flatten(dimension, dimension + 1)
        # all factors at once, which is exact for images
        x = x if self.means else x * 2 ** (-count / 2)
        return _like(x.squeeze(2), z), self._log_det(z, 1)

    def output_shapes(self, shape: Shape) -> list[Shape]:
        channels, *sizes = shape
        self._check_sizes(tuple(sizes))
        return [(channels * 2 ** len(sizes), *(size // 2 for size in sizes))]

    def conditioned_inverse(self, context: SharedContext) -> ConditionedInverse:
        return without_context(self)

    @folding
    def folded(self) -> HaarSqueeze:
        """Return a copy: the layer is plain and constant as it is. See :class:`~invflow.layers.Foldable`."""
        return HaarSqueeze(bands_first=self.bands_first, means=self.means)

    def _check_sizes(self, sizes: tuple[int, ...]) -> None:
        self._check_count(len(sizes))
        if torch.jit.is_tracing():  # a trace would warn of every comparison of sizes
            return
        if any(size % 2 for size in sizes):
            raise ValueError(f"HaarSqueeze: spatial dimensions must be even, got {sizes}")

    def _check_count(self, dimensions: int) -> None:
        if not 1 <= dimensions <= 3:
            raise ValueError(f"HaarSqueeze: a state must have 1 to 3 spatial dimensions, got {dimensions}")

    def _log_det(self, x: Tensor, sign: int) -> Tensor:
        if not self.means:
            return no_log_det(x)
        elements = math.prod(x.shape[1:])
        return no_log_det(x) + sign * 0.5 * math.log(2) * (x.dim() - 2) * elements

    def extra_repr(self) -> str:
        return f"bands_first={self.bands_first}, means={self.means}"


def _like(y: Tensor, x: Tensor) -> Tensor:
    """Return y with the dtype and the memory format of ``x``."""
    if not torch.jit.is_tracing() and x.dim() == 4:
        return y.to(x.dtype).contiguous(memory_format=state_format(x))
    return y.to(x.dtype)
