"""Prior of latents that a context predicts: all channels are standardised by its mean and scale."""

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
from invflow.layers.protocol import ConditionedInverse, Context, Rerun, Shape, SharedContext, Stage, is_shared
from invflow.layers.zero_conv import ZeroConv2d
from invflow.ops import AffineForm, affine_coupling
from invflow.ops._gaussian_split import PRIOR_FORM

__all__ = ["ContextPrior"]


class ContextPrior(nn.Module):
    r"""Gaussian prior with mean and scale from a context: :math:`(\mu, s) = \text{net}(u)`,
    :math:`\epsilon = (x - \mu) / s`, :math:`\log\det = -\sum \log s`
    (Liang et al., Hierarchical Conditional Flow, 2021, section 3.3).

    The prior of :math:`\epsilon` is N(0, I), so :math:`\log p(x | u) = \log N(\epsilon; 0, I) + \log\det`. It is the
    end of a flow whose latents depend on a context. :class:`Split` predicts the prior of channels from the others.

    Args:
        channels: C, at least 1.
        net: maps the context (B', context_channels, *) to h (B', 2C, *), or a factory ``net(in_channels,
            out_channels)`` of such a network; default :class:`ZeroConv2d`, which takes images only.
        context_channels: channels of the context, at least 1.
        form: rule by which h becomes shift :math:`\mu` and scale; default: :math:`e^r`, packing ``"cross"``.

    Raises:
        ValueError: numbers of channels out of range, or a form that shifts before it scales.

    Shape:
        x (B, C, *), context (B', context_channels, *) -> epsilon (B, C, *), log_det (B,). B' divides B: each context
        serves B / B' successive states. A context (B', context_channels) is the same at every pixel.
    """

    num_latents = 1
    takes_shared_context = True

    def __init__(
        self,
        channels: int,
        net: nn.Module | NetFactory = ZeroConv2d,
        *,
        context_channels: int,
        form: AffineForm | None = None,
    ) -> None:
        super().__init__()
        self.channels = check_channels(self, channels)
        if context_channels < 1:
            raise ValueError(f"ContextPrior: context_channels must be at least 1, got {context_channels}")
        form = PRIOR_FORM if form is None else form
        if form.order != "scale_then_shift":
            raise ValueError(f"ContextPrior: form must have the order 'scale_then_shift', got {form.order!r}")
        self.context_channels = context_channels
        self.form = form
        self.net = network_of(self, net, context_channels, form.outputs * channels)

    def raw_output(self, context: Context) -> Tensor:
        """Return the network's output h (B', 2C, *) for a context (B', context_channels, *)."""
        h = (
            context.network(self.net)(None, slice(None))
            if is_shared(context)
            else evaluate(self, cast(Tensor, context))
        )
        return check_output_channels(self, h, self.form.outputs * self.channels)

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        return affine_coupling(x, self._given(x, context, "x"), self.form, start=0, inverse=True)

    def inverse(self, z: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        return affine_coupling(z, self._given(z, context, "z"), self.form, start=0)

    def output_shapes(self, shape: Shape) -> list[Shape]:
        return [check_shape(self, shape, self.channels)]

    def reverse_stages(self) -> list[Stage]:
        return [Stage(self._rerun)]

    def conditioned_inverse(self, context: SharedContext) -> ConditionedInverse:
        check_shared_channels(self, context, self.context_channels)
        h = self.raw_output(context_for(self, context))
        return lambda z, part: affine_coupling(z, h[part], self.form, start=0)[0]

    @folding
    def folded(self) -> FoldedAffine:
        """Return a copy for inference and export: see :class:`~invflow.layers.Foldable`."""
        return FoldedAffine(self, standardises=True)

    def _given(self, x: Tensor, context: Context, name: str) -> Tensor:
        check_input(self, x, self.channels, name)
        check_context(self, x, context, self.context_channels)
        return self.raw_output(over_pixels(context_for(self, context), x))

    def _rerun(self, z: Tensor, context: Context) -> Rerun:
        # one evaluation of the network serves both directions
        with torch.enable_grad():
            h = self.raw_output(over_pixels(context_for(self, context), z))
        x = affine_coupling(z, h.detach(), self.form, start=0)[0].detach().requires_grad_()
        with torch.enable_grad():
            return Rerun(x.detach(), [x], *affine_coupling(x, h, self.form, start=0, inverse=True))

    def extra_repr(self) -> str:
        return f"channels={self.channels}, context_channels={self.context_channels}, {self.form}"
