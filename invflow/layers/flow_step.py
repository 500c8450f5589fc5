"""One step of a flow: actnorm, invertible 1x1 convolution, injector, coupling."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from typing import Any, cast

import torch
from torch import Tensor, nn

from invflow._numerics import compute_dtype, pixels_of
from invflow.layers._checks import check_channels, check_context, check_input, check_shape
from invflow.layers._current import current
from invflow.layers._derived import ChannelMap, Snapshot, ValueCache, are_plain, is_plain
from invflow.layers._group import Sources
from invflow.layers._inversion import stages_of
from invflow.layers._together import map_of, present_maps
from invflow.layers.actnorm import ActNorm
from invflow.layers.conditioning import condition, context_for, over_pixels
from invflow.layers.conv1x1 import InvertibleConv1x1, InvertibleConv1x1LU
from invflow.layers.coupling import AffineCoupling
from invflow.layers.folded import FoldedMap
from invflow.layers.folding import fold, folding, naming
from invflow.layers.injector import AffineInjector
from invflow.layers.protocol import (
    ConditionedInverse,
    Context,
    InvertibleLayer,
    PendingCoupling,
    Rerun,
    Shape,
    SharedContext,
    Stage,
    is_watched,
    supports,
    watches_all,
)
from invflow.layers.sequential import FlowSequential
from invflow.ops import _transforms, flow_step
from invflow.ops._flow_step import general_flow_step
from invflow.ops._ordinary import ordinary_call

__all__ = ["FlowStep"]

#: The parts in the order of ``forward``, each with the method that a step calls instead of the part.
_FOR_PARTS = {"actnorm": "initialize", "conv1x1": "channel_map", "injector": "raw_output", "coupling": "pending"}
_FOR_SHARED_CONTEXT = {**_FOR_PARTS, "injector": "shared_output", "coupling": "shared_output"}
_OF_LAYER = ("forward", "inverse")
_STANDARD = frozenset((ActNorm, InvertibleConv1x1, InvertibleConv1x1LU, AffineInjector, AffineCoupling))
#: A step reads an actnorm's parameters and what an injector's network returns, and computes with them itself.
_OF_PART = {"actnorm": (*_OF_LAYER, "log_det", "_parameters_as"), "injector": (*_OF_LAYER, "_map")}


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
        x (B, C, *), context as injector and coupling need it -> y (B, C, *), log_det (B,).
    """

    num_latents = 1
    takes_shared_context = True

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

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        x, log_det, pending = self.forward_fused(x, context)
        if pending is None:
            return x, log_det
        z, coupling_log_det = pending.apply(x)
        return z, log_det + coupling_log_det

    def forward_fused(
        self, x: Tensor, context: Context = None, pending: PendingCoupling | None = None
    ) -> tuple[Tensor, Tensor, PendingCoupling | None]:
        """Compute ``forward`` without its coupling, and with that of the layer before.

        See :class:`invflow.layers.Fusable`.
        """
        check_input(self, x, self.channels)
        if not self._fuses_parts(called=True):
            return self._forward_by_parts(x, context, pending)
        # a module finds its parts as attributes slowly
        parts: Any = self._modules
        actnorm, coupling = parts["actnorm"], parts.get("coupling")
        if actnorm.initializes_from(x):
            # what follows must not differ from later passes: activation checkpointing compares the two
            with torch.no_grad():
                actnorm.initialize(x if pending is None else pending.apply(x)[0])
        x, log_det = self._before_coupling(x, pending, self._injector_output(x, context))
        return x, log_det, None if coupling is None else coupling.pending(x, context_for(coupling, context))

    def inverse(self, z: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        check_input(self, z, self.channels, "z")
        if not self._fuses_parts(called=False):
            return self._inverse_by_parts(z, context)
        parts: Any = self._modules
        coupling = parts.get("coupling")
        h = None if coupling is None else coupling.pending(z, context_for(coupling, context)).h
        return self.inverse_given(z, h, self._injector_output(z, context))

    def inverse_given(
        self, z: Tensor, coupling: Tensor | None, injector: Tensor | None, affine: ChannelMap | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute ``inverse`` for networks that have already been evaluated.

        Args:
            z: (B, C, *).
            coupling: output of the coupling's network; ``None`` leaves the coupling out.
            injector: output of the injector's network; ``None`` leaves the injector out. The batch of both may be a
                divisor of B.
            affine: inverse map of actnorm and convolution; ``None`` for the present one.
        """
        coupling_form, injector_form, start = None, None, 0
        if coupling is not None:
            part = cast(AffineCoupling, self._modules["coupling"])
            coupling_form, start = part.form, part.start
        if injector is not None:
            injector_form = cast(AffineInjector, self._modules["injector"]).form
        affine = self._channel_map(z.dtype, inverse=True, like=z) if affine is None else affine
        forms = {"coupling_form": coupling_form, "injector_form": injector_form, "start": start, "inverse": True}
        return self._with_map(z, affine, coupling, injector, forms)

    def output_shapes(self, shape: Shape) -> list[Shape]:
        return [check_shape(self, shape, self.channels)]

    def reverse_stages(self) -> list[Stage]:
        """Return two stages: everything up to the coupling, and the coupling. Parts of other kinds are stages each."""
        if not self._fuses_parts(called=False):
            return [stage for _, part in self._parts() for stage in stages_of(part)]
        return [Stage(self._rerun_before_coupling), *([] if self.coupling is None else stages_of(self.coupling))]

    def conditioned_inverse(self, context: SharedContext) -> ConditionedInverse:
        if not self._fuses_parts(called=False, methods=_FOR_SHARED_CONTEXT):
            inverses = [condition(part, context) for _, part in reversed(self._parts())]
            return lambda z, samples: reduce(lambda x, inverse: inverse(x, samples), inverses, z)
        injector = None if self.injector is None else self.injector.shared_output(context)
        coupling = None if self.coupling is None else self.coupling.shared_output(context)
        # a graph of the parameters would serve one backward pass only
        affine = None if torch.is_grad_enabled() else self._inverse_maps()

        def inverse(z: Tensor, part: slice) -> Tensor:
            h = None if coupling is None else coupling(z, part)
            known = None if affine is None else affine(compute_dtype(z.dtype))
            return self.inverse_given(z, h, None if injector is None else injector[part], known)[0]

        return inverse

    @folding
    def folded(self) -> FlowSequential:
        """Return a copy for inference and export: one channel map, then injector and coupling.

        See :class:`~invflow.layers.Foldable`.
        """
        parts: list[nn.Module] = [FoldedMap.of(self.actnorm, self.conv1x1)]
        for name, part in (("injector", self.injector), ("coupling", self.coupling)):
            if part is not None:
                with naming(name):
                    parts.append(fold(part))
        return FlowSequential(parts)

    def _rerun_before_coupling(self, z: Tensor, context: Context) -> Rerun:
        with torch.enable_grad():
            injector = self._injector_output(z, context)
        x, _ = self.inverse_given(z, None, None if injector is None else injector.detach())
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            return Rerun(x, [leaf], *self._before_coupling(leaf, None, injector))

    def _parts(self) -> list[tuple[str, nn.Module]]:
        """Return the parts that are there, by name, in the order of ``forward``."""
        parts = ((name, getattr(self, name)) for name in _FOR_PARTS)
        return [(name, part) for name, part in parts if part is not None]

    def _fuses_parts(self, *, called: bool, methods: dict[str, str] = _FOR_PARTS) -> bool:
        """Return whether methods of the parts may be called instead of their ``forward`` or ``inverse``.

        Args:
            called: the parts' calls count too, which hooks may watch.
            methods: name of the method for every part.
        """
        if called and watches_all():
            return False
        parts = self._modules
        for name, method in methods.items():
            part = parts.get(name)
            if part is None:
                continue
            own = part.__dict__
            is_standard = type(part) in _STANDARD and "forward" not in own and "inverse" not in own
            if not is_standard and not supports(part, method, _OF_PART.get(name, _OF_LAYER)):
                return False
            if called and is_watched(part):
                return False
        return True

    def _forward_by_parts(
        self, x: Tensor, context: Context, pending: PendingCoupling | None
    ) -> tuple[Tensor, Tensor, None]:
        total: Tensor | None = None
        if pending is not None:
            x, total = pending.apply(x)
        for _, part in self._parts():
            x, log_det = part(x, context_for(part, context))
            total = log_det if total is None else total + log_det
        assert total is not None
        return x, total, None

    def _inverse_by_parts(self, z: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        total: Tensor | None = None
        for name, part in reversed(self._parts()):
            if not callable(getattr(part, "inverse", None)):
                raise TypeError(f"FlowStep: {name}, {type(part).__name__}, has no inverse method")
            z, log_det = cast(InvertibleLayer, part).inverse(z, context_for(part, context))
            total = log_det if total is None else total + log_det
        assert total is not None
        return z, total

    def _injector_output(self, x: Tensor, context: Context) -> Tensor | None:
        parts: Any = self._modules
        injector: AffineInjector | None = parts.get("injector")
        if injector is None:
            return None
        context = context_for(injector, context)
        check_context(injector, x, context, injector.context_channels)
        return injector.raw_output(over_pixels(context, x))

    def _before_coupling(
        self, x: Tensor, pending: PendingCoupling | None, injector: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The coupling of the layer before, actnorm, convolution and injector."""
        parts: Any = self._modules
        h, form, start = (None, None, 0) if pending is None else pending
        injector_form = None if injector is None else parts["injector"].form
        forms: Any = {"coupling_form": form, "injector_form": injector_form, "start": start, "inverse": False}
        if torch.is_grad_enabled() and x.is_cpu and not _transforms.is_watched():
            sources = self.map_sources()
            if sources is not None and sources.are_trained():
                # their map and its gradients within the call
                matrix_inverse, log_abs_det = parts["conv1x1"].factors()
                found = ordinary_call(
                    x,
                    sources.weight,
                    sources.bias,
                    h,
                    injector,
                    **forms,
                    log_scale=sources.log_scale,
                    log_abs_det=log_abs_det,
                    matrix_inverse=matrix_inverse,
                )
                if found is not None:
                    return found
        return self._with_map(x, self._channel_map(x.dtype, inverse=False, like=x), h, injector, forms)

    def _with_map(
        self, x: Tensor, affine: ChannelMap, coupling: Tensor | None, injector: Tensor | None, forms: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Return y, and log_det (B,) of coupling, injector and channel map.

        Args:
            x: (B, C, *).
            affine: the channel map.
            coupling, injector: outputs of the networks.
            forms: both forms, start and direction, as :func:`invflow.flow_step` takes them.
        """
        given = x, affine.matrix, affine.shift, coupling, injector
        constant = affine.constant
        if constant is None:
            y, log_det = flow_step(*given, **forms)
        else:
            found = ordinary_call(*given, **forms, log_abs_det=constant)
            if found is not None:
                return found
            y, log_det = general_flow_step(*given, **forms)
        return y, log_det + affine.log_det(x)

    def map_sources(self) -> Sources | None:
        """Return what actnorm and convolution are derived from, if that is their parameters and nothing else."""
        parts: Any = self._modules
        actnorm, conv = parts["actnorm"], parts["conv1x1"]
        if type(actnorm) is not ActNorm or type(conv) is not InvertibleConv1x1:
            return None
        weight, bias = conv._parameters.get("weight"), actnorm._parameters.get("bias")
        log_scale = actnorm._parameters.get("log_scale")
        if weight is None or bias is None or log_scale is None or not are_plain((weight, bias, log_scale)):
            return None
        return Sources(conv, weight, bias, log_scale)

    def _inverse_maps(self) -> Callable[[torch.dtype], ChannelMap]:
        """Return the inverse map as it is now, without a graph, for states of any dtype."""
        maps = present_maps()
        if maps is not None and maps.map_of(self, torch.float64, inverse=True) is not None:
            return lambda dtype: cast(ChannelMap, maps.map_of(self, dtype, inverse=True))
        return Snapshot(partial(self._channel_map, inverse=True))

    def _channel_map(self, dtype: torch.dtype, *, inverse: bool, like: Tensor | None = None) -> ChannelMap:
        """Actnorm and convolution for states of a dtype, remembered where no gradient is asked for.

        If they are of the size of another state, a map with gradients is for that size only.
        """
        dtype = compute_dtype(dtype)
        known = map_of(self, dtype, inverse=inverse)
        if known is not None:
            return known
        parts: Any = self._modules
        actnorm: ActNorm = parts["actnorm"]
        conv: InvertibleConv1x1 = parts["conv1x1"]
        bias, log_scale, sources = current(actnorm, "bias"), current(actnorm, "log_scale"), conv.sources()
        tensors = [bias, log_scale, *sources]
        if not sources:
            return conv.channel_map(bias, log_scale, dtype, inverse=inverse)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            pixels = None if like is None else pixels_of(like)
            return conv.channel_map(bias, log_scale, dtype, inverse=inverse, pixels=pixels)
        cache = None if torch.compiler.is_compiling() else self._caches.get((dtype, inverse))
        if cache is not None and (found := cache.known(tensors)) is not None:
            return found
        if not is_plain(tensors):
            return conv.channel_map(bias, log_scale, dtype, inverse=inverse)
        if cache is None:
            cache = self._caches.setdefault((dtype, inverse), ValueCache())
        return cache(tensors, lambda: conv.channel_map(bias, log_scale, dtype, inverse=inverse))
