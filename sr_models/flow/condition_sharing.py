"""Condition sharing: work that depends on the low-resolution image only is done once for all of its samples.

The first convolution of a coupling's network sees the passed half of the state and the features u, and is linear:
``conv(cat[z, u]) = conv_z(z) + conv_u(u)``. So ``conv_u(u)`` and the whole network of an injector serve every sample.
Channels of u that are a smaller map enlarged by pixel repetition are convolved at the size of the smaller map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, TypeGuard, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from invflow._numerics import state_format
from invflow.layers.conditioning import repeat_context
from invflow.layers.protocol import is_watched, supports, watches_all
from invflow.layers.zero_conv import is_3x3
from invflow.ops import conv3x3
from invflow.ops._finished_conv3x3 import NOTHING, Finish, Pointwise, finished_conv3x3
from invflow.ops._transforms import needs_reference
from sr_models.flow.merged_convs import MergedConvs, networks_of
from sr_models.networks.coupling import ConvActNorm, CouplingNet
from sr_models.networks.inference import PreparedRest, prepared_rest, prepared_weight
from sr_models.networks.rrdb import Features

__all__ = ["ConditionedNet", "LevelContext", "SplitNet", "features_conv"]


@runtime_checkable
class SplitNet(Protocol):
    """A network that begins with a 3x3 convolution of everything it sees."""

    @property
    def first_conv(self) -> nn.Conv2d:
        """The convolution that sees everything."""

    def rest(self, h: Tensor) -> Tensor:
        """Compute the network's result from that of ``first_conv``; may overwrite ``h``."""


@dataclass(frozen=True)
class LevelContext:
    """Context of a level of the flow: an :class:`invflow.layers.SharedContext`.

    Attributes:
        features: features of the low-resolution images.
        noise: (B, N, H, W), condition of noise-conditional layers; ``None`` leaves them out.
        merged: convolutions of the features for several networks; ``None``: every network has one of its own.
    """

    features: Features
    noise: Tensor | None = None
    merged: MergedConvs | None = field(default=None, compare=False)

    @property
    def channels(self) -> int:
        """Number of channels of the joined context."""
        return self.features.channels + (0 if self.noise is None else self.noise.shape[1])

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (B, C, H, W) of the joined context."""
        batch, _, height, width = self.features.own.shape
        return batch, self.channels, height, width

    def without_noise(self) -> LevelContext:
        """Return the context of layers that see the features only."""
        return self if self.noise is None else replace(self, noise=None)

    def merged_for(self, level: nn.Module) -> LevelContext:
        """Return the context for one forward pass of a level, whose networks share convolutions where it pays."""
        own = self.features.own
        if not _merges(own) or torch.compiler.is_compiling() or needs_reference():
            return self
        networks = networks_of(level, self.features.channels)
        pixels = own.shape[0] * own.shape[2] * own.shape[3]
        return replace(self, merged=MergedConvs(networks, self._split, partial(features_conv, self.features), pixels))

    def _split(self, net: nn.Module) -> tuple[Tensor, Tensor, Tensor | None] | None:
        """Return weights of passed channels and features, and the bias, of a first convolution that may be split."""
        if not _is_split(net):
            return None
        weight, bias = _first_weights(net)
        count = self.features.channels
        return *weight.split((weight.shape[1] - count, count), 1), bias

    def joined(self) -> Tensor:
        """Return the context of the level's layers, in one tensor (B, C, H, W): features, then noise."""
        features = self.features.joined()
        return features if self.noise is None else torch.cat([features, self.noise], 1)

    def conv(
        self, weight: Tensor, bias: Tensor | None, finish: Finish = NOTHING, pointwise: Pointwise | None = None
    ) -> Tensor:
        """Return the 3x3 convolution, zero-padded, of the joined context: see :func:`features_conv`."""
        if self.noise is not None:
            weight, of_noise = weight.split((self.features.channels, self.noise.shape[1]), 1)
            finish = finish._replace(addend=conv3x3(self.noise, of_noise))
        return features_conv(self.features, weight, bias, finish, pointwise)

    def network(self, net: nn.Module) -> Callable[[Tensor | None, slice], Tensor]:
        """Return a network with everything computed that depends on the context only.

        A network that cannot be split, whose call or first convolution is watched or replaced, or that initialises
        itself from its next batch, is given the joined context.

        Returns:
            ``output(passed, images)``, as in :class:`ConditionedNet`.
        """
        if _is_split(net):
            return ConditionedNet(net, self)
        joined = self.joined()

        def output(passed: Tensor | None, images: slice) -> Tensor:
            context = joined[images]
            return net(context) if passed is None else net(passed, repeat_context(context, len(passed)))

        return output


