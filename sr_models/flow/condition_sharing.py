"""Condition sharing: what depends on the low-resolution image only is computed once for all of its samples.

The first convolution of a coupling's network sees the passed half of the state and the features u, and is linear:
``conv(cat[z, u]) = conv_z(z) + conv_u(u)``. So ``conv_u(u)`` and the whole network of an injector serve every sample.
Channels of u that are a smaller map enlarged by pixel repetition are convolved at the size of the smaller map.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from invflow import AffineCoupling, AffineInjector, FlowStep, Split, Squeeze, affine_coupling
from invflow.layers import InvertibleLayer
from sr_models.networks.coupling import ConvActNorm
from sr_models.networks.rrdb import Features

__all__ = ["ConditionedInverse", "ConditionedNet", "LevelContext", "SplitNet", "conditioned_inverse", "features_conv"]

#: ``inverse(z, images)``: a layer's inverse for states of these images, which it was conditioned on, equally many each.
ConditionedInverse = Callable[[Any, slice], Tensor]


@runtime_checkable
class SplitNet(Protocol):
    """A network that begins with a 3x3 convolution of everything it sees; ``rest`` may overwrite its argument."""

    @property
    def first_conv(self) -> nn.Conv2d: ...

    def rest(self, h: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class LevelContext:
    """What conditions a level of the flow.

    Attributes:
        features: of the low-resolution images.
        noise: (B, N, H, W), condition of noise-conditional layers; ``None`` leaves them out.
    """

    features: Features
    noise: Tensor | None = None

    def joined(self) -> Tensor:
        """The context of the level's layers, in one tensor (B, C, H, W): features, then noise."""
        features = self.features.joined()
        return features if self.noise is None else torch.cat([features, self.noise], 1)


