"""One step of a flow: actnorm, invertible 1x1 convolution, injector, coupling."""

from __future__ import annotations

from torch import Tensor, nn

from invflow.layers._checks import check_channels, check_input
from invflow.layers.actnorm import ActNorm
from invflow.layers.conv1x1 import InvertibleConv1x1
from invflow.layers.coupling import AffineCoupling
from invflow.layers.injector import AffineInjector
from invflow.ops import channel_affine
from invflow.ops._common import compute_dtype

__all__ = ["FlowStep"]


class FlowStep(nn.Module):
    r"""A flow step: actnorm, invertible 1x1 convolution and, where given, affine injector and affine coupling, in this
    order (Kingma & Dhariwal, Glow, 2018, figure 2; Lugmayr et al., SRFlow, 2020, figure 3).

    Actnorm and convolution are evaluated as one pass over the state: :math:`y = M x + v` with
    :math:`M = W \operatorname{diag}(e^s)` and :math:`v = M b`; their inverse is
    :math:`x = \operatorname{diag}(e^{-s}) W^{-1} y - b`.

    Args:
        channels: C.
        injector: optional; without it the context reaches the coupling only.
        coupling: optional; without injector and coupling this is a "transition step" of SRFlow.
        conv1x1: default a new :class:`InvertibleConv1x1`.

    Shape:
        x (B, C, H, W), context as injector and coupling need it -> y (B, C, H, W), log_det (B,).
    """

    def __init__(
        self,
        channels: int,
        *,
        injector: AffineInjector | None = None,
        coupling: AffineCoupling | None = None,
        conv1x1: InvertibleConv1x1 | None = None,
    ) -> None:
        super().__init__()
        self.channels = check_channels(self, channels)
        self.actnorm = ActNorm(channels)
        self.conv1x1 = InvertibleConv1x1(channels) if conv1x1 is None else conv1x1
        self.injector = injector
        self.coupling = coupling
        for name, part in (("conv1x1", self.conv1x1), ("injector", injector), ("coupling", coupling)):
            if part is not None and part.channels != channels:
                raise ValueError(f"FlowStep: {name} must have {channels} channels, got {part.channels}")

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_input(self, x, self.channels)
        self.actnorm.initialize_if_needed(x)
        matrix = self.conv1x1.matrix() * self.actnorm.log_scale.double().exp()
        shift = matrix @ self.actnorm.bias.double()
        dtype = compute_dtype(x.dtype)
        log_det = self._affine_log_det(x)
        x = channel_affine(x, matrix.to(dtype), shift.to(dtype))
        for layer in (self.injector, self.coupling):
            if layer is not None:
                x, layer_log_det = layer(x, context)
                log_det = log_det + layer_log_det
        return x, log_det

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_input(self, z, self.channels, "z")
        log_det = -self._affine_log_det(z)
        for layer in (self.coupling, self.injector):
            if layer is not None:
                z, layer_log_det = layer.inverse(z, context)
                log_det = log_det + layer_log_det
        matrix = (-self.actnorm.log_scale.double()).exp()[:, None] * self.conv1x1.inverse_matrix()
        dtype = compute_dtype(z.dtype)
        return channel_affine(z, matrix.to(dtype), -self.actnorm.bias.to(dtype)), log_det

    def _affine_log_det(self, x: Tensor) -> Tensor:
        return self.actnorm.log_det(x) + self.conv1x1.log_det(x)
