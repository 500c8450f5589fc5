"""Trained models of normflows as flows of our layers, and back."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import normflows as nf
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from invflow.bases import DiagonalNormal, StandardNormal
from invflow.flow import Flow
from invflow.interop.normflows import _adapters as adapters
from invflow.layers import (
    ActNorm,
    AffineCoupling,
    FlowSequential,
    FlowStep,
    InvertibleConv1x1,
    InvertibleConv1x1LU,
    Squeeze,
)
from invflow.layers.conditioning import repeat_context
from invflow.layers.protocol import Shape
from invflow.ops import AffineForm

__all__ = ["convert", "convert_back"]

#: Our form for each ``scale_map`` of a coupling; ``"none"`` is one without scale.
_FORMS = {
    "sigmoid": AffineForm("sigmoid", eps=0.0),
    "sigmoid_inv": AffineForm("exp"),
    "exp": AffineForm("exp"),
    "none": AffineForm("none"),
}
_MODELS = (nf.NormalizingFlow, nf.ClassCondFlow, nf.MultiscaleFlow)
_BASES = (nf.distributions.DiagGaussian, nf.distributions.GlowBase, nf.distributions.ClassCondDiagGaussian)


@torch.no_grad()
def convert(model: nn.Module) -> Flow:
    """Return a trained model of normflows as a flow of our layers, with the same densities and samples.

    Every ``GlowBlock`` that splits channels becomes a :class:`invflow.FlowStep`, and ``Squeeze`` our own. Any other
    flow stays what it is, in an adapter (:func:`layer_of`). Parameters are copied.

    The base distributions become layers, so that all latents are N(0, I). Class-conditional ones take the labels as
    context: ``flow.log_prob(x, labels)`` and ``flow.sample(n, labels)`` with integers (B,) or one-hot rows (B, K).

    Args:
        model: a ``NormalizingFlow``, ``ClassCondFlow`` or ``MultiscaleFlow`` whose bases are ``DiagGaussian``,
            ``GlowBase`` or ``ClassCondDiagGaussian``.

    Raises:
        TypeError: another model.
        ValueError: another base distribution, or levels that are not merged along channels.
    """
    if type(model) not in _MODELS:
        names = ", ".join(kind.__name__ for kind in _MODELS)
        raise TypeError(f"convert: model must be one of normflows, {names}, got {type(model).__name__}")
    source: Any = model
    several = isinstance(model, nf.MultiscaleFlow)
    bases, flows = (source.q0, source.flows) if several else ([source.q0], [source.flows])
    layers: list[nn.Module] = []  # in the order of latents to data
    shape: Shape = tuple(_checked_base(bases[0]).shape)
    for level, base in enumerate(bases):
        kept = shape[0] if level else 0
        if level:
            _check_merge(source.merges[level - 1])
            shape = (kept + _checked_base(base).shape[0], *shape[1:])
        layers.append(_Standardize(copy.deepcopy(base), kept))
        for flow in flows[level]:
            layers.append(_layer(flow))
            if isinstance(flow, nf.flows.Squeeze):
                shape = (shape[0] // 4, 2 * shape[1], 2 * shape[2])
    if several and source.transform is not None:
        layers.append(_layer(source.transform))
    converted = Flow(FlowSequential(layers[::-1]), event_shape=shape)
    return converted.train(model.training)


@torch.no_grad()
def convert_back(flow: Flow) -> nn.Module:
    """Return a flow as a model of normflows, with the same densities and samples.

    A flow step whose coupling transforms C // 2 channels becomes a ``GlowBlock``, with its full or LU weight. What has
    no counterpart there stays our layer, in a :class:`LayerFlow`. Parameters are copied.

    Args:
        flow: what :func:`convert` returned, trained further or not; or another flow of one latent whose base is
            :class:`invflow.StandardNormal` or :class:`invflow.DiagonalNormal`.

    Returns:
        A ``MultiscaleFlow`` for several levels; else a ``NormalizingFlow``, or ``ClassCondFlow`` with labels.

    Raises:
        ValueError: a flow with :class:`invflow.Split` or another layer of several latents, or with another base.
    """
    layers = list(flow.transform)[::-1]
    bases: list[Any] = [] if isinstance(layers[0], _Standardize) else [_base_of(flow)]
    flows: list[list[nn.Module]] = [[] for _ in bases]
    for layer in layers:
        if isinstance(layer, _Standardize):
            bases.append(copy.deepcopy(layer.base))
            flows.append([])
        else:
            flows[-1] += _flows_of(layer)
    labelled = any(_is_labelled(base) for base in bases)
    if len(bases) > 1:
        merges = [nf.flows.Merge("channel") for _ in bases[1:]]
        model = nf.MultiscaleFlow(bases, flows, merges, class_cond=labelled)
    else:
        model = (nf.ClassCondFlow if labelled else nf.NormalizingFlow)(bases[0], flows[0])
    back: nn.Module = model.train(flow.training)
    return back


def _checked_base(base: Any) -> Any:
    if type(base) not in _BASES:
        names = ", ".join(kind.__name__ for kind in _BASES)
        raise ValueError(f"convert: base distributions must be {names}, got {type(base).__name__}")
    return base


def _check_merge(merge: Any) -> None:
    if type(merge) is not nf.flows.Merge or merge.mode != "channel":
        given = f"{type(merge).__name__}({getattr(merge, 'mode', '')!r})"
        raise ValueError(f"convert: levels must be merged by Merge('channel'), got {given}")


def _is_labelled(base: Any) -> bool:
    return getattr(base, "num_classes", None) is not None


def _layer(flow: Any) -> nn.Module:
    if type(flow) is nf.flows.Squeeze:
        return Squeeze()
    if type(flow) is nf.flows.GlowBlock and len(flow.flows) == 3 and "channel" in flow.flows[0].flows[0].mode:
        return _step_of(*flow.flows)
    return adapters.layer_of(copy.deepcopy(flow))


def _step_of(coupling: Any, conv: Any, actnorm: Any) -> FlowStep:
    channels = conv.num_channels
    larger = (channels + 1) // 2
    ends = {"channel": {"start": larger}, "channel_inv": {"stop": larger}}[coupling.flows[0].mode]
    affine = coupling.flows[1]
    scale = affine.scale_map if affine.scale else "none"
    step = FlowStep(
        channels,
        coupling=AffineCoupling(
            channels, _Parameters(copy.deepcopy(affine.param_map), scale), form=_FORMS[scale], **ends
        ),
        conv1x1=(InvertibleConv1x1LU if conv.use_lu else InvertibleConv1x1)(channels),
    ).to(actnorm.s)
    for own, theirs in _weights(step.conv1x1, conv):
        own.copy_(theirs)
    step.actnorm.bias.copy_(-actnorm.t.flatten())
    step.actnorm.log_scale.copy_(-actnorm.s.flatten())
    if actnorm.data_dep_init_done > 0:
        step.actnorm.mark_initialized()
    return step


def _weights(own: Any, theirs: Any) -> list[tuple[Tensor, Tensor]]:
    """Return pairs of tensors of our convolution and theirs that mean the same."""
    if not theirs.use_lu:
        return [(own.weight, theirs.W)]
    pairs = {"permutation": "P", "sign": "sign_S", "lower": "L", "upper": "U", "log_diagonal": "log_S"}
    return [(getattr(own, name), getattr(theirs, other)) for name, other in pairs.items()]


def _flows_of(layer: nn.Module) -> Sequence[nn.Module]:
    """Return a layer as flows, in the order of latents to data."""
    if isinstance(layer, adapters.FlowLayer):
        return [copy.deepcopy(layer.flow)]
    if type(layer) is Squeeze and layer.factor == 2:
        return [nf.flows.Squeeze()]
    if type(layer) is FlowStep and type(layer.coupling) is AffineCoupling and _has_counterpart(layer, layer.coupling):
        return [_block_of(layer, layer.coupling)]
    return [adapters.LayerFlow(copy.deepcopy(layer))]


def _has_counterpart(step: FlowStep, coupling: AffineCoupling) -> bool:
    plain = type(step.actnorm) is ActNorm and type(step.conv1x1) in (InvertibleConv1x1, InvertibleConv1x1LU)
    larger = (step.channels + 1) // 2
    return (
        plain
        and step.injector is None
        and not coupling.context_channels
        and tuple(coupling.halves) in ((larger, step.channels), (0, larger))
    )


def _block_of(step: FlowStep, coupling: AffineCoupling) -> nn.Module:
    net = coupling.net
    own = isinstance(net, _Parameters)
    none = coupling.form.scale == "none"
    block = nf.flows.GlowBlock(
        step.channels,
        1,  # of a network that is replaced
        scale=not none,
        scale_map=net.scale if own and not none else "exp",
        split_mode="channel" if coupling.start else "channel_inv",
        use_lu=type(step.conv1x1) is InvertibleConv1x1LU,
    ).to(step.actnorm.bias)
    affine, conv, actnorm = block.flows[0].flows[1], block.flows[1], block.flows[2]
    affine.param_map = copy.deepcopy(net.net) if own else _AsExponents(copy.deepcopy(net), coupling.form)
    for own_weight, theirs in _weights(step.conv1x1, conv):
        theirs.copy_(own_weight)
    actnorm.t.copy_(-step.actnorm.bias.reshape(actnorm.t.shape))
    actnorm.s.copy_(-step.actnorm.log_scale.reshape(actnorm.s.shape))
    if step.actnorm.initialized:
        actnorm.data_dep_init_done.fill_(1.0)
    built: nn.Module = block
    return built


def _base_of(flow: Flow) -> nn.Module:
    shapes = flow.latent_shapes()
    base = flow.base
    if len(shapes) > 1:
        raise ValueError("convert_back: flow has several latents, of a layer such as Split that normflows has not")
    if type(base) not in (StandardNormal, DiagonalNormal):
        raise ValueError(f"convert_back: base must be StandardNormal or DiagonalNormal, got {type(base).__name__}")
    made: Any = nf.distributions.DiagGaussian(shapes[0], trainable=isinstance(base, DiagonalNormal))
    like = next(flow.parameters(), None)
    made = made if like is None else made.to(like)
    if isinstance(base, DiagonalNormal):
        made.loc.copy_(base.mean)
        made.log_scale.copy_(base.log_std)
    built: nn.Module = made
    return built


class _Parameters(nn.Module):
    """The network of a coupling of normflows with its output as our couplings read it.

    normflows says how latents become data, with the shift last; our couplings say the reverse.
    """

    def __init__(self, net: nn.Module, scale: str) -> None:
        super().__init__()
        self.net, self.scale = net, scale

    def forward(self, x: Tensor) -> Tensor:
        h = self.net(x)
        if self.scale in ("exp", "none"):
            return -h
        raw = h[:, 1::2]
        return _interleaved(-h[:, 0::2], raw if self.scale == "sigmoid" else -F.logsigmoid(raw + 2))


class _AsExponents(nn.Module):
    """The network of one of our couplings with its output as normflows reads it, with the scale map ``"exp"``."""

    def __init__(self, net: nn.Module, form: AffineForm) -> None:
        super().__init__()
        self.net, self.form = net, form

    def forward(self, x: Tensor) -> Tensor:
        h = self.net(x)
        if self.form.scale == "none":
            return -h
        h, form = self.form.prepared(h, h.dtype)
        shift, raw = form.unpack(h)
        scale, log_scale = form.log_scale(raw)
        return _interleaved(-shift if form.order == "shift_then_scale" else -shift / scale, -log_scale)


def _interleaved(even: Tensor, odd: Tensor) -> Tensor:
    return torch.stack([even, odd], 2).flatten(1, 2)


class _Standardize(nn.Module):
    """The last channels leave the flow as a latent, made N(0, I) by a base distribution of normflows.

    Args:
        base: the distribution; a class-conditional one takes labels (B,) or one-hot rows (B, K) as context.
        kept: number of channels that stay; with 0 the layer has one latent.
    """

    def __init__(self, base: nn.Module, kept: int) -> None:
        super().__init__()
        self.base, self.kept = base, kept

    @property
    def num_latents(self) -> int:
        return 2 if self.kept else 1

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor | list[Tensor], Tensor]:
        kept, z = x[:, : self.kept], x[:, self.kept :]
        mean, log_std = self._moments(z, context)
        z = (z - mean) * (-log_std).exp()
        return [z, kept] if self.kept else z, -log_std.flatten(1).sum(1)

    def inverse(self, z: Any, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        leaving, *kept = z if self.kept else [z]
        mean, log_std = self._moments(leaving, context)
        return torch.cat([*kept, mean + log_std.exp() * leaving], 1), log_std.flatten(1).sum(1)

    def output_shapes(self, shape: Shape) -> list[Shape]:
        leaving = (shape[0] - self.kept, *shape[1:])
        expected = tuple(cast(Shape, self.base.shape))
        if leaving != expected:
            raise ValueError(f"the base distribution has shape {expected}, got {leaving}")
        return [leaving, (self.kept, *shape[1:])] if self.kept else [leaving]

    def _moments(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return mean and log standard deviation of every element of ``z`` (B, ...)."""
        base: Any = self.base
        mean, log_std = base.loc, base.log_scale
        if isinstance(base, nf.distributions.GlowBase):
            mean = mean * (base.loc_logs * base.logscale_factor).exp()
            log_std = log_std * (base.log_scale_logs * base.logscale_factor).exp()
        if _is_labelled(base):
            labels = _one_hot(context, base.num_classes, z)
            if isinstance(base, nf.distributions.GlowBase):
                pixels = (1,) * (z.dim() - 2)
                mean = mean + (labels @ base.loc_cc).view(*z.shape[:2], *pixels)
                log_std = log_std + (labels @ base.log_scale_cc).view(*z.shape[:2], *pixels)
            else:
                mean, log_std = ((moment @ labels.T).movedim(-1, 0) for moment in (mean, log_std))
        return mean, log_std.expand_as(z)


def _one_hot(context: Tensor | None, classes: int, z: Tensor) -> Tensor:
    """Return labels, or one-hot rows, as one-hot rows (B, K), one for every latent."""
    if context is None or not isinstance(context, Tensor) or context.dim() > 2:
        given = "None" if context is None else tuple(context.shape)
        raise ValueError(f"context must hold labels, (B,) integers or (B, {classes}) one-hot rows, got {given}")
    if context.dim() == 1:
        context = F.one_hot(context.long(), classes)
    return repeat_context(context.to(z.dtype), len(z))
