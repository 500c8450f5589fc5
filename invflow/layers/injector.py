"""Affine injector: a context alone decides the elementwise map of all channels."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from invflow.layers._checks import (
    check_channels,
    check_context,
    check_input,
    check_output_channels,
    check_shape,
    check_shared_channels,
)
from invflow.layers._layouts import evaluate
from invflow.layers.conditioning import context_for, over_pixels
from invflow.layers.folded import FoldedAffine
from invflow.layers.folding import folding
from invflow.layers.networks import NetFactory, network_of
from invflow.layers.protocol import (
    ConditionedInverse,
    Context,
    Rerun,
    Shape,
    SharedContext,
    Stage,
    is_shared,
    supports,
)
from invflow.ops import AffineForm, affine_coupling

__all__ = ["AffineInjector"]


class AffineInjector(nn.Module):
    r"""Affine injector: :math:`y = (x + t) s` on all channels, with :math:`(t, s)` from :math:`h = \text{net}(u)`;
    :math:`\log\det = \sum \log s` (Lugmayr et al., SRFlow, 2020, eq. 6).

    Args:
        channels: number C of channels.
        net: maps the context (B', context_channels, *), which has the pixels of x, to h (B', 2C, *), or (B', C, *) with
            the scale ``"none"``. Or a factory ``net(in_channels, out_channels)`` of such a network.
        context_channels: channels of the context, at least 1.
        form: rule by which h becomes shift and scale; default :class:`invflow.AffineForm`.

    Shape:
        x (B, C, *), context (B', context_channels, *) -> y (B, C, *), log_det (B,). B' divides B: each context serves
        B / B' successive states. A context (B', context_channels) is the same at every pixel.
    """

    num_latents = 1
    takes_shared_context = True

    def __init__(
        self, channels: int, net: nn.Module | NetFactory, *, context_channels: int, form: AffineForm | None = None
    ) -> None:
        super().__init__()
        self.channels = check_channels(self, channels)
        if context_channels < 1:
            raise ValueError(f"{type(self).__name__}: context_channels must be at least 1, got {context_channels}")
        self.context_channels = context_channels
        self.form = AffineForm() if form is None else form
        self.net = network_of(self, net, context_channels, self.form.outputs * channels)

    def raw_output(self, context: Context) -> Tensor:
        """Return the network's output h (B', 2C, *) for a context (B', context_channels, *)."""
        if is_shared(context):
            return self._checked(context.network(self.net)(None, slice(None)))
        return self._checked(evaluate(self, cast(Tensor, context)))

    def shared_output(self, context: SharedContext) -> Tensor:
        """Return :meth:`raw_output` for all B' samples of a context."""
        if not supports(self, "shared_output", ("raw_output",)):
            return self.raw_output(context.joined())
        check_shared_channels(self, context, self.context_channels)
        return self.raw_output(context)

    def _checked(self, h: Tensor) -> Tensor:
        return check_output_channels(self, h, self.form.outputs * self.channels)

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        return self._transform(x, context, "x", inverse=False)

    def inverse(self, z: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        return self._transform(z, context, "z", inverse=True)

    def output_shapes(self, shape: Shape) -> list[Shape]:
        return [check_shape(self, shape, self.channels)]

    def reverse_stages(self) -> list[Stage]:
        return [Stage(self._rerun)]

    def conditioned_inverse(self, context: SharedContext) -> ConditionedInverse:
        h = self.shared_output(context)
        return lambda z, part: self._map(z, h[part], inverse=True)[0]

    @folding
    def folded(self) -> FoldedAffine:
        """Return a copy for inference and export: see :class:`~invflow.layers.Foldable`."""
        return FoldedAffine(self)

    def _rerun(self, z: Tensor, context: Context) -> Rerun:
        # one evaluation of the network serves both directions
        with torch.enable_grad():
            h = self.raw_output(over_pixels(context_for(self, context), z))
        x = self._map(z, h.detach(), inverse=True)[0].requires_grad_()
        with torch.enable_grad():
            return Rerun(x.detach(), [x], *self._map(x, h, inverse=False))

    def _transform(self, x: Tensor, context: Context, name: str, *, inverse: bool) -> tuple[Tensor, Tensor]:
        check_input(self, x, self.channels, name)
        check_context(self, x, context, self.context_channels)
        return self._map(x, self.raw_output(over_pixels(context_for(self, context), x)), inverse=inverse)

    def _map(self, x: Tensor, h: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        """Map states as the network's output says, and return log_det too."""
        return affine_coupling(x, h, self.form, start=0, inverse=inverse)

    def extra_repr(self) -> str:
        return f"channels={self.channels}, context_channels={self.context_channels}, {self.form}"
