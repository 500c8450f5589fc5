"""A sequence of layers as a container: its slices, and layers that are added to it."""

from __future__ import annotations

import pytest
import torch
from foreign_layers import Doubling
from torch import nn

from invflow import FlowSequential, FlowStep, Split, Squeeze


def randomized(flow: FlowSequential) -> FlowSequential:
    """The flow with parameters moved from where they begin, in float64 and evaluation mode."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return flow.double().eval()


def test_a_slice_is_a_flow_of_the_same_layers() -> None:
    layers = [FlowStep(2), Doubling(), FlowStep(2)]
    flow = FlowSequential(layers, memory="invert")
    part = flow[1:]
    assert type(part) is FlowSequential
    assert part.memory == "invert"
    assert [*part] == layers[1:]
    assert [*flow[::-2]] == [layers[2], layers[0]]
    assert flow[-1] is layers[2]


def test_no_layers() -> None:
    with pytest.raises(ValueError, match="layers must not be empty"):
        FlowSequential([Doubling()])[1:]


def test_parts_compose() -> None:
    flow = randomized(FlowSequential([Squeeze(), FlowStep(4), Split(4), FlowStep(2)]))
    x = torch.randn(2, 1, 4, 4).double()
    middle, log_det = flow[:2](x)
    (leaving, last), rest = flow[2:](middle)
    z, total = flow(x)
    torch.testing.assert_close([leaving, last], z)
    torch.testing.assert_close(log_det + rest, total)


def test_append() -> None:
    flow = FlowSequential([FlowStep(2)])
    assert flow.append(Doubling()).append(FlowStep(2)) is flow
    assert [type(layer).__name__ for layer in flow] == ["FlowStep", "Doubling", "FlowStep"]
    randomized(flow)
    x = torch.randn(2, 2, 3, 3).double()
    torch.testing.assert_close(flow.inverse(flow(x)[0])[0], x)
    with pytest.raises(TypeError, match="FlowSequential: layer 3, ReLU, has no inverse method"):
        flow.append(nn.ReLU())
    assert len(flow) == 3
