"""Parts of the state that couplings transform: either half, odd channel counts, the pixels of one colour."""

from __future__ import annotations

import re

import pytest
import torch
from layer_cases import Net, checkerboard, coupling, spline
from torch import nn

from invflow import AffineCoupling, CheckerboardCoupling, FlowSequential, FlowStep, SplineCoupling
from invflow.testing import assert_invertible, assert_log_det

#: Between -1 and 1, where a spline is not the identity.
STATE = torch.rand(2, 5, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def randomized(layer: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return layer.double()


@pytest.mark.parametrize("kind", ["affine", "spline", "step"])
@pytest.mark.parametrize(
    ("halves", "changed"),
    [
        ({}, [2, 3, 4]),
        ({"start": 2}, [2, 3, 4]),
        ({"start": 3}, [3, 4]),
        ({"start": 4, "stop": 5}, [4]),
        ({"stop": 2}, [0, 1]),
        ({"stop": 3}, [0, 1, 2]),
        ({"start": 0, "stop": 4}, [0, 1, 2, 3]),
    ],
    ids=str,
)
def test_the_channels_that_are_named_are_transformed(kind: str, halves: dict[str, int], changed: list[int]) -> None:
    passing = [channel for channel in range(5) if channel not in changed]
    outputs = 8 if kind == "spline" else 2
    net = Net(len(passing), len(changed) * outputs)
    layer: nn.Module = (
        SplineCoupling(5, net, bins=3, **halves) if kind == "spline" else AffineCoupling(5, net, **halves)
    )
    flow = FlowSequential([FlowStep(5, coupling=layer)] if kind == "step" else [layer], memory="invert")
    randomized(layer)
    if kind == "step":
        flow[0].actnorm.mark_initialized()
        flow[0].conv1x1.weight.data = torch.eye(5)
    flow = flow.double()
    seen = []
    net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    z, _ = flow(STATE)
    torch.testing.assert_close(seen[0], STATE[:, passing], rtol=0, atol=0)
    differs = (z != STATE).flatten(2).all(2).all(0)
    same = (z == STATE).flatten(2).all(2).all(0)
    assert differs.nonzero().flatten().tolist() == changed
    assert same.nonzero().flatten().tolist() == passing
    assert_invertible(flow, STATE)
    assert_log_det(flow, STATE[:1, :, :2, :1])


@pytest.mark.parametrize("layer", [coupling(5, stop=2), coupling(4, stop=3), spline(4, stop=2)], ids=str)
def test_gradients_of_the_first_channels_are_those_of_store(layer: nn.Module) -> None:
    channels = layer.channels
    flow = randomized(FlowSequential([layer, coupling(channels)]))
    found = []
    for memory in ("store", "invert"):
        flow.memory = memory
        x = STATE[:, :channels].clone().requires_grad_()
        z, log_det = flow(x)
        found.append(torch.autograd.grad(z.sin().sum() + log_det.sum(), [x, *flow.parameters()]))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("halves", [{"start": 0}, {"start": 5}, {"stop": 0}, {"stop": 5}, {"start": 1, "stop": 4}])
@pytest.mark.parametrize("kind", [AffineCoupling, SplineCoupling])
def test_channels_that_are_no_half_are_refused(kind: type[nn.Module], halves: dict[str, int]) -> None:
    message = rf"{kind.__name__}: channels start to stop must be the first or the last of 5, and not all"
    with pytest.raises(ValueError, match=message):
        kind(5, nn.Identity(), **halves)


@pytest.mark.parametrize("passes", ["even", "odd"])
def test_pixels_of_one_colour_pass(passes: str) -> None:
    layer = randomized(checkerboard(5, passes))
    z, _ = layer(STATE)
    row, column = torch.meshgrid(torch.arange(3), torch.arange(4), indexing="ij")
    expected = (row + column) % 2 == ("even", "odd").index(passes)
    assert torch.equal((z == STATE).all(1).all(0), expected)
    assert torch.equal((z != STATE).all(1).all(0), ~expected)


def test_what_the_network_says_of_a_passing_pixel_has_no_effect() -> None:
    class Wild(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = (x.sum(1, keepdim=True) + self.bias).expand(-1, 10, -1, -1)
            wild = torch.zeros(3, 4, dtype=torch.float64)
            wild[::2, ::2] = torch.nan
            wild[1::2, 1::2] = torch.inf
            return h + wild

    layer, x = CheckerboardCoupling(5, Wild()), STATE.clone().requires_grad_()
    z, log_det = layer(x)
    gradients = torch.autograd.grad(z.sin().sum() + log_det.sum(), [x, *layer.parameters()])
    assert all(tensor.isfinite().all() for tensor in (z, log_det, *gradients))
    assert_invertible(layer, STATE)


class Returns(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros(self.shape, dtype=x.dtype)


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("kind", "channels"), [(CheckerboardCoupling, 10), (SplineCoupling, 69)])
def test_networks_must_return_every_state_and_pixel(kind, channels: int, batch: int, direction: str) -> None:
    """Otherwise what they return is repeated for all samples or pixels, or the other way round."""
    for pixels in ((1, 1), (3, 1), (5, 6), (4,), ()):
        with pytest.raises(ValueError, match="net must return shape"):
            getattr(kind(5, Returns(batch, channels, *pixels)), direction)(STATE[:batch])
    for samples in (3 - batch, 4):
        message = f"{kind.__name__}: net must return shape {(batch, channels, 3, 4)}, got {(samples, channels, 3, 4)}"
        with pytest.raises(ValueError, match=re.escape(message)):
            getattr(kind(5, Returns(samples, channels, 3, 4)), direction)(STATE[:batch])


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match="CheckerboardCoupling: passes must be 'even' or 'odd', got 'white'"):
        CheckerboardCoupling(3, nn.Identity(), passes="white")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="CheckerboardCoupling: net must return 10 channels, got shape"):
        CheckerboardCoupling(5, nn.Identity())(STATE)
    with pytest.raises(ValueError, match=re.escape("at least one spatial dimension")):
        CheckerboardCoupling(5, nn.Identity()).output_shapes((5,))  # type: ignore[arg-type]
