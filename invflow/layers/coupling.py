"""Affine coupling: one half of the channels, and a context, decide the elementwise map of the other half."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from invflow.layers._checks import check_context, check_input, check_output_channels, check_shape
from invflow.layers._halves import call_network, halves_of, shared_network
from invflow.layers.conditioning import context_for
from invflow.layers.folded import FoldedAffine
from invflow.layers.folding import folding
from invflow.layers.networks import NetFactory, network_of
from invflow.layers.protocol import (
    ConditionedInverse,
    Context,
    PendingCoupling,
    Rerun,
    Shape,
    SharedContext,
    Stage,
    supports,
)
from invflow.ops import AffineForm, affine_coupling

__all__ = ["AffineCoupling"]


class AffineCoupling(nn.Module):
    r"""Affine coupling: :math:`y_1 = x_1`, :math:`y_2 = (x_2 + t) s` with :math:`(t, s)` from
    :math:`h = \text{net}(x_1, u)`; :math:`\log\det = \sum \log s` (Dinh et al., Real NVP, 2017, eq. 7; conditional on
    :math:`u` as in Lugmayr et al., SRFlow, 2020, eq. 5).

    :math:`x_2` are the channels ``start`` to ``stop``, by default the last C - C // 2. All others, :math:`x_1`, pass
    unchanged, so the inverse evaluates the same network.

    ================================  =======================  ==================
    arguments                         transformed              passing
    ================================  =======================  ==================
    none                              the last C - C // 2      the first C // 2
    ``start=k``                       the last C - k           the first k
    ``stop=k``                        the first k              the last C - k
    ================================  =======================  ==================

    Two couplings in turn, the second with ``stop=C // 2``, transform every channel:

    >>> import torch, invflow
    >>> from torch import nn
    >>> last = invflow.AffineCoupling(5, nn.Conv2d(2, 6, 3, padding=1))
    >>> first = invflow.AffineCoupling(5, nn.Conv2d(3, 4, 3, padding=1), stop=2)
    >>> x = torch.randn(1, 5, 4, 4)
    >>> z, log_det = invflow.FlowSequential([last, first])(x)
    >>> bool((z == x).any())
    False

    Args:
        channels: C, at least 2.
        net: maps x_1 (B, C - C', *) to h (B, 2C', *), where C' = ``stop - start``. It is called ``net(x_1, context)``
            if ``context_channels`` is not 0, else ``net(x_1)``. Its context has the pixels of x_1. With the scale
            ``"none"``, h is (B, C', *). Or a factory ``net(in_channels, out_channels)``; its network is given x_1 and
            context joined along the channels.
        context_channels: channels of the context; 0 for an unconditional coupling, which ignores any context.
        form: rule by which h becomes shift and scale; default :class:`invflow.AffineForm`.
        start: the first channel that is transformed; default C // 2, or 0 if ``stop`` is given.
        stop: the channel after the last one that is transformed; default C.

    Raises:
        ValueError: channels that are neither the first nor the last ones.

    Shape:
        x (B, C, *), context (B', context_channels, *) -> y (B, C, *), log_det (B,). B' divides B: each context serves
        B / B' successive states. A context (B', context_channels) is the same at every pixel.
    """

    num_latents = 1
    takes_shared_context = True

    def __init__(
        self,
        channels: int,
        net: nn.Module | NetFactory,
        *,
        context_channels: int = 0,
        form: AffineForm | None = None,
        start: int | None = None,
        stop: int | None = None,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.halves = halves_of(self, channels, start, stop)
        self.context_channels = context_channels
        self.form = AffineForm() if form is None else form
        passing, outputs = channels - self.halves.size, self.form.outputs * self.halves.size
        self.net = network_of(self, net, passing, outputs, context_channels=context_channels)

    @property
    def start(self) -> int:
        """Number of the first channel that is transformed."""
        return self.halves.start

    def raw_output(self, passed: Tensor, context: Context = None) -> Tensor:
        """Return the network's output h (B, 2C', *).

        Args:
            passed: (B, C - C', *), the channels that are the same before and after the coupling.
            context: (B', context_channels, *) or (B', context_channels) in one tensor, or shared.
        """
        return self._checked(call_network(self, passed, context))

    def pending(self, x: Tensor, context: Context) -> PendingCoupling:
        """Evaluate the network for a state ``x`` (B, C, *), before or after the coupling, and apply nothing yet."""
        check_context(self, x, context, self.context_channels)
        halves = self.halves
        return PendingCoupling(self.raw_output(halves.passed(x), context), self.form, halves.start)

    def shared_output(self, context: SharedContext) -> Callable[[Tensor, slice], Tensor]:
        """Evaluate what depends on the context only, and return the rest of :meth:`raw_output`.

        Returns:
            ``output(x, part)``: h for states ``x``, before or after the coupling, that belong to this part of the
            context's samples.
        """
        halves = self.halves
        if not self.context_channels:
            return lambda x, part: self.raw_output(halves.passed(x))
        if not supports(self, "shared_output", ("raw_output", "pending")):
            joined = context.joined()
            return lambda x, part: self.pending(x, joined[part]).h
        output = shared_network(self, context)
        return lambda x, part: self._checked(output(halves.passed(x), part))

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        return self._transform(x, context, "x", inverse=False)

    def inverse(self, z: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        return self._transform(z, context, "z", inverse=True)

    def output_shapes(self, shape: Shape) -> list[Shape]:
        return [check_shape(self, shape, self.channels)]

    def reverse_stages(self) -> list[Stage]:
        return [Stage(self._rerun)]

    def conditioned_inverse(self, context: SharedContext) -> ConditionedInverse:
        output, form, start = self.shared_output(context), self.form, self.start
        return lambda z, part: affine_coupling(z, output(z, part), form, start=start, inverse=True)[0]

    @folding
    def folded(self) -> FoldedAffine:
        """Return a copy for inference and export: see :class:`~invflow.layers.Foldable`."""
        return FoldedAffine(self)

    def _rerun(self, z: Tensor, context: Context) -> Rerun:
        # one evaluation of the network serves both directions, since its input passes unchanged
        halves = self.halves
        with torch.enable_grad():
            passed = halves.passed(z).detach().requires_grad_()
            h = self.raw_output(passed, context_for(self, context))
        x, _ = affine_coupling(z, h.detach(), self.form, start=halves.start, inverse=True)
        leaves = halves.in_order(passed, halves.changed(x).detach().requires_grad_())
        with torch.enable_grad():
            outputs = affine_coupling(torch.cat(leaves, 1), h, self.form, start=halves.start)
        return Rerun(x, leaves, *outputs)

    def _transform(self, x: Tensor, context: Context, name: str, *, inverse: bool) -> tuple[Tensor, Tensor]:
        check_input(self, x, self.channels, name)
        h, form, start = self.pending(x, context_for(self, context))
        return affine_coupling(x, h, form, start=start, inverse=inverse)

    def _checked(self, h: Tensor) -> Tensor:
        return check_output_channels(self, h, self.form.outputs * self.halves.size)

    def extra_repr(self) -> str:
        start, stop = self.halves
        return f"channels={self.channels}, {start=}, {stop=}, context_channels={self.context_channels}, {self.form}"
