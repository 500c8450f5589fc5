"""Flows that reconstruct their states, and the comparison of a training step with that of memory="store"."""

import warnings

import torch
from foreign_layers import Cut, Doubling
from layer_cases import CONTEXT_CHANNELS, coupling, injector, latents_of, weighted_sum
from torch import nn

from invflow import ActNorm, AffineCoupling, FlowSequential, FlowStep, InvertibleConv1x1, Split

CHANNELS = 4
HALF = CHANNELS // 2


def step(net=None, **options):
    if net is None:
        return FlowStep(CHANNELS, coupling=coupling(CHANNELS), **options)
    return FlowStep(CHANNELS, coupling=AffineCoupling(CHANNELS, net), **options)


def conv(inputs=HALF, outputs=CHANNELS):
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def prepared(layers, dtype=torch.float64):
    """A flow in training mode whose actnorms are initialised, and whose parameters are random."""
    flow = FlowSequential(layers).to(dtype)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    for part in flow.modules():
        if isinstance(part, ActNorm):
            part.mark_initialized()
    return flow


class Observed:
    """What a training step leaves: values and gradients, buffers, and how often hooks ran."""

    def __init__(self, build, memory, use=lambda flow, x, context: flow(x, context)):
        torch.manual_seed(3)
        self.flow = build()
        self.flow.memory = memory
        self.extra = getattr(self.flow, "extra", [])
        dtype = next(self.flow.parameters()).dtype
        self.x = torch.randn(3, CHANNELS, 4, 4, dtype=dtype, requires_grad=True)
        self.context = torch.randn(3, CONTEXT_CHANNELS, 4, 4, dtype=dtype, requires_grad=True)
        self.calls = {}
        with warnings.catch_warnings(record=True) as self.warnings:
            warnings.simplefilter("always")
            z, self.log_det = use(self.flow, self.x, self.context)
            self.latents = latents_of(z)
            loss = weighted_sum([*self.latents, self.log_det])
            loss.backward()

    def tensors(self):
        named = [*self.flow.named_parameters(), ("x", self.x), ("context", self.context)]
        named += [(f"extra {i}", tensor) for i, tensor in enumerate(self.extra)]
        found = {f"gradient of {name}": tensor.grad for name, tensor in named if tensor.grad is not None}
        found |= {f"buffer {name}": buffer for name, buffer in self.flow.named_buffers()}
        found |= {f"latent {i}": latent.detach() for i, latent in enumerate(self.latents)}
        return found | {"log_det": self.log_det.detach()}


def assert_same(build, tolerance=1e-9, says=None, **options):
    store, invert = Observed(build, "store", **options), Observed(build, "invert", **options)
    assert store.tensors().keys() == invert.tensors().keys()
    torch.testing.assert_close(invert.tensors(), store.tensors(), rtol=tolerance, atol=tolerance)
    messages = [str(warning.message) for warning in invert.warnings]
    if says is None:
        assert not messages
    else:
        assert any(says in message for message in messages), messages
    return store, invert


# Flows by what their networks use


def plain():
    return prepared([step(), step(), step()])


def conditional():
    full = [
        FlowStep(CHANNELS, injector=injector(CHANNELS), coupling=coupling(CHANNELS, context_channels=CONTEXT_CHANNELS))
        for _ in range(3)
    ]
    return prepared([*full, Split(CHANNELS), FlowStep(2)])


def nested():
    inner = FlowSequential([step(), FlowSequential([step(), Doubling()], memory="invert")], memory="invert")
    return prepared([inner, step(), FlowSequential([step(), Cut(CHANNELS, 1)])])


def shared_network():
    net = conv()
    return prepared([step(net), InvertibleConv1x1(CHANNELS), step(net), step(net)])


def with_net(make, count=3):
    return lambda: prepared([step(), *(step(make()) for _ in range(count))])


class Closure(nn.Module):
    """A network that uses tensors which are not its own."""

    def __init__(self, *tensors):
        super().__init__()
        self.conv = conv()
        self.tensors = tensors

    def forward(self, x):
        return self.conv(x) * (1 + 0.1 * sum(self.tensors[1:], self.tensors[0]))


def captured_leaf():
    shift = torch.randn(1, CHANNELS, 1, 1, dtype=torch.float64, requires_grad=True)
    flow = prepared([step(Closure(shift)), step(), step(Closure(shift))])
    flow.extra = [shift]
    return flow
