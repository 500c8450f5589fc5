"""Affine coupling: one half of the channels, and a context, decide the elementwise map of the other half."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from invflow.layers._checks import check_channels, check_context, check_input, check_shape
from invflow.layers._layouts import evaluate
from invflow.layers.conditioning import context_for, repeat_context
from invflow.layers.folded import FoldedAffine
from invflow.layers.folding import folding
from invflow.layers.protocol import (
    ConditionedInverse,
    Context,
    PendingCoupling,
    Rerun,
    Shape,
    SharedContext,
    Stage,
    is_shared,
    supports,
)
from invflow.ops import AffineForm, affine_coupling

__all__ = ["AffineCoupling"]


class AffineCoupling(nn.Module):
    r"""Affine coupling: :math:`y_1 = x_1`, :math:`y_2 = (x_2 + t) s` with :math:`(t, s)` from
    :math:`h = \text{net}(x_1, u)`; :math:`\log\det = \sum \log s` (Dinh et al., Real NVP, 2017, eq. 7; conditional on
    :math:`u` as in Lugmayr et al., SRFlow, 2020, eq. 5).

    :math:`x_1` is the first C // 2 channels and passes unchanged, so the inverse evaluates the same network.

    Args:
        channels: C, at least 2.
        net: maps x_1 (B, C // 2, H, W) to h (B, 2 (C - C // 2), H, W). It is called ``net(x_1, context)`` if
            ``context_channels`` is not 0, else ``net(x_1)``.
        context_channels: channels of the context; 0 for an unconditional coupling, which ignores any context.
        form: rule by which h becomes shift and scale; default :class:`invflow.AffineForm`.

    Shape:
        x (B, C, H, W), context (B', context_channels, H, W) -> y (B, C, H, W), log_det (B,). B' divides B: each
        context serves B / B' successive states.
    """

    num_latents = 1
    takes_shared_context = True

    def __init__(
        self, channels: int, net: nn.Module, *, context_channels: int = 0, form: AffineForm | None = None
    ) -> None:
        super().__init__()
        if check_channels(self, channels) < 2:
            raise ValueError(f"AffineCoupling: channels must be at least 2, got {channels}")
        self.channels = channels
        self.context_channels = context_channels
        self.form = AffineForm() if form is None else form
        self.net = net

    @property
    def start(self) -> int:
        """Number of the first channel that is transformed; those before it pass unchanged."""
        return self.channels // 2

    def raw_output(self, passed: Tensor, context: Context = None) -> Tensor:
        """Return the network's output h (B, 2 (C - C // 2), H, W).

        Args:
            passed: (B, C // 2, H, W), the half that is the same before and after the coupling.
            context: (B', context_channels, H, W), in one tensor or shared.
        """
        if self.context_channels and is_shared(context):
            return self._checked(context.network(self.net)(passed, slice(None)))
        if self.context_channels:
            assert isinstance(context, Tensor)
            return self._checked(evaluate(self, passed, repeat_context(context, passed.shape[0])))
        return self._checked(evaluate(self, passed))

    def pending(self, x: Tensor, context: Context) -> PendingCoupling:
        """Evaluate the network for a state ``x`` (B, C, H, W), before or after the coupling, and apply nothing yet."""
        check_context(self, x, context, self.context_channels)
        start = self.start
        return PendingCoupling(self.raw_output(x[:, :start], context), self.form, start)

    def shared_output(self, context: SharedContext) -> Callable[[Tensor, slice], Tensor]:
        """Evaluate what depends on the context only, and return the rest of :meth:`raw_output`.

        Returns:
            ``output(x, part)``: h for states ``x``, before or after the coupling, that belong to this part of the
            context's samples.
        """
        start = self.start
        if not self.context_channels:
            return lambda x, part: self.raw_output(x[:, :start])
        if not supports(self, "shared_output", ("raw_output", "pending")):
            joined = context.joined()
            return lambda x, part: self.pending(x, joined[part]).h
        output = context.network(self.net)
        return lambda x, part: self._checked(output(x[:, :start], part))

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
        with torch.enable_grad():
            passed = z[:, : self.start].detach().requires_grad_()
            h = self.raw_output(passed, context_for(self, context))
        x, _ = affine_coupling(z, h.detach(), self.form, start=self.start, inverse=True)
        changed = x[:, self.start :].detach().requires_grad_()
        with torch.enable_grad():
            outputs = affine_coupling(torch.cat([passed, changed], 1), h, self.form, start=self.start)
        return Rerun(x, [passed, changed], *outputs)

    def _transform(self, x: Tensor, context: Context, name: str, *, inverse: bool) -> tuple[Tensor, Tensor]:
        check_input(self, x, self.channels, name)
        h, form, start = self.pending(x, context_for(self, context))
        return affine_coupling(x, h, form, start=start, inverse=inverse)

    def _checked(self, h: Tensor) -> Tensor:
        expected = 2 * (self.channels - self.start)
        if h.shape[1] != expected:
            raise ValueError(f"AffineCoupling: net must return {expected} channels, got shape {tuple(h.shape)}")
        return h

    def extra_repr(self) -> str:
        return f"channels={self.channels}, context_channels={self.context_channels}, {self.form}"
