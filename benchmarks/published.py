"""The published composition of a super-resolution flow in plain PyTorch, with the weights of a registered model.

It is what our models are measured against, written as the papers' figures draw it. Every level's features are enlarged
and joined to one tensor. Every network joins the state to them. Actnorm, 1x1 convolution, injector and coupling are
operators of their own. Every call takes the determinants and inverses of all weights anew, and samples are decoded one
at a time. Nothing of invflow's kernels or caches is used.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import singledispatch
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from invflow import ActNorm, AffineCoupling, AffineForm, FlowSequential, FlowStep, Split, Squeeze, ZeroConv2d
from invflow.layers import InvertibleConv1x1
from sr_models import SuperResolutionFlow
from sr_models.flow.encoding import Encoding
from sr_models.flow.latents import draw_latents
from sr_models.models.ncsr import NoiseConditionalStep
from sr_models.networks.coupling import ConvActNorm, CouplingNet, Residual
from sr_models.networks.dense_block import DenseBlock
from sr_models.networks.rrdb import RRDB, RRDBEncoder

__all__ = ["PublishedFlow", "published"]

#: A state, or what a split makes of one, and its log-determinant (B,).
_Result = tuple[Any, Tensor]


def published(model: SuperResolutionFlow, *, compiled: bool = False) -> PublishedFlow:
    """Return the published composition with copies of a model's weights.

    Args:
        model: any registered model. Its actnorms are taken as they are: none is initialised from a batch.
        compiled: compile every layer and every block of the encoder; those alike share their code.

    Returns:
        A module with the same parameters under the same names, behind the prefix ``model.``, in the model's mode.

    Raises:
        ValueError: the model is a flow of the residual, which no published model is.
        TypeError: the model has a layer of which no published model is made, in a call.
    """
    if model.base != "none":
        raise ValueError(f"published: base must be 'none', got a model with {model.base!r}")
    return PublishedFlow(copy.deepcopy(model), compiled=compiled).train(model.training)


class PublishedFlow(nn.Module):
    """Encode, decode and sample as published. Make one by :func:`published`.

    Args:
        model: its modules serve as containers of parameters. None of their calls is used.
        compiled: as of :func:`published`.
    """

    def __init__(self, model: SuperResolutionFlow, *, compiled: bool = False) -> None:
        super().__init__()
        self.model = model
        self._apply_layer: Callable[..., _Result] = torch.compile(_apply, dynamic=False) if compiled else _apply
        self._apply_block = torch.compile(_residual_blocks, dynamic=False) if compiled else _residual_blocks

    def encode(self, hr: Tensor, lr: Tensor, noise: Tensor | None = None) -> Encoding:
        """Compute latents and likelihood; arguments and result as :meth:`sr_models.SuperResolutionFlow.encode`."""
        latents: list[Tensor] = []
        x, log_det = hr, hr.new_zeros(len(hr))
        for level, context in zip(self._levels(), self._contexts(lr, noise), strict=True):
            for layer in level:
                result, part = self._apply_layer(layer, x, context, inverse=False)
                *leaving, x = result if isinstance(result, list) else [result]
                latents += leaving
                log_det = log_det + part
        latents.append(x)
        log_prior = torch.stack([(-0.5 * (z**2 + _LOG_2_PI)).sum((1, 2, 3)) for z in latents]).sum(0)
        return Encoding(latents, log_det, log_prior, hr[0].numel())

    def decode(self, latents: Sequence[Tensor], lr: Tensor, noise: Tensor | None = None) -> Tensor:
        """Decode latents to images; arguments and result as :meth:`sr_models.SuperResolutionFlow.decode`."""
        *left, x = latents
        log_det = lr.new_zeros(len(lr))
        for level, context in zip(reversed(self._levels()), reversed(self._contexts(lr, noise)), strict=True):
            for layer in reversed(list(level)):
                state = [left.pop(), x] if isinstance(layer, Split) else x
                x, part = self._apply_layer(layer, state, context, inverse=True)
                log_det = log_det + part
        return x

    @torch.no_grad()
    def sample(self, lr: Tensor, n: int = 1, *, temperature: float = 0.9, seed: int = 0) -> Tensor:
        """Draw samples one at a time, each with an evaluation of everything.

        The latents are those of :meth:`sr_models.SuperResolutionFlow.sample`.

        Args:
            lr: (1, 3, h, w) in [0, 1], of a size that the levels can halve.
            n: number of samples.
            temperature: standard deviation of the latents.
            seed: of the latents.

        Returns:
            (1, n, 3, scale h, scale w), clamped to [0, 1].
        """
        shapes = self.model.latent_shapes(*lr.shape[2:])
        noise = lr.new_zeros(1, 1, 1, 1) if self.model.noise_channels else None
        samples = []
        for index in range(n):
            latents = [latent.to(lr) for latent in draw_latents(shapes, [index], temperature, seed)]
            samples.append(self.decode(latents, lr, noise).clamp(0, 1))
        return torch.stack(samples, 1)

    def _levels(self) -> list[FlowSequential]:
        return [cast(FlowSequential, level) for level in self.model.levels]

    def _contexts(self, lr: Tensor, noise: Tensor | None) -> list[tuple[Tensor, Tensor | None]]:
        """Compute every level's features, joined at its resolution, and the noise at that resolution if it sees it."""
        heights = [shapes.state[1] for shapes in self.model.level_shapes(*lr.shape[2:])]
        assert self.model.encoder is not None
        factors = [height / lr.shape[2] for height in heights]
        features = _features(self.model.encoder, lr, factors, self._apply_block)
        return [
            (joined, None if noise is None or not noisy else _resized(noise, joined, self.model.noise_channels))
            for joined, noisy in zip(features, self.model.noise_steps, strict=True)
        ]