class ConditionedNet:
    """A network with the context's contribution to its first convolution already computed.

    Args:
        net: the network, which sees the passed half of a state, or nothing of it, and the context.
        context: context of B images.
    """

    def __init__(self, net: SplitNet, context: LevelContext) -> None:
        merged = None if context.noise is not None else context.merged
        taken = None if merged is None else merged.take(cast(nn.Module, net))
        self._conv: Callable[..., Tensor]
        if taken is None:
            weight, bias = _first_weights(net)
            # one node in the graph, whose gradient is one tensor, for both parts
            self._weight, of_context = weight.split((weight.shape[1] - context.channels, context.channels), 1)
            self._conv = partial(context.conv, of_context, bias)
        else:
            self._weight, part = taken
            # a copy, since the part of another tensor must not be overwritten
            self._conv = partial(part.clone, memory_format=state_format(context.features.own))
        # a network that sees the context only is evaluated once, and may then overwrite what it is given
        self._shared = None
        if self._weight.shape[1]:
            self._shared = self._conv() if taken is None else taken[1]
        self._rest: Callable[[Tensor], Tensor] = net.rest
        self._prepared: PreparedRest | None = None
        if not torch.is_grad_enabled():
            # once for all chunks of states
            self._weight = prepared_weight(self._weight)
            self._rest = prepared_rest(net) if isinstance(net, CouplingNet) else net.rest
            if isinstance(self._rest, PreparedRest):
                self._prepared = self._rest
            if self._prepared is not None and taken is None and self._shared is None:
                # its first layers belong to the convolution
                self._conv = partial(self._conv, Finish(slope=self._prepared.slope), self._prepared.pointwise)
                self._rest = self._prepared.others

    def __call__(self, passed: Tensor | None, images: slice) -> Tensor:
        """Return the output for states of some of the images.

        Args:
            passed: (B' M, C, H, W), the passed halves of M successive states of each of the B' images; ``None`` if the
                network sees the context only.
            images: B' of the B images.
        """
        if passed is None:
            return self._rest(_part(self._conv(), images))
        assert self._shared is not None
        shared = _part(self._shared, images)
        if self._prepared is not None:
            return self._prepared.after_conv(passed, self._weight, shared)
        layout = state_format(shared)
        return self._rest(finished_conv3x3(passed, self._weight, finish=Finish(shared), memory_format=layout))


def _part(x: Tensor, images: slice) -> Tensor:
    """Return the part of some images, or ``x`` itself for all: a view would be copied when it is overwritten."""
    return x if images == slice(None) else x[images]


def _parts_of(context: LevelContext) -> tuple[list[Tensor | None], int]:
    return [context.features.own, context.features.stacked, context.noise], context.features.repeat


def _context_of(parts: Iterable[Any], repeat: Any) -> LevelContext:
    own, stacked, noise = parts
    return LevelContext(Features(own, stacked, repeat), noise)


# so that memory="invert" finds its tensors
_pytree.register_pytree_node(LevelContext, _parts_of, _context_of)


def _merges(x: Tensor) -> bool:
    """Return whether one convolution is faster than several: not on a CPU, which is as busy with one network's."""
    return not x.is_cpu


def _is_split(net: nn.Module) -> TypeGuard[SplitNet]:
    """Return whether a network's first convolution may be evaluated apart from the rest now."""
    return isinstance(net, SplitNet) and supports(net, "rest") and _may_split(net) and not _waits(net)


def _first_weights(net: SplitNet) -> tuple[Tensor, Tensor | None]:
    conv = net.first_conv
    return conv.merged() if isinstance(conv, ConvActNorm) else (conv.weight, conv.bias)


def _may_split(net: SplitNet) -> bool:
    """Return whether the first convolution's weights are all that a call of the network does with its input."""
    conv = net.first_conv
    if watches_all() or is_watched(cast(nn.Module, net)) or is_watched(conv):
        return False
    # an adapter in its place has weights too, but not all of what it adds
    method = "merged" if isinstance(conv, ConvActNorm) else "_conv_forward"
    if not supports(conv, method, ("forward",)) or (isinstance(conv, ConvActNorm) and not conv.merges()):
        return False
    return is_3x3(conv)


def _waits(net: nn.Module) -> bool:
    return net.training and any(isinstance(module, ConvActNorm) and module.waits() for module in net.modules())


def features_conv(
    features: Features,
    weight: Tensor,
    bias: Tensor | None,
    finish: Finish = NOTHING,
    pointwise: Pointwise | None = None,
) -> Tensor:
    """Compute the 3x3 convolution, zero-padded, of the joined features, and what comes after it.

    Args:
        features: C channels together.
        weight: (out, C, 3, 3).
        bias: (out,) or ``None``.
        finish, pointwise: as of :func:`~invflow.ops._finished_conv3x3.finished_conv3x3`.

    Returns:
        (B, out, H, W).
    """
    if features.stacked is not None:
        weight, of_stacked = weight.split((features.own.shape[1], features.stacked.shape[1]), 1)
        stacked = Finish(finish.addend)
        addend = finished_conv3x3(features.stacked, of_stacked, repeat=features.repeat, finish=stacked)
        finish = finish._replace(addend=addend)
    return finished_conv3x3(features.own, weight, bias, finish=finish, pointwise=pointwise)
