"""What the adapters for every other flow library must do."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

import invflow
from invflow.layers.protocol import output_shapes_of
from invflow.testing import assert_invertible, assert_log_det


def moons(count: int) -> Tensor:
    """Two half circles (count, 2), with noise, that are the same in every call."""
    generator = torch.Generator().manual_seed(0)
    angle = torch.pi * torch.rand(count, generator=generator)
    side = torch.arange(count) % 2
    points = torch.stack([angle.cos() + side - 0.5, (1 - 2 * side) * angle.sin() + 0.5 * side - 0.25], 1)
    return points + 0.05 * torch.randn(count, 2, generator=generator)


def stripes(count: int) -> Tensor:
    """Images (count, 1, 4, 4) of stripes, with noise, that are the same in every call."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 1, 4, 1, generator=generator) + 0.1 * torch.randn(count, 1, 4, 4, generator=generator)


def vector_net(inputs: int, outputs: int) -> nn.Module:
    last = nn.Linear(16, outputs)
    nn.init.normal_(last.weight, std=0.05)
    return nn.Sequential(nn.Linear(inputs, 16), nn.Tanh(), last)


def image_net(inputs: int, outputs: int) -> nn.Module:
    last = nn.Conv2d(8, outputs, 3, padding=1)
    nn.init.normal_(last.weight, std=0.05)
    return nn.Sequential(nn.Conv2d(inputs, 8, 3, padding=1), nn.Tanh(), last)


def step(channels: int, net: Callable[[int, int], nn.Module] = vector_net, context_channels: int = 0) -> nn.Module:
    coupling = invflow.AffineCoupling(channels, net, context_channels=context_channels)
    return invflow.FlowStep(channels, coupling=coupling)


def multiscale() -> nn.Module:
    """A flow of images (1, 4, 4) with two latents."""
    return invflow.FlowSequential([invflow.Squeeze(), step(4, image_net), invflow.Split(4), step(2, image_net)])


def losses(loss: Callable[[], Tensor], parameters: Iterable[Tensor], steps: int = 30) -> list[float]:
    """The losses of a short training."""
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        found.append(value.item())
    return found


def assert_learns(loss: Callable[[], Tensor], parameters: Iterable[Tensor]) -> None:
    found = losses(loss, parameters)
    assert found[-1] < found[0] - 0.1, found


def assert_works_in_flow(layer: nn.Module, x: Tensor, context: Tensor | None = None, *, atol: float = 1e-8) -> None:
    """The layer keeps the contract of layers, and trains between ours, with activations stored or reconstructed.

    Args:
        layer: in float64 and initialised.
        x, context: what it takes.
        atol: error of its inverse.
    """
    assert_invertible(layer, x, context, atol=atol)
    assert_log_det(layer, x, context, atol=1e-7)
    torch.manual_seed(1)
    mix = invflow.InvertibleConv1x1(x.shape[1]).double()
    last = invflow.Permutation(output_shapes_of(layer, tuple(x.shape[1:]))[-1][0], "reverse")
    grads = []
    for memory in ("store", "invert"):
        flow = invflow.FlowSequential([mix, layer, last], memory=memory)
        flow.zero_grad()
        z, log_det = flow(x, context)
        (z.square().sum() - log_det.sum()).backward()
        grads.append([parameter.grad.clone() for parameter in flow.parameters() if parameter.grad is not None])
        assert len(grads[-1]) == sum(parameter.requires_grad for parameter in flow.parameters())
        back, _ = flow.inverse(z, context)
        torch.testing.assert_close(back, x, atol=atol, rtol=0)
    torch.testing.assert_close(*grads, atol=10 * atol, rtol=10 * atol)


def assert_copies(module: nn.Module, call: Callable[[nn.Module], Tensor], *, pickles: bool = True) -> None:
    """Copies of the module, also by pickle, compute the same."""
    expected = call(module)
    copies = [copy.deepcopy(module), *([pickle.loads(pickle.dumps(module))] if pickles else [])]
    for made in copies:
        assert torch.equal(call(made), expected)


@torch.no_grad()
def scramble(module: nn.Module) -> nn.Module:
    """The module in float64 with other parameters, as a training leaves them, in evaluation mode."""
    generator = torch.Generator().manual_seed(2)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return module.double().eval()
