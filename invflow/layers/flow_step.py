"""One step of a flow: actnorm, invertible 1x1 convolution, injector, coupling."""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from invflow._numerics import compute_dtype
from invflow.layers._checks import check_channels, check_context, check_input, check_shape
from invflow.layers._current import current
from invflow.layers._derived import ChannelMap, Snapshot, ValueCache, is_plain
from invflow.layers.actnorm import ActNorm
from invflow.layers.conv1x1 import InvertibleConv1x1
from invflow.layers.coupling import AffineCoupling
from invflow.layers.injector import AffineInjector
from invflow.layers.protocol import ConditionedInverse, PendingCoupling, Rerun, Shape, SharedContext, Stage
from invflow.layers.reversible import stages_of
from invflow.ops import flow_step

__all__ = ["FlowStep"]


class FlowStep(nn.Module):
    r"""A flow step: actnorm, invertible 1x1 convolution and, where given, affine injector and affine coupling, in this
    order (Kingma & Dhariwal, Glow, 2018, figure 2; Lugmayr et al., SRFlow, 2020, figure 3).

    Actnorm, convolution and injector are one pass over the state. A :class:`FlowSequential` adds the coupling of the
    step before to that pass. Actnorm and convolution are :math:`y = M x + v` with
    :math:`M = W \operatorname{diag}(e^s)` and :math:`v = M b`. The inverse is one pass too: inverse coupling, inverse
    injector and :math:`x = \operatorname{diag}(e^{-s}) W^{-1} y - b`.

    Args:
        channels: number C of channels.
        injector: optional injector; without it the context reaches the coupling only.
        coupling: optional coupling; a step without injector and coupling is a "transition step" of SRFlow.
        conv1x1: the convolution; default a new :class:`InvertibleConv1x1`.

    Shape:
        x (B, C, H, W), context as injector and coupling need it -> y (B, C, H, W), log_det (B,).
    """

    num_latents = 1

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
        self._caches: dict[tuple[torch.dtype, bool], ValueCache[ChannelMap]] = {}
        for name, part in (("conv1x1", self.conv1x1), ("injector", injector), ("coupling", coupling)):
            if part is not None and part.channels != channels:
                raise ValueError(f"FlowStep: {name} must have {channels} channels, got {part.channels}")

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, log_det, pending = self.forward_fused(x, context)
        if pending is None:
            return x, log_det
        z, coupling_log_det = pending.apply(x)
        return z, log_det + coupling_log_det

    def forward_fused(
        self, x: Tensor, context: Tensor | None = None, pending: PendingCoupling | None = None
    ) -> tuple[Tensor, Tensor, PendingCoupling | None]:
        """Compute ``forward`` without its coupling, and with that of the layer before.

        See :class:`invflow.layers.Fusable`.
        """
        # looked up once: a module finds its parts slowly
        actnorm, coupling = self.actnorm, self.coupling
        check_input(self, x, self.channels)
        before: Tensor | None = None
        if actnorm.initializes_from(x):
            if pending is not None:
                x, before = pending.apply(x)
                pending = None
            actnorm.initialize(x)
        x, log_det = self._before_coupling(x, pending, self._injector_output(x, context))
        if before is not None:
            log_det = log_det + before
        return x, log_det, None if coupling is None else coupling.pending(x, context)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        coupling = self.coupling
        check_input(self, z, self.channels, "z")
        h = None if coupling is None else coupling.pending(z, context).h
        return self.inverse_given(z, h, self._injector_output(z, context))

    def inverse_given(
        self, z: Tensor, coupling: Tensor | None, injector: Tensor | None, affine: ChannelMap | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute ``inverse`` for networks that have already been evaluated.

        Args:
            z: (B, C, H, W).
            coupling: output of the coupling's network; ``None`` leaves the coupling out.
            injector: output of the injector's network; ``None`` leaves the injector out. The batch of both may be a
                divisor of B.
            affine: inverse map of actnorm and convolution; ``None`` for the present one.
        """
        affine = self._channel_map(z.dtype, inverse=True) if affine is None else affine
        coupling_form, injector_form, start = None, None, 0
        if coupling is not None:
            part = cast(AffineCoupling, self.coupling)
            coupling_form, start = part.form, part.start
        if injector is not None:
            injector_form = cast(AffineInjector, self.injector).form
        x, log_det = flow_step(
            z,
            affine.matrix,
            affine.shift,
            coupling,
            injector,
            coupling_form=coupling_form,
            injector_form=injector_form,
            start=start,
            inverse=True,
        )
        return x, log_det + affine.log_det(z)

    def output_shapes(self, shape: Shape) -> list[Shape]:
        return [check_shape(self, shape, self.channels)]

    def reverse_stages(self) -> list[Stage]:
        """Return two stages: everything up to the coupling, and the coupling."""
        before = [part for part in (self.actnorm, self.conv1x1, self.injector) if part is not None]
        parameters: list[Tensor] = [parameter for part in before for parameter in part.parameters()]
        return [
            Stage(self._rerun_before_coupling, parameters),
            *([] if self.coupling is None else stages_of(self.coupling)),
        ]

    def conditioned_inverse(self, context: SharedContext) -> ConditionedInverse:
        injector = None if self.injector is None else self.injector.shared_output(context)
        coupling = None if self.coupling is None else self.coupling.shared_output(context)
        # a graph of the parameters would serve one backward pass only
        affine = None if torch.is_grad_enabled() else Snapshot(partial(self._channel_map, inverse=True))

        def inverse(z: Tensor, part: slice) -> Tensor:
            h = None if coupling is None else coupling(z, part)
            known = None if affine is None else affine(compute_dtype(z.dtype))
            return self.inverse_given(z, h, None if injector is None else injector[part], known)[0]

        return inverse

    def _rerun_before_coupling(self, z: Tensor, context: Tensor | None) -> Rerun:
        with torch.enable_grad():
            injector = self._injector_output(z, context)
        x, _ = self.inverse_given(z, None, None if injector is None else injector.detach())
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            return Rerun(x, [leaf], *self._before_coupling(leaf, None, injector))

    def _injector_output(self, x: Tensor, context: Tensor | None) -> Tensor | None:
        injector = self.injector
        if injector is None:
            return None
        check_context(injector, x, context, injector.context_channels)
        return injector.raw_output(context)

    def _before_coupling(
        self, x: Tensor, pending: PendingCoupling | None, injector: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The coupling of the layer before, actnorm, convolution and injector."""
        affine = self._channel_map(x.dtype, inverse=False)
        y, log_det = flow_step(
            x,
            affine.matrix,
            affine.shift,
            None if pending is None else pending.h,
            injector,
            coupling_form=None if pending is None else pending.form,
            injector_form=None if injector is None else cast(AffineInjector, self.injector).form,
            start=0 if pending is None else pending.start,
        )
        return y, log_det + affine.log_det(x)

    def _channel_map(self, dtype: torch.dtype, *, inverse: bool) -> ChannelMap:
        """Actnorm and convolution for a state of this dtype, remembered where no gradient is asked for."""
        dtype, parts = compute_dtype(dtype), self._modules
        actnorm, conv = cast(ActNorm, parts["actnorm"]), cast(InvertibleConv1x1, parts["conv1x1"])
        bias, log_scale, sources = current(actnorm, "bias"), current(actnorm, "log_scale"), conv.sources()
        tensors = [bias, log_scale, *sources]
        trained = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        if trained or not sources or not is_plain(tensors):
            return conv.channel_map(bias, log_scale, dtype, inverse=inverse)
        cache = self._caches.setdefault((dtype, inverse), ValueCache())
        return cache(tensors, lambda: conv.channel_map(bias, log_scale, dtype, inverse=inverse))
