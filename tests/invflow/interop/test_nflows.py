"""nflows: our layers in its flows, and its transforms in ours."""

from __future__ import annotations

import pytest
import torch
from interop_checks import (
    assert_copies,
    assert_learns,
    assert_works_in_flow,
    image_net,
    moons,
    multiscale,
    scramble,
    step,
    stripes,
)

import invflow

pytest.importorskip("nflows", reason="nflows is not installed: make peers")

from nflows import transforms
from nflows.distributions import ConditionalDiagonalNormal, StandardNormal
from nflows.flows import Flow
from nflows.nn.nets import ResidualNet

from invflow.interop import Flat
from invflow.interop.nflows import layer_of


def spline(mask: torch.Tensor) -> transforms.Transform:
    return transforms.PiecewiseRationalQuadraticCouplingTransform(mask, net, tails="linear")


def net(inputs: int, outputs: int) -> ResidualNet:
    return ResidualNet(inputs, outputs, hidden_features=8, num_blocks=1)


def test_trains_and_samples_with_contexts() -> None:
    torch.manual_seed(0)
    mixed = transforms.CompositeTransform(
        [step(2, context_channels=3), transforms.ReversePermutation(2), step(2, context_channels=3)]
    )
    flow = Flow(mixed, ConditionalDiagonalNormal([2], torch.nn.Linear(3, 4)))
    x, context = moons(32), torch.randn(32, 3)
    assert_learns(lambda: -flow.log_prob(x, context).mean(), flow.parameters())
    samples, log_prob = flow.sample_and_log_prob(5, context[:4])
    assert samples.shape == (4, 5, 2)
    again = flow.log_prob(samples.flatten(0, 1), context[:4].repeat_interleave(5, 0)).reshape(4, 5)
    torch.testing.assert_close(again, log_prob, atol=1e-4, rtol=1e-4)
    assert_copies(flow, lambda made: made.log_prob(x, context))


def test_several_latents() -> None:
    torch.manual_seed(0)
    layer = multiscale()
    flow = Flow(Flat(layer, (1, 4, 4)), StandardNormal([16]))
    assert_learns(lambda: -flow.log_prob(stripes(16)).mean(), flow.parameters())
    samples, log_prob = flow.eval().sample_and_log_prob(6)
    own = invflow.Flow(layer, event_shape=(1, 4, 4)).log_prob(samples)
    torch.testing.assert_close(log_prob, own, atol=1e-3, rtol=1e-4)


def test_in_its_multiscale_transform() -> None:
    torch.manual_seed(0)
    multiscale = transforms.MultiscaleCompositeTransform(2)
    level = invflow.FlowSequential([invflow.Squeeze(), step(4, image_net)])
    hidden = multiscale.add_transform(level, (4, 4, 4))
    multiscale.add_transform(step(2, image_net), hidden)
    flow = scramble(Flow(multiscale, StandardNormal([64]))).float()  # its samples are float32
    samples, log_prob = flow.sample_and_log_prob(3)
    assert samples.shape == (3, 1, 8, 8)
    torch.testing.assert_close(flow.log_prob(samples), log_prob, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize(
    ("made", "context_channels"),
    [
        (lambda: transforms.LULinear(3), 0),
        (lambda: transforms.AffineCouplingTransform(torch.tensor([1, 0, 1]), net), 0),
        (
            lambda: transforms.PiecewiseRationalQuadraticCouplingTransform(
                torch.tensor([1, 0, 1]), net, tails="linear"
            ),
            0,
        ),
        (lambda: transforms.MaskedAffineAutoregressiveTransform(3, 8, context_features=2), 2),
        (lambda: transforms.ActNorm(3), 0),
    ],
)
def test_its_transforms_are_layers(made, context_channels: int) -> None:
    torch.manual_seed(0)
    context = torch.randn(4, context_channels).double() if context_channels else None
    x = torch.randn(4, 3).double()
    layer = layer_of(made()).double()
    layer(x, context)  # initialises
    assert_works_in_flow(layer, x, context)


def test_shapes_that_change() -> None:
    x = torch.randn(2, 1, 4, 4).double()
    squeeze = layer_of(transforms.SqueezeTransform())
    assert squeeze.output_shapes((1, 4, 4)) == [(4, 2, 2)]
    torch.testing.assert_close(squeeze(x)[0], invflow.Squeeze()(x)[0])
    multiscale = transforms.MultiscaleCompositeTransform(2)
    multiscale.add_transform(transforms.OneByOneConvolution(4), (4, 2, 2))
    multiscale.add_transform(transforms.OneByOneConvolution(2), (2, 2, 2))
    flow = invflow.Flow([squeeze, layer_of(multiscale)], event_shape=(1, 4, 4)).double()
    assert flow.sample(3).shape == (3, 1, 4, 4)
    assert layer_of(transforms.IdentityTransform(), (16,)).output_shapes((1, 4, 4)) == [(16,)]
    assert_works_in_flow(flow.transform, x)


def test_errors() -> None:
    with pytest.raises(TypeError, match="must be one of nflows, got FlowStep"):
        layer_of(step(2))