_LOG_2_PI = 1.8378770664093453


def _resized(noise: Tensor, features: Tensor, channels: int) -> Tensor:
    if noise.shape[2:] == (1, 1):
        return noise.expand(len(features), channels, *features.shape[2:])
    return F.interpolate(noise, size=features.shape[2:], mode="bicubic")


def _features(
    encoder: RRDBEncoder, lr: Tensor, factors: Sequence[float], apply_block: Callable[[RRDB, Tensor], Tensor]
) -> list[Tensor]:
    """Compute feature maps of these multiples of the low resolution, each with the stacked blocks at its size."""
    x = encoder.conv_first(lr)
    stacked = []
    for index, block in enumerate(encoder.trunk):
        x = apply_block(cast(RRDB, block), x)
        if index in encoder.stacked_blocks:
            stacked.append(x)
    x = x + encoder.trunk_conv(x)
    own: dict[float, Tensor] = {0.5: F.avg_pool2d(x, 2), 1: x} if 0.5 in factors else {1: x}
    for stage in range(max(int(max(factors)), 1).bit_length() - 1):
        x = F.leaky_relu(encoder.upconvs[stage](F.interpolate(x, scale_factor=2)), 0.2)
        own[2 ** (stage + 1)] = x
    found = []
    for factor in factors:
        # an index of the nearest pixel enlarges, and below 1 keeps every second one
        blocks = [F.interpolate(block, size=own[factor].shape[2:]) for block in stacked]
        found.append(torch.cat([own[factor], *blocks], 1))
    return found


def _residual_blocks(block: RRDB, x: Tensor) -> Tensor:
    y = x
    for dense in block.dense:
        y = _dense_block(cast(DenseBlock, dense), y)
    return x + 0.2 * y


def _dense_block(block: DenseBlock, x: Tensor) -> Tensor:
    seen = x
    *growing, last = block.convs
    for conv in growing:
        seen = torch.cat([seen, F.leaky_relu(conv(seen), 0.2)], 1)
    return x + 0.2 * last(seen)


@singledispatch
def _apply(layer: nn.Module, x: Any, context: tuple[Tensor, Tensor | None], *, inverse: bool) -> _Result:
    """Apply a layer, or its inverse, to a state; ``context`` is the level's features and its noise."""
    raise TypeError(f"published: the published composition has no {type(layer).__name__}")


@_apply.register
def _(layer: Squeeze, x: Tensor, context: tuple[Tensor, Tensor | None], *, inverse: bool) -> _Result:
    y = F.pixel_shuffle(x, layer.factor) if inverse else F.pixel_unshuffle(x, layer.factor)
    return y, x.new_zeros(len(x))


@_apply.register
def _(layer: Split, x: Any, context: tuple[Tensor, Tensor | None], *, inverse: bool) -> _Result:
    changed, kept = x if inverse else (x[:, layer.kept :], x[:, : layer.kept])
    assert layer.net is not None
    h = _network(layer.net, kept)
    mean, log_std = h[:, 0::2], h[:, 1::2]
    log_det = -log_std.sum((1, 2, 3))
    if inverse:
        return torch.cat([kept, mean + changed * log_std.exp()], 1), -log_det
    return [(changed - mean) * (-log_std).exp(), kept], log_det


