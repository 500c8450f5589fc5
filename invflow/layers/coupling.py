"""Affine coupling: one half of the channels, and a context, decide the affine map of the other half."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from invflow.layers._checks import check_channels, check_context, check_input
from invflow.layers._rerun import Rerun
from invflow.ops import AffineForm, affine_coupling

__all__ = ["AffineCoupling"]


class AffineCoupling(nn.Module):
    r"""Affine coupling: :math:`y_1 = x_1`, :math:`y_2 = (x_2 + t) s` with :math:`(t, s)` from
    :math:`h = \text{net}(x_1, u)`; :math:`\log\det = \sum \log s` (Dinh et al., Real NVP, 2017, eq. 7; conditional on
    :math:`u` as in Lugmayr et al., SRFlow, 2020, eq. 5).

    :math:`x_1` is the first C // 2 channels and passes unchanged, so the inverse evaluates the same network.

    Args:
        channels: C, at least 2.
        net: maps x_1 (B, C // 2, H, W) to h (B, 2 (C - C // 2), H, W); called ``net(x_1, context)`` if
            ``context_channels`` is not 0, else ``net(x_1)``.
        context_channels: channels of the context; 0 for an unconditional coupling, which ignores any context.
        form: how h becomes shift and scale.

    Shape:
        x (B, C, H, W), context (B', context_channels, H, W) -> y (B, C, H, W), log_det (B,); B' is B, or a divisor of
        it if each context serves B / B' successive states.
    """

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
        """The first channel that is transformed; those before it pass unchanged."""
        return self.channels // 2

    def raw_output(self, passed: Tensor, context: Tensor | None = None) -> Tensor:
        """The network's output h (B, 2 (C - C // 2), H, W) for the passed half (B, C // 2, H, W), which is the same
        before and after the coupling."""
        if self.context_channels:
            assert context is not None
            if len(context) != len(passed):
                context = context.repeat_interleave(len(passed) // len(context), 0)
            h = self.net(passed, context)
        else:
            h = self.net(passed)
        expected = 2 * (self.channels - self.start)
        if h.shape[1] != expected:
            raise ValueError(f"AffineCoupling: net must return {expected} channels, got shape {tuple(h.shape)}")
        return h

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._transform(x, context, "x", inverse=False)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._transform(z, context, "z", inverse=True)

    def rerun(self, z: Tensor, context: Tensor | None = None) -> Rerun:
        """One evaluation of the network for both directions, since its input passes unchanged (see :class:`Rerun`)."""
        with torch.enable_grad():
            passed = z[:, : self.start].detach().requires_grad_()
            h = self.raw_output(passed, context)
        x, _ = affine_coupling(z, h.detach(), self.form, start=self.start, inverse=True)
        changed = x[:, self.start :].detach().requires_grad_()
        with torch.enable_grad():
            outputs = affine_coupling(torch.cat([passed, changed], 1), h, self.form, start=self.start)
        return Rerun(x, [passed, changed], *outputs)

    def _transform(self, x: Tensor, context: Tensor | None, name: str, *, inverse: bool) -> tuple[Tensor, Tensor]:
        check_input(self, x, self.channels, name)
        check_context(self, x, context, self.context_channels)
        h = self.raw_output(x[:, : self.start], context)
        return affine_coupling(x, h, self.form, start=self.start, inverse=inverse)

    def extra_repr(self) -> str:
        return f"channels={self.channels}, context_channels={self.context_channels}, {self.form}"
