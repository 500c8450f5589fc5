"""Squeeze: space to channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from invflow._numerics import compute_dtype, state_format
from invflow.layers.conditioning import without_context
from invflow.layers.folding import folding
from invflow.layers.protocol import ConditionedInverse, Shape, SharedContext
from invflow.ops._checks import check_state

__all__ = ["Squeeze"]


class Squeeze(nn.Module):
    r"""Squeeze: moves every ``factor`` x ``factor`` block of pixels into channels (Dinh et al., Real NVP, 2017,
    section 3.6). The output channel is ``c f^2 + dy f + dx``. The log-determinant is zero.

    Args:
        factor: f, at least 2.

    Shape:
        x (B, C, H, W) -> y (B, C f^2, H / f, W / f), log_det (B,). A channels_last layout is kept.
    """

    num_latents = 1
    takes_shared_context = True

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        if factor < 2:
            raise ValueError(f"Squeeze: factor must be at least 2, got {factor}")
        self.factor = factor

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_state(x)
        self._check_size(x.shape[2], x.shape[3])
        f, (batch, channels, height, width) = self.factor, x.shape
        # not pixel_unshuffle, which returns an empty batch in the shape it was given, and is slower
        if _is_channels_last(x):
            rows = x.permute(0, 2, 3, 1).reshape(batch, height // f, f, width // f, f, channels)
            blocks = rows.permute(0, 1, 3, 5, 2, 4).reshape(batch, height // f, width // f, channels * f * f)
            return blocks.permute(0, 3, 1, 2), self._log_det(x)
        blocks = x.reshape(batch, channels, height // f, f, width // f, f).permute(0, 1, 3, 5, 2, 4)
        return blocks.reshape(batch, channels * f * f, height // f, width // f), self._log_det(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_state(z, "z")
        if not torch.jit.is_tracing() and z.shape[1] % self.factor**2:
            raise ValueError(f"Squeeze: channels of z must be divisible by {self.factor**2}, got {z.shape[1]}")
        f, (batch, channels, height, width) = self.factor, z.shape
        if _is_channels_last(z):
            rows = z.permute(0, 2, 3, 1).reshape(batch, height, width, channels // (f * f), f, f)
            blocks = rows.permute(0, 1, 4, 2, 5, 3).reshape(batch, height * f, width * f, channels // (f * f))
            return blocks.permute(0, 3, 1, 2), self._log_det(z)
        blocks = z.reshape(batch, channels // (f * f), f, f, height, width).permute(0, 1, 4, 2, 5, 3)
        return blocks.reshape(batch, channels // (f * f), height * f, width * f), self._log_det(z)

    def output_shapes(self, shape: Shape) -> list[Shape]:
        f, (channels, height, width) = self.factor, shape
        self._check_size(height, width)
        return [(channels * f * f, height // f, width // f)]

    def conditioned_inverse(self, context: SharedContext) -> ConditionedInverse:
        return without_context(self)

    @folding
    def folded(self) -> Squeeze:
        """Return a copy: the layer is plain and constant as it is. See :class:`~invflow.layers.Foldable`."""
        return Squeeze(self.factor)

    def _check_size(self, height: int, width: int) -> None:
        if torch.jit.is_tracing():  # a trace would warn of every comparison of sizes
            return
        if height % self.factor or width % self.factor:
            raise ValueError(f"Squeeze: height and width must be divisible by {self.factor}, got {(height, width)}")

    @staticmethod
    def _log_det(x: Tensor) -> Tensor:
        return torch.zeros(x.shape[0], dtype=compute_dtype(x.dtype), device=x.device)

    def extra_repr(self) -> str:
        return f"factor={self.factor}"


def _is_channels_last(x: Tensor) -> bool:
    """Return whether a state is rearranged as channels_last. A trace does not ask."""
    return not torch.jit.is_tracing() and state_format(x) == torch.channels_last
