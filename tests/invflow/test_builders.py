"""The builder of multi-scale flows, and networks that are given as factories."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

import invflow
from invflow import (
    AffineCoupling,
    AffineForm,
    AffineInjector,
    CheckerboardCoupling,
    ClassNormal,
    DiagonalNormal,
    SplineCoupling,
    Split,
    Squeeze,
    UniformDequantization,
    ZeroConv2d,
)
from invflow.testing import assert_invertible, assert_log_det


def raises(error: type[Exception], message: str):
    return pytest.raises(error, match=re.escape(message))


def randomized(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return module.double().eval()


def test_levels_squeeze_step_and_split() -> None:
    flow = invflow.glow((3, 8, 16), levels=3, steps=2, hidden=4)
    kinds = [type(layer).__name__ for layer in flow.transform]
    level = ["Squeeze", "FlowStep", "FlowStep"]
    assert kinds == [*level, "Split", *level, "Split", *level]
    assert flow.event_shape == (3, 8, 16)
    assert flow.latent_shapes() == [(6, 4, 8), (12, 2, 4), (48, 1, 2)]
    assert isinstance(flow.base, DiagonalNormal)
    assert flow.base.mean.shape == (48, 1, 2)
    assert flow.transform.memory == "store"


@pytest.mark.parametrize(("size", "levels"), [((8, 8), 3), ((16, 24), 3), ((4, 8), 2), ((6, 8), 1)], ids=str)
def test_the_default_number_of_levels(size, levels: int) -> None:
    flow = invflow.glow((1, *size), steps=1, hidden=2)
    assert sum(isinstance(layer, Squeeze) for layer in flow.transform) == levels


@pytest.mark.parametrize("shape", [(2,), (5,), (1, 8), (3, 4), (1, 4, 4), (1, 4, 2, 4)], ids=str)
@pytest.mark.parametrize("context_channels", [0, 3])
def test_it_is_a_density(shape, context_channels: int) -> None:
    flow = randomized(invflow.glow(shape, steps=2, hidden=4, context_channels=context_channels))
    x = torch.randn(2, *shape, dtype=torch.float64)
    context = torch.randn(2, 3, dtype=torch.float64) if context_channels else None
    assert_invertible(flow.transform, x, context)
    assert_log_det(flow.transform, x, context)
    samples = flow.sample(3, context)
    assert samples.shape == ((3, *shape) if context is None else (3, 2, *shape))
    assert flow.log_prob(samples, context).shape == samples.shape[: samples.dim() - len(shape)]
    if context is not None:
        torch.testing.assert_close(flow.log_prob(samples, context)[1], flow.log_prob(samples[1], context))


def test_a_vector_is_a_context_of_every_level() -> None:
    flow = randomized(invflow.glow((1, 8, 8), levels=2, steps=1, hidden=4, context_channels=3))
    context = torch.randn(4, 3, dtype=torch.float64)
    samples = flow.sample(2, context, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    latents = [torch.randn(8, *shape, generator=generator, dtype=torch.float64) for shape in flow.latent_shapes()]
    latents[-1] = flow.base.sample(latents[-1])
    expected, _ = flow.transform.inverse(latents, context.repeat_interleave(2, 0))
    torch.testing.assert_close(samples, expected.unflatten(0, (4, 2)).transpose(0, 1))


@pytest.mark.parametrize("shape", [(3,), (1, 4, 4)], ids=str)
def test_a_folded_flow_samples_alike(shape) -> None:
    flow = invflow.glow(shape, steps=2, hidden=4, values=8)
    flow(torch.randint(8, (16, *shape)))  # initialises the actnorms
    folded = invflow.Flow(randomized(flow).transform.folded(), flow.base, event_shape=shape)
    found = [each.sample(20, generator=torch.Generator().manual_seed(1)) for each in (flow, folded)]
    torch.testing.assert_close(*found)


def test_it_starts_near_the_identity_of_normalised_data() -> None:
    flow = invflow.glow((2, 4, 4), steps=3, hidden=4)
    x = 5 + 3 * torch.randn(64, 2, 4, 4)
    z, _ = flow.transform(x)
    for latent in z:
        assert latent.mean().abs() < 0.3
        assert 0.4 < latent.std() < 1.3


def test_settings_reach_the_layers() -> None:
    made: list[tuple[int, int]] = []

    def net(inputs: int, outputs: int) -> nn.Module:
        made.append((inputs, outputs))
        return ZeroConv2d(inputs, outputs)

    form = AffineForm("exp")
    flow = invflow.glow(
        (1, 4, 4), levels=2, steps=1, net=net, values=16, form=form, memory="invert", base=lambda s: ClassNormal(5, s)
    )
    assert made == [(2, 4), (4, 8)]
    first, _, step, *_ = flow.transform
    assert isinstance(first, UniformDequantization)
    assert first.values == 16
    assert step.coupling.form == form
    assert flow.transform.memory == "invert"
    assert isinstance(flow.base, ClassNormal)
    x = torch.randint(16, (4, 1, 4, 4))
    assert flow.log_prob(x, y=torch.tensor([0, 1, 2, 3])).shape == (4,)
    samples = flow.sample(3, y=torch.arange(5))
    assert samples.shape == (3, 5, 1, 4, 4)
    assert torch.equal(samples, samples.round())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"event_shape": ()}, "event_shape must be (D,), (C, N), (C, H, W) or (C, D, H, W), got ()"),
        ({"event_shape": (1, 2, 2, 2, 2)}, "event_shape must be (D,), (C, N), (C, H, W) or (C, D, H, W), got"),
        ({"event_shape": (1, 0, 2)}, "event_shape must be (D,), (C, N), (C, H, W) or (C, D, H, W), got (1, 0, 2)"),
        ({"event_shape": (1,)}, "event_shape must have at least 2 elements to couple, got (1,)"),
        ({"event_shape": (1, 4, 7)}, "event_shape must have even sizes after the channels, which are halved, got"),
        ({"levels": 3}, "levels must be between 1 and 2 for samples of shape (1, 4, 4), got 3"),
        ({"levels": 0}, "levels must be between 1 and 2 for samples of shape (1, 4, 4), got 0"),
        ({"event_shape": (4,), "levels": 2}, "levels must be between 1 and 1 for samples of shape (4,), got 2"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"hidden": 0}, "hidden must be at least 1, got 0"),
    ],
    ids=str,
)
def test_errors(given, message: str) -> None:
    with raises(ValueError, message):
        invflow.glow(**{"event_shape": (1, 4, 4), **given})


def test_a_network_would_be_that_of_all_couplings() -> None:
    with raises(TypeError, "net must be a factory net(in_channels, out_channels), which makes a network for every"):
        invflow.glow((2,), net=nn.Linear(1, 2))  # type: ignore[arg-type]


class TestFactories:
    def test_layers_say_how_many_channels(self) -> None:
        made: list[tuple[int, int]] = []

        def net(inputs: int, outputs: int) -> nn.Module:
            made.append((inputs, outputs))
            return ZeroConv2d(inputs, outputs)

        AffineCoupling(5, net)
        AffineCoupling(4, net, context_channels=3)
        AffineInjector(4, net, context_channels=3)
        Split(5, net)
        AffineCoupling(5, net, stop=2)
        CheckerboardCoupling(3, net, context_channels=2)
        SplineCoupling(5, net, bins=4)
        assert made == [(2, 6), (5, 4), (3, 8), (3, 4), (3, 4), (5, 6), (2, 33)]

    def test_context_is_joined(self) -> None:
        class Sum(nn.Module):
            def __init__(self, inputs: int, outputs: int) -> None:
                super().__init__()
                self.outputs = outputs

            def forward(self, x: Tensor) -> Tensor:
                return x.cumsum(1)[:, -1:].expand(-1, self.outputs, -1, -1)

        coupling = AffineCoupling(4, Sum, context_channels=3).double()
        x, context = torch.randn(4, 4, 2, 2).double(), torch.randn(2, 3, 2, 2).double()
        expected = torch.cat([x[:, :2], context.repeat_interleave(2, 0)], 1).sum(1, keepdim=True)
        torch.testing.assert_close(coupling.raw_output(x[:, :2], context), expected.expand(-1, 4, -1, -1))

    def test_errors(self) -> None:
        with raises(TypeError, "AffineCoupling: net must be a torch.nn.Module or a factory net(in_channels"):
            AffineCoupling(4, None)  # type: ignore[arg-type]
        for layer in (AffineCoupling, CheckerboardCoupling, SplineCoupling):
            with raises(ValueError, f"{layer.__name__}: context_channels must be at least 0, got -1"):
                layer(4, ZeroConv2d, context_channels=-1)
        with raises(TypeError, "Split: the factory net must return a torch.nn.Module, got tuple"):
            Split(4, lambda *channels: channels)  # type: ignore[arg-type, return-value]
