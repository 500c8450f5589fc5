"""Permutation: the channels in another, fixed order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from invflow._numerics import no_log_det, state_format
from invflow.layers._checks import check_channels, check_input, check_shape
from invflow.layers.conditioning import without_context
from invflow.layers.folding import copy_folded, folding
from invflow.layers.protocol import ConditionedInverse, Shape, SharedContext

__all__ = ["Permutation"]


class Permutation(nn.Module):
    r"""Fixed permutation of the channels: :math:`y_i = x_{o(i)}`; the log-determinant is zero (Dinh et al., NICE, 2015,
    section 3.2; Kingma & Dhariwal, Glow, 2018, section 3.2, compare it with learned mixing).

    It copies the state once, where an :class:`InvertibleConv1x1` computes C^2 products a pixel. The order is kept in
    the buffer ``matrix``, uint8 (C, C), whose row i is 255 in column o(i) and else 0: a ``state_dict`` restores it.

    >>> import torch, invflow
    >>> layer = invflow.Permutation(4, "reverse")
    >>> y, log_det = layer(torch.arange(4.0)[None])
    >>> y.tolist(), log_det.tolist()
    ([[3.0, 2.0, 1.0, 0.0]], [0.0])

    Args:
        channels: number C of channels.
        order: ``"random"``, ``"reverse"``, or the numbers 0..C - 1 in the order in which the channels come out.
        seed: draws a random order from a generator of its own, the same for the same seed. Without a seed the order is
            drawn as parameters are, after ``torch.manual_seed``.

    Raises:
        ValueError: an order that is no permutation of 0..C - 1, or a seed for an order that is not random.

    Shape:
        x (B, C, *) -> y (B, C, *), log_det (B,). A channels_last layout is kept.
    """

    num_latents = 1
    takes_shared_context = True
    matrix: Tensor

    def __init__(
        self,
        channels: int,
        order: Literal["random", "reverse"] | Sequence[int] | Tensor = "random",
        *,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.channels = check_channels(self, channels)
        if seed is not None and not (isinstance(order, str) and order == "random"):
            raise ValueError(f"Permutation: seed is for a random order, got seed={seed} and order={order!r}")
        # Not the numbers themselves: an average of weights and buffers rounds whole numbers down, and 3 becomes 2. The
        # 255 may become 254, which is the largest of its row all the same.
        numbers = _order_of(channels, order, seed)
        self.register_buffer("matrix", 255 * (numbers[:, None] == torch.arange(channels)).to(torch.uint8))

    @property
    def order(self) -> Tensor:
        """Numbers o (C,), int64, of the channels in the order in which they come out."""
        return self.matrix.int().argmax(1)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_input(self, x, self.channels)
        return _channels_in_order(x, self.order), no_log_det(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_input(self, z, self.channels, "z")
        # found in every call: a buffer may be changed in place, by a checkpoint for one
        return _channels_in_order(z, self.matrix.int().argmax(0)), no_log_det(z)

    def output_shapes(self, shape: Shape) -> list[Shape]:
        return [check_shape(self, shape, self.channels)]

    def conditioned_inverse(self, context: SharedContext) -> ConditionedInverse:
        return without_context(self)

    @folding
    def folded(self) -> Permutation:
        """Return a copy: the layer is plain and constant as it is. See :class:`~invflow.layers.Foldable`."""
        return copy_folded(self)

    def extra_repr(self) -> str:
        return f"channels={self.channels}"


def _order_of(channels: int, order: str | Sequence[int] | Tensor, seed: int | None) -> Tensor:
    if isinstance(order, str):
        if order == "reverse":
            return torch.arange(channels - 1, -1, -1)
        if order == "random":
            generator = None if seed is None else torch.Generator().manual_seed(seed)
            return torch.randperm(channels, generator=generator)
        raise ValueError(f"Permutation: order must be 'random', 'reverse' or {channels} numbers, got {order!r}")
    numbers = order.tolist() if isinstance(order, Tensor) else list(order)
    if sorted(numbers) != list(range(channels)):
        raise ValueError(f"Permutation: order must hold each of 0..{channels - 1} once, got {numbers}")
    return torch.tensor(numbers, dtype=torch.int64)


def _channels_in_order(x: Tensor, order: Tensor) -> Tensor:
    if not torch.jit.is_tracing() and state_format(x) == torch.channels_last:
        return x.movedim(1, -1).index_select(-1, order).movedim(-1, 1)
    return x.index_select(1, order)
