"""Squeeze: space to channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from invflow._numerics import no_log_det, state_format
from invflow.layers.conditioning import without_context
from invflow.layers.folding import folding
from invflow.layers.protocol import ConditionedInverse, Shape, SharedContext
from invflow.ops._checks import check_state

__all__ = ["Squeeze"]

_NAMES = {1: "the length", 2: "height and width", 3: "depth, height and width"}


class Squeeze(nn.Module):
    r"""Squeeze: moves every block of pixels, ``factor`` along each spatial dimension, into channels (Dinh et al., Real
    NVP, 2017, section 3.6). The output channel of an image is ``c f^2 + dy f + dx``. The log-determinant is zero.

    Args:
        factor: f, at least 2.

    Shape:
        x (B, C, H, W) -> y (B, C f^2, H / f, W / f), log_det (B,). A sequence (B, C, N) becomes (B, C f, N / f), and a
        volume (B, C, D, H, W) becomes (B, C f^3, D / f, H / f, W / f). A vector is refused. A layout in which channels
        are neighbours, such as channels_last, is kept.
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
        batch, channels, *spatial = x.shape
        self._check_size(x.shape, spatial)
        f, n = self.factor, len(spatial)
        divided = [size // f for size in spatial]
        # not pixel_unshuffle, which returns an empty batch in the shape it was given, and is slower
        pairs = [size for part in divided for size in (part, f)]
        squeezed = channels * f**n
        if _is_channels_last(x):
            rows = x.movedim(1, -1).reshape(batch, *pairs, channels)
            axes = (0, *range(1, 2 * n, 2), 2 * n + 1, *range(2, 2 * n + 1, 2))
            blocks = rows.permute(axes).reshape(batch, *divided, squeezed)
            return blocks.movedim(-1, 1), no_log_det(x)
        axes = (0, 1, *range(3, 2 * n + 2, 2), *range(2, 2 * n + 1, 2))
        blocks = x.reshape(batch, channels, *pairs).permute(axes)
        return blocks.reshape(batch, squeezed, *divided), no_log_det(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_state(z, "z")
        batch, squeezed, *divided = z.shape
        f, n = self.factor, len(divided)
        if not n:
            self._check_size(z.shape, divided, "z")
        if not torch.jit.is_tracing() and squeezed % f**n:
            raise ValueError(f"Squeeze: channels of z must be divisible by {f**n}, got {squeezed}")
        channels, spatial = squeezed // f**n, [size * f for size in divided]
        if _is_channels_last(z):
            rows = z.movedim(1, -1).reshape(batch, *divided, channels, *[f] * n)
            interleaved = [axis for i in range(n) for axis in (1 + i, 2 + n + i)]
            blocks = rows.permute(0, *interleaved, 1 + n).reshape(batch, *spatial, channels)
            return blocks.movedim(-1, 1), no_log_det(z)
        interleaved = [axis for i in range(n) for axis in (2 + n + i, 2 + i)]
        blocks = z.reshape(batch, channels, *[f] * n, *divided).permute(0, 1, *interleaved)
        return blocks.reshape(batch, channels, *spatial), no_log_det(z)

    def output_shapes(self, shape: Shape) -> list[Shape]:
        f, (channels, *spatial) = self.factor, shape
        self._check_size(shape, spatial)
        return [(channels * f ** len(spatial), *(size // f for size in spatial))]

    def conditioned_inverse(self, context: SharedContext) -> ConditionedInverse:
        return without_context(self)

    @folding
    def folded(self) -> Squeeze:
        """Return a copy: the layer is plain and constant as it is. See :class:`~invflow.layers.Foldable`."""
        return Squeeze(self.factor)

    def _check_size(self, shape: Sequence[int], spatial: Sequence[int], name: str = "x") -> None:
        if not spatial:
            raise ValueError(
                f"Squeeze: {name} must have spatial dimensions, whose pixels become channels; a vector of shape "
                f"{tuple(shape)} has none"
            )
        if torch.jit.is_tracing():  # a trace would warn of every comparison of sizes
            return
        if any(size % self.factor for size in spatial):
            which = _NAMES.get(len(spatial), "all spatial dimensions")
            given = tuple(spatial) if len(spatial) > 1 else spatial[0]
            raise ValueError(f"Squeeze: {which} must be divisible by {self.factor}, got {given}")

    def extra_repr(self) -> str:
        return f"factor={self.factor}"


def _is_channels_last(x: Tensor) -> bool:
    """Return whether a state is rearranged as channels_last. A trace does not ask."""
    return not torch.jit.is_tracing() and state_format(x) == torch.channels_last
