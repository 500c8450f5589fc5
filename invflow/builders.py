"""Builders of whole flows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from torch import nn

from invflow.bases import DiagonalNormal
from invflow.flow import Flow
from invflow.layers import (
    AffineCoupling,
    FlowSequential,
    FlowStep,
    Split,
    Squeeze,
    UniformDequantization,
    ZeroConv2d,
    coupling_net,
)
from invflow.layers.networks import NetFactory
from invflow.ops import AffineForm

__all__ = ["glow"]


def glow(
    event_shape: Sequence[int],
    *,
    levels: int | None = None,
    steps: int = 8,
    hidden: int = 64,
    net: NetFactory | None = None,
    values: int | None = None,
    context_channels: int = 0,
    form: AffineForm | None = None,
    base: Callable[[tuple[int, ...]], nn.Module] = DiagonalNormal,
    memory: Literal["store", "invert"] = "store",
) -> Flow:
    """Build a flow of the kind of Glow (Kingma & Dhariwal, Glow, 2018, figure 2b).

    Every level squeezes the state, applies flow steps and, but for the last one, lets half of the channels leave with a
    learned prior (:class:`Split`). Vectors have no pixels to squeeze: their flow is one level of steps.

    Args:
        event_shape: shape of one sample: (D,) for vectors, (C, N), (C, H, W) or (C, D, H, W) for states with pixels.
        levels: number of levels; default as many as the size can be halved, at most 3. A vector has one.
        steps: flow steps of each level.
        hidden: channels of the default networks.
        net: factory ``net(in_channels, out_channels)`` of the couplings' networks; default :func:`coupling_net`,
            and the same of other convolutions or linear layers for states that are no images.
        values: number of values of discrete data 0, 1, ...: 256 for images of 8 bits. The flow then begins with a
            :class:`UniformDequantization`. Default: the data is continuous.
        context_channels: channels K of a context (B, K) of all couplings; 0 for none. Networks see it at every pixel.
        form: rule by which the couplings' networks scale and shift; default :class:`AffineForm`.
        base: makes the base distribution for the shape of the last latent. For classes:
            ``lambda shape: invflow.ClassNormal(10, shape)``.
        memory: ``"invert"`` saves activations: see :class:`FlowSequential`.

    Returns:
        The flow, which knows its ``event_shape``.

    Raises:
        TypeError: a network in the place of a factory.
        ValueError: a shape of another rank, fewer than two elements a sample, or a size that ``levels`` cannot halve.
    """
    shape = tuple(event_shape)
    spatial = len(shape) - 1
    if not 0 <= spatial <= 3 or not all(isinstance(size, int) and size > 0 for size in shape):
        raise ValueError(f"event_shape must be (D,), (C, N), (C, H, W) or (C, D, H, W), got {shape}")
    for name, number in (("steps", steps), ("hidden", hidden)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    if isinstance(net, nn.Module):
        raise TypeError(
            "net must be a factory net(in_channels, out_channels), which makes a network for every coupling, got the "
            f"module {type(net).__name__}"
        )
    levels = _levels(shape, levels)
    make = partial(_net, hidden=hidden, spatial=spatial) if net is None else net

    def step(channels: int) -> FlowStep:
        return FlowStep(channels, coupling=AffineCoupling(channels, make, context_channels=context_channels, form=form))

    layers: list[nn.Module] = [] if values is None else [UniformDequantization(values)]
    channels = shape[0]
    for level in range(levels):
        if spatial:
            layers.append(Squeeze())
            channels *= 2**spatial
        layers += [step(channels) for _ in range(steps)]
        if level < levels - 1:
            split = Split(channels, partial(_zero_layer, spatial=spatial))
            layers.append(split)
            channels = split.kept
    transform = FlowSequential(layers, memory=memory)
    last = Flow(transform, event_shape=shape).latent_shapes()[-1]
    return Flow(transform, base(last), event_shape=shape)


def _levels(shape: tuple[int, ...], levels: int | None) -> int:
    """Return the number of levels, checked."""
    size, halvings = shape[1:], 0
    while size and all(pixels % 2 ** (halvings + 1) == 0 for pixels in size):
        halvings += 1
    if levels is None:
        levels = 1 if len(shape) == 1 else min(halvings, 3)
    largest = halvings if size else 1
    if not largest:
        raise ValueError(f"event_shape must have even sizes after the channels, which are halved, got {shape}")
    if not 1 <= levels <= largest:
        raise ValueError(f"levels must be between 1 and {largest} for samples of shape {shape}, got {levels}")
    if shape == (1,):
        raise ValueError("event_shape must have at least 2 elements to couple, got (1,)")
    return levels


def _net(in_channels: int, out_channels: int, *, hidden: int, spatial: int) -> nn.Sequential:
    if spatial == 2:
        return coupling_net(in_channels, out_channels, hidden=hidden)
    first = _linear(in_channels, hidden, 3, spatial=spatial)
    second = _linear(hidden, hidden, 1, spatial=spatial)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), _zero_layer(hidden, out_channels, spatial=spatial))


def _zero_layer(in_channels: int, out_channels: int, *, spatial: int) -> nn.Module:
    """Return a linear layer, with a neighbourhood of 3 pixels, that begins at zero."""
    if spatial == 2:
        return ZeroConv2d(in_channels, out_channels)
    layer = _linear(in_channels, out_channels, 3, spatial=spatial)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _linear(in_channels: int, out_channels: int, size: int, *, spatial: int) -> nn.Module:
    """Return a linear layer, for vectors, or a convolution of a neighbourhood of ``size`` pixels."""
    if not spatial:
        return nn.Linear(in_channels, out_channels)
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[spatial - 1]
    return convolution(in_channels, out_channels, size, padding=size // 2)