class ConditionedNet:
    """A coupling's network with the features' contribution to its first convolution already computed.

    Args:
        net: the network, which sees the passed half of a state and features.
        features: of B images.
    """

    def __init__(self, net: SplitNet, features: Features) -> None:
        weight, bias = _first_weights(net)
        passed = weight.shape[1] - features.channels
        self._weight = weight[:, :passed]
        self._shared = features_conv(features, weight[:, passed:], bias)
        self._rest = net.rest

    def __call__(self, passed: Tensor, images: slice) -> Tensor:
        """The output for the passed halves of states of some of the images, equally many successive ones each."""
        h = F.conv2d(passed, self._weight, padding=1)
        shared = self._shared[images]
        h.unflatten(0, (len(shared), len(h) // max(len(shared), 1))).add_(shared[:, None])
        return self._rest(h)


def _first_weights(net: SplitNet) -> tuple[Tensor, Tensor | None]:
    conv = net.first_conv
    return conv.folded() if isinstance(conv, ConvActNorm) else (conv.weight, conv.bias)


def conditioned_inverse(layer: nn.Module, context: LevelContext) -> ConditionedInverse:
    """The inverse of a layer with everything computed that depends on the context only.

    A layer of another package, whose networks cannot be split, is given the joined context. A layer that holds such
    layers may have a method ``conditioned_inverse`` of its own, called with the context.
    """
    features = context.features
    if type(layer) is FlowStep and _can_share(layer.injector, layer.coupling):
        return _flow_step_inverse(layer, features)
    if type(layer) is AffineCoupling and layer.context_channels and _can_share(layer):
        net, form, start = ConditionedNet(cast(SplitNet, layer.net), features), layer.form, layer.start
        return lambda z, images: affine_coupling(z, net(z[:, :start], images), form, start=start, inverse=True)[0]
    own: Callable[[LevelContext], ConditionedInverse] | None = getattr(layer, "conditioned_inverse", None)
    if own is not None:
        return own(context)
    joined = None if isinstance(layer, Split | Squeeze) else context.joined()
    plain = cast(InvertibleLayer, layer)
    return lambda z, images: plain.inverse(z, None if joined is None else joined[images])[0]


def _can_share(*parts: AffineInjector | AffineCoupling | None) -> bool:
    """Whether the networks that see the context can be split, and none of them waits for its first batch."""
    nets = [part.net for part in parts if part is not None and part.context_channels]
    return all(isinstance(net, SplitNet) and not _waits(net) for net in nets)


def _waits(net: nn.Module) -> bool:
    return net.training and any(isinstance(module, ConvActNorm) and module.waits() for module in net.modules())


def _flow_step_inverse(step: FlowStep, features: Features) -> ConditionedInverse:
    injector: Tensor | None = None
    if step.injector is not None:
        injector_net = cast(SplitNet, step.injector.net)
        injector = injector_net.rest(features_conv(features, *_first_weights(injector_net)))
    coupling = step.coupling
    net: ConditionedNet | None = None
    if coupling is not None and coupling.context_channels:
        net = ConditionedNet(cast(SplitNet, coupling.net), features)

    def inverse(z: Tensor, images: slice) -> Tensor:
        h: Tensor | None = None
        if coupling is not None:
            passed = z[:, : coupling.start]
            h = coupling.raw_output(passed) if net is None else net(passed, images)
        return step.inverse_given(z, h, None if injector is None else injector[images])[0]

    return inverse


def features_conv(features: Features, weight: Tensor, bias: Tensor | None) -> Tensor:
    """3x3 convolution, zero-padded, of the joined features: (B, out, H, W).

    Args:
        features: of C channels together.
        weight: (out, C, 3, 3).
        bias: (out,) or ``None``.
    """
    own = features.own.shape[1]
    y = F.conv2d(features.own, weight[:, :own], bias, padding=1)
    if features.stacked is not None:
        _add_enlarged_conv(y, features.stacked, weight[:, own:], features.repeat)
    return y


class _Phases(NamedTuple):
    """Repetitions of a pixel along one axis that see the same pixels of the map before the enlargement.

    Attributes:
        taps: for every repetition, which of the three taps fall on each of the pixels that it sees.
        positions: of the repetitions, the last counted from the end.
    """

    taps: tuple[tuple[tuple[int, int, int], ...], ...]
    positions: tuple[slice, ...]


#: The first repetition sees the pixel before and its own pixel, the last one its own and the one after.
_OUTER = _Phases((((1, 0, 0), (0, 1, 1)), ((1, 1, 0), (0, 0, 1))), (slice(0, 1), slice(-1, None)))
#: All repetitions between them see their own pixel.
_INNER = _Phases((((1, 1, 1),),), (slice(1, -1),))


def _add_enlarged_conv(y: Tensor, x: Tensor, weight: Tensor, repeat: int) -> None:
    """Add to ``y`` the 3x3 convolution of ``x`` enlarged by pixel repetition, computed without enlarging it: for
    ``repeat`` = 2 a pixel takes 4 taps instead of 9, for 4 on average 25 / 16."""
    height, width = x.shape[2:]
    # (B, out, H, repeat, W, repeat)
    target = y.unflatten(3, (width, repeat)).unflatten(2, (height, repeat))
    kinds = [_OUTER] if repeat == 2 else [_OUTER, _INNER]
    for rows, columns in itertools.product(kinds, kinds):
        taps = weight.new_tensor(rows.taps), weight.new_tensor(columns.taps)
        # all repetitions of the kind in one convolution: (p, q, out, channels, rows seen, columns seen)
        kernel = torch.einsum("pai,qbj,ocij->pqocab", *taps, weight)
        part = F.conv2d(x, kernel.flatten(0, 2), padding=(kernel.shape[4] - 1, kernel.shape[5] - 1))
        part = part.unflatten(1, kernel.shape[:3])
        for (p, row), (q, column) in itertools.product(enumerate(rows.positions), enumerate(columns.positions)):
            piece = part[:, p, q, :, p : p + height, q : q + width]
            target[:, :, :, row, :, column].add_(piece[:, :, :, None, :, None])