@_apply.register
def _(layer: FlowStep, x: Tensor, context: tuple[Tensor, Tensor | None], *, inverse: bool) -> _Result:
    features, _ = context

    def inject(x: Tensor) -> _Result:
        assert layer.injector is not None
        return _elementwise(x, _network(layer.injector.net, features), layer.injector.form, inverse)

    def couple(x: Tensor) -> _Result:
        assert layer.coupling is not None
        return _couple(layer.coupling, x, features, inverse)

    parts: list[Callable[[Tensor], _Result]] = [
        lambda x: _actnorm(layer.actnorm, x, inverse),
        lambda x: _conv1x1(layer.conv1x1, x, inverse),
        *([] if layer.injector is None else [inject]),
        *([] if layer.coupling is None else [couple]),
    ]
    return _in_turn(parts, x, inverse)


@_apply.register
def _(layer: NoiseConditionalStep, x: Tensor, context: tuple[Tensor, Tensor | None], *, inverse: bool) -> _Result:
    features, noise = context
    parts: list[Callable[[Tensor], _Result]] = [lambda x: _apply(layer.step, x, context, inverse=inverse)]
    if layer.noise is not None and noise is not None:
        by_noise, seen = layer.noise, noise
        parts.append(lambda x: _couple(by_noise, x, seen, inverse))
    parts.append(lambda x: _couple(layer.coupling, x, features, inverse))
    return _in_turn(parts, x, inverse)


def _in_turn(parts: Sequence[Callable[[Tensor], _Result]], x: Tensor, inverse: bool) -> _Result:
    """Apply parts in order, or in reverse for the inverse, and add up their log-determinants."""
    log_det = x.new_zeros(len(x))
    for part in reversed(parts) if inverse else parts:
        x, more = part(x)
        log_det = log_det + more
    return x, log_det


def _actnorm(layer: ActNorm, x: Tensor, inverse: bool) -> _Result:
    bias, log_scale = layer.bias[:, None, None], layer.log_scale[:, None, None]
    log_det = x.shape[2] * x.shape[3] * layer.log_scale.sum()
    if inverse:
        return x * (-log_scale).exp() - bias, -log_det
    return (x + bias) * log_scale.exp(), log_det


def _conv1x1(layer: InvertibleConv1x1, x: Tensor, inverse: bool) -> _Result:
    log_det = x.shape[2] * x.shape[3] * torch.linalg.slogdet(layer.weight).logabsdet
    if inverse:
        weight = torch.linalg.inv(layer.weight.double()).to(x.dtype)
        return F.conv2d(x, weight[:, :, None, None]), -log_det
    return F.conv2d(x, layer.weight[:, :, None, None]), log_det


def _couple(layer: AffineCoupling, x: Tensor, context: Tensor, inverse: bool) -> _Result:
    passed, changed = x[:, : layer.start], x[:, layer.start :]
    h = _network(layer.net, torch.cat([passed, context], 1))
    y, log_det = _elementwise(changed, h, layer.form, inverse)
    return torch.cat([passed, y], 1), log_det


def _elementwise(x: Tensor, h: Tensor, form: AffineForm, inverse: bool) -> _Result:
    """Apply the map of SRFlow's released code or of its paper. Shifts are even channels of ``h``, scales odd ones."""
    shift, raw = h[:, 0::2], h[:, 1::2]
    scale = raw.exp() if form.scale == "exp" else torch.sigmoid(raw + 2.0) + form.eps
    log_det = scale.log().sum((1, 2, 3))
    if form.order == "scale_then_shift":
        y = (x - shift) / scale if inverse else x * scale + shift
    else:
        y = x / scale - shift if inverse else (x + shift) * scale
    return y, -log_det if inverse else log_det


def _network(net: nn.Module, x: Tensor) -> Tensor:
    """Evaluate a network layer by layer: normalisation and output scale act on results, not on weights."""
    if isinstance(net, CouplingNet):
        layers = list(net.in_order())
    elif isinstance(net, nn.Sequential):
        layers = list(net)
    elif isinstance(net, ConvActNorm):
        return _actnorm(net.actnorm, F.conv2d(x, net.weight, padding=net.padding), inverse=False)[0]
    elif isinstance(net, ZeroConv2d):
        return F.conv2d(x, net.weight, net.bias, padding=1) * (3 * net.log_scale).exp()[:, None, None]
    else:
        return cast(Tensor, net(x))
    y = x
    for layer in layers:
        y = _network(layer, y)
    # the one kind of sequence that does not end there: its input is added
    return x + y if isinstance(net, Residual) else y
